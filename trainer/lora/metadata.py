"""What a LoRA file says about itself: ModelSpec 1.0.1, kohya's `ss_*`, and our own `mcm.*`; strings
only.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..diffusion.noise import EPSILON, VELOCITY
from .files import tensor_hash
from .pairs import LoraError, LoraPair

MCM_VERSION = "1"
THUMBNAIL_PIXELS = 256  # the side ModelSpec recommends
THUMBNAIL_BYTES = 48_000
TAG_LETTERS = 120
TAG_BYTES = 100_000
ALLOWED_STEPS = (1, 2, 4, 8)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class LoraCard:
    """Everything the metadata of an exported LoRA is made from."""

    title: str
    family: str
    """Name of the family, such as `modelscope`."""
    base_model: str
    """Name of the base model the LoRA was trained on, as shown to people."""
    base_hash: str
    """Hex SHA-256 of the base model's weights."""
    base_license: str
    frames: int
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    fps: int
    """Frames per second."""
    steps: int = 4
    """Recommended sampling steps; one of `steps_allowed`."""
    steps_allowed: tuple[int, ...] = ALLOWED_STEPS
    strength: float = 1.0
    guidance_scale: float = 1.0
    sampler: str = "lcm"
    timestep_scaling: float = 4.0
    sigma_data: float = 0.5
    original_steps: int = 50
    prediction_type: str = EPSILON
    """What the network of the base model predicts."""
    shift: float | None = None
    """Of the levels of a flow; None for other models."""
    low: float | None = None
    high: float | None = None
    """The levels between which the base model's network works, where that is a part of them."""
    part: str = ""
    """What that part is called, such as "high noise"."""
    base_file: str = ""
    """File name of a base model that is one file, as ComfyUI's loaders list it."""
    companions: Mapping[str, str] = field(default_factory=dict)
    """Names of the files beside the base model, by setting, such as `text_encoder`."""
    motion_module: str = ""
    """Name of the motion module that made a video model of an image model; empty without one."""
    trigger: str = ""
    author: str = ""
    license: str = ""
    """Licence of the LoRA itself; empty means that of the base."""
    description: str = ""
    thumbnail: str = ""
    """A data URI, see `thumbnail_data_uri`."""
    train_steps: int = 0
    seed: int = 0
    learning_rate: float = 0.0
    tag_frequency: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Folder -> caption tag -> count, as kohya keeps it."""
    date: str = field(default_factory=_now)
    """ISO 8601."""


def build_metadata(card: LoraCard, pairs: Mapping[str, LoraPair]) -> dict[str, str]:
    """The complete metadata of an export, without the two tensor hashes (`with_hashes` adds those).

    Empty optional entries are left out. Raises LoraError for steps that are not allowed or a bad
    thumbnail.
    """
    if card.steps not in card.steps_allowed:
        raise LoraError(
            f"`steps`={card.steps}; allowed are {', '.join(map(str, card.steps_allowed))}."
        )
    if card.thumbnail and not card.thumbnail.startswith("data:image/"):
        raise LoraError("`thumbnail` must be a data URI; make one with thumbnail_data_uri(image).")
    found = {**_modelspec(card), **_kohya(card, pairs), **_mcm(card)}
    return {key: value for key, value in found.items() if value}


def _modelspec(card: LoraCard) -> dict[str, str]:
    licence = card.license or card.base_license
    hint = (
        f"{card.steps} steps, sampler {card.sampler}, CFG {card.guidance_scale:g}, "
        f"{card.frames} frames"
    )
    if card.part:
        hint = f"for the {card.part} expert: {hint}"
    trigger = f"; trigger: {card.trigger}" if card.trigger else ""
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{card.family}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": card.title,
        "modelspec.description": card.description,
        "modelspec.prediction_type": {EPSILON: EPSILON, VELOCITY: "v"}.get(
            card.prediction_type, ""
        ),
        "modelspec.resolution": f"{card.width}x{card.height}",
        "modelspec.date": card.date,
        "modelspec.author": card.author,
        "modelspec.license": licence,
        "modelspec.usage_hint": hint + trigger,
        "modelspec.trigger_phrase": card.trigger,
        "modelspec.thumbnail": card.thumbnail,
    }


def _kohya(card: LoraCard, pairs: Mapping[str, LoraPair]) -> dict[str, str]:
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": one_value(pair.rank for pair in pairs.values()),
        "ss_network_alpha": one_value(pair.alpha for pair in pairs.values()),
        "ss_steps": str(card.train_steps),
        "ss_seed": str(card.seed),
        "ss_learning_rate": str(card.learning_rate),
        "ss_base_model_version": card.base_model,
        "ss_tag_frequency": json.dumps(capped_tags(card.tag_frequency), ensure_ascii=False),
    }


def capped_tags(found: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The most frequent tags of each folder, long ones cut, in `TAG_BYTES` altogether.

    Captions that are sentences have a tag for every image, and ComfyUI reads no workflow from a
    header over 4 MB.
    """
    capped: dict[str, dict[str, int]] = {}
    left = TAG_BYTES
    for folder, tags in found.items():
        kept: Counter[str] = Counter()
        for tag, count in sorted(tags.items(), key=lambda item: -item[1]):
            short = tag if len(tag) <= TAG_LETTERS else f"{tag[:TAG_LETTERS]}..."
            if short not in kept:
                left -= len(short.encode("utf-8", errors="replace")) + 16
            if left < 0:
                break
            kept[short] += count
        capped[folder] = dict(kept)
    return capped


def _mcm(card: LoraCard) -> dict[str, str]:
    return {
        "mcm.version": MCM_VERSION,
        "mcm.family": card.family,
        "mcm.base_model": card.base_model,
        "mcm.base_hash": card.base_hash,
        "mcm.base_license": card.base_license,
        "mcm.motion_module": card.motion_module,
        "mcm.steps": str(card.steps),
        "mcm.steps_allowed": ",".join(map(str, card.steps_allowed)),
        "mcm.strength": str(card.strength),
        "mcm.guidance_scale": str(card.guidance_scale),
        "mcm.sampler": card.sampler,
        "mcm.timestep_scaling": str(card.timestep_scaling),
        "mcm.sigma_data": str(card.sigma_data),
        "mcm.prediction_type": card.prediction_type,
        "mcm.original_steps": str(card.original_steps),
        "mcm.shift": "" if card.shift is None else f"{card.shift:g}",
        "mcm.low": "" if card.low is None else f"{card.low:g}",
        "mcm.high": "" if card.high is None else f"{card.high:g}",
        "mcm.part": card.part,
        "mcm.frames": str(card.frames),
        "mcm.width": str(card.width),
        "mcm.height": str(card.height),
        "mcm.fps": str(card.fps),
        "mcm.trigger": card.trigger,
    }


def one_value(values: Iterable[float]) -> str:
    """The value that all modules share, as text; kohya's `Dynamic` if they differ."""
    distinct = {float(value) for value in values}
    return f"{distinct.pop():g}" if len(distinct) == 1 else "Dynamic"


def with_hashes(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """`metadata` with the tensor hash under both its names.

    `sshs_model_hash` is plain hex (kohya sd-scripts, `precalculate_safetensors_hashes`),
    `modelspec.hash_sha256` has `0x` in front; both cover the tensor bytes after the header, so
    editing metadata does not change them.
    """
    digest = tensor_hash(tensors)
    return {**metadata, "sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}


def thumbnail_data_uri(image: Image.Image | np.ndarray | str | Path) -> str:
    """A JPEG of at most 256 pixels per side and 48 kB as `data:image/jpeg;base64,...`.

    `image`: Pillow image, uint8 frame (H, W, 3), or a path.
    """
    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image)
    elif isinstance(image, Image.Image):
        picture = image
    else:
        with Image.open(image) as opened:
            picture = opened.copy()
    picture = picture.convert("RGB")
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    for quality in (85, 70, 50, 30):
        buffer = BytesIO()
        picture.save(buffer, format="JPEG", quality=quality, optimize=True)
        if buffer.tell() <= THUMBNAIL_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
