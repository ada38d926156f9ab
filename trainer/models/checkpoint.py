"""Reads Stable Diffusion 1.5 from a checkpoint file or a diffusers folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .prediction import checkpoint_prediction, config_prediction
from .sd15 import LEVELS, TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, diffusers_name
from .weights import ModelError, read_file, read_json, read_weights

WANTED = "AnimateDiff needs a checkpoint of Stable Diffusion 1.5."

# Files that are often chosen by mistake: (part of a key, what the file is, what to do).
FOREIGN = (
    ("motion_modules.", "an AnimateDiff motion module", "Set it as `motion_module`."),
    ("lora", "a LoRA", "Set a full checkpoint as `model`, and the LoRA as `start_from`."),
    ("conditioner.embedders.", "a Stable Diffusion XL checkpoint", WANTED),
    ("label_emb.", "a Stable Diffusion XL UNet", WANTED),
    ("cond_stage_model.model.", "a Stable Diffusion 2 checkpoint", WANTED),
    ("double_blocks.", "a Flux-like transformer", WANTED),
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint", WANTED),
    ("temp_attentions.", "a ModelScope UNet", "Set its whole diffusers folder as `model`."),
)
GUIDED = (".time_embed.cond_proj.", "time_embedding.cond_proj.")
"""Pieces of keys of a UNet that takes the guidance as an input: a whole model distilled by LCM."""
INPUTS = {9: "an inpainting model", 8: "an editing model (InstructPix2Pix)"}


@dataclass(frozen=True, eq=False)
class ImageModel:
    """Weights of a Stable Diffusion 1.5 in its file's dtypes: ``unet`` by diffusers' names,
    ``text`` and ``vae`` as stored. Those of a diffusers folder are read by `families`.
    ``prediction`` is one of `prediction.PREDICTIONS`.
    """

    path: Path
    unet: dict[str, Tensor]
    text: dict[str, Tensor]
    vae: dict[str, Tensor]
    prediction: str = "epsilon"

    @property
    def channels(self) -> tuple[int, ...]:
        """UNet channels of the four levels."""
        keys = (f"down_blocks.{i}.resnets.0.conv1.weight" for i in range(LEVELS))
        return tuple(self.unet[key].shape[0] for key in keys)

    @property
    def text_width(self) -> int:
        """Width of the text that the cross-attention reads."""
        key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
        return self.unet[key].shape[1]


def read_image_model(path: Path) -> ImageModel:
    """Read a checkpoint file in original keys, or the UNet of a diffusers folder.

    Averaged weights (`model_ema.`) are left out, as ComfyUI does. Raises ModelError: unreadable,
    another kind of model, one of another prediction, or one without text encoder.
    """
    if path.is_dir():
        weights = read_weights(path / "unet")
        refuse_few_step(weights, path)
        found = ImageModel(path, weights, {}, {}, _folder_prediction(path))
        _check_layout(found)
        return found
    weights = read_file(path, lambda key: not key.startswith("model_ema."))
    _refuse_foreign(weights, path)
    refuse_few_step(weights, path)
    found = ImageModel(
        path, _renamed(_part(weights, UNET_PREFIX)), _part(weights, TEXT_PREFIX),
        _part(weights, VAE_PREFIX), checkpoint_prediction(path, weights),
    )  # fmt: skip
    _check_layout(found)
    if not found.text:
        raise ModelError(
            f"'{path}' holds a UNet without text encoder. Use the whole checkpoint, not its UNet."
        )
    return found


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


def _refuse_foreign(keys: Iterable[str], path: Path) -> None:
    names = list(keys)
    for piece, what, advice in FOREIGN:
        if any(piece in name for name in names):
            raise ModelError(f"'{path}' is {what}, not a Stable Diffusion 1.5. {advice}")
    if not any(name.startswith(UNET_PREFIX) for name in names):
        shown = ", ".join(sorted(names)[:2])
        raise ModelError(
            f"'{path}' is not a Stable Diffusion 1.5 checkpoint: none of its {len(names)} keys "
            f"begins with `{UNET_PREFIX}` (it has {shown}). {WANTED}"
        )


def refuse_few_step(keys: Iterable[str], path: Path) -> None:
    """Raise ModelError for a checkpoint that is distilled for few steps already, by its ``keys``.

    Its guidance input would be missing here, and there is nothing left to distil.
    """
    if any(piece in f".{key}" for key in keys for piece in GUIDED):
        raise ModelError(
            f"'{path}' was already distilled with LCM and reads the guidance as an input "
            "(`cond_proj`). Use the checkpoint that it was made from."
        )


def _folder_prediction(path: Path) -> str:
    """Of a diffusers folder, by its scheduler; "epsilon" where it has none."""
    config = path / "scheduler" / "scheduler_config.json"
    return config_prediction(read_json(config) if config.is_file() else {}, path)


def _renamed(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original keys to diffusers' names; a key without one is kept, and refused later by name."""
    return {diffusers_name(key) or key: value for key, value in original.items()}


def _check_layout(found: ImageModel) -> None:
    """Raise ModelError unless the UNet has SD 1.5's levels and a plain input."""
    try:
        channels, inputs = found.channels, found.unet["conv_in.weight"].shape[1]
        width = found.text_width
    except KeyError as error:
        raise ModelError(
            f"'{found.path}' is not a complete Stable Diffusion 1.5 UNet: {error} is missing. "
            f"{WANTED}"
        ) from error
    if inputs != 4:
        what = INPUTS.get(inputs, "another kind of model")
        raise ModelError(f"'{found.path}' is {what} ({inputs} input channels). {WANTED}")
    if width in (1024, 2048):
        raise ModelError(
            f"'{found.path}' reads text {width} wide and has channels {channels}: it is not a "
            f"Stable Diffusion 1.5 (768 wide). {WANTED}"
        )
