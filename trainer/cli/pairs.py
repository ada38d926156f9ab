"""The flags of each network of a base model that has two: the first makes states that are nearly
noise, the second makes clips of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import MODEL_PARTS

if TYPE_CHECKING:
    from ..families import VideoModel


def add_pair_argument(parser: argparse.ArgumentParser) -> None:
    """``--other-lora``, beside ``--lora``."""
    parser.add_argument(
        "--other-lora",
        type=Path,
        metavar="FILE",
        help="LoRA of the other expert of a Wan 2.2 14B; without it, that one samples as the base "
        "model does",
    )


def parts_of(options: argparse.Namespace) -> list[argparse.Namespace]:
    """``options`` for each network that makes a clip, in the order in which they do: one for most
    models. Raises ModelError where the other of two is not there, ValueError for an
    ``--other-lora`` that has no use, and for steps that two cannot share, LoraError for a LoRA that
    does not fit its network.
    """
    from ..families import ModelError

    model = _part_at(options)
    if model is None:
        if options.other_lora is not None:
            raise ValueError("`--other-lora` is for the experts of Wan 2.2 14B; leave it out.")
        return [options]
    asked = options.steps if isinstance(options.steps, list) else [options.steps or 2]
    for steps in asked:
        if steps % 2:
            raise ValueError(
                f"`--steps {steps}` cannot be shared by two networks; use an even number."
            )
    if model.other is None:
        error = ModelError(
            f"A clip needs both experts of Wan 2.2 14B, and the other one is not beside "
            f"'{model.path}'. Put it there, or give it with `--other-expert`."
        )
        error.part = "other_expert"
        raise error
    changed = {"model": str(model.other), "other_expert": model.path, "lora": options.other_lora}
    other = argparse.Namespace(**{**vars(options), **changed, "other_lora": options.lora})
    _check_loras(options, other)
    return [options, other] if model.noise.in_noise else [other, options]


def _check_loras(*parts: argparse.Namespace) -> None:
    """Refuse a LoRA of the second network before the first has worked. Raises LoraError."""
    from ..evaluate.bench import fit_student

    for options in parts:
        model = None if options.lora is None else _part_at(options)
        if model is not None:
            fit_student(model, options.lora)


def _part_at(options: argparse.Namespace) -> VideoModel | None:
    """The base model that the flags name, as shapes, where it is for a part of the noise levels;
    None for all others. Raises ModelError.
    """
    import torch

    from ..families import family_of, load_model, resolve_model
    from ..models.weights import shapes_only

    if "other_expert" not in family_of(resolve_model(options.model)).takes:
        return None
    with shapes_only():
        model = load_model(
            options.model, torch.float32, **{part: getattr(options, part) for part in MODEL_PARTS}
        )
    return model if model.part else None
