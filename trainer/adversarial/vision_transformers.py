"""DINOv2 and CLIP's vision model as feature networks, from files of the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.clip_vision import read_clip_vision
from .features import DINOV2_FILES, DINOV2_REPOSITORY, FeatureNetwork, resize_to_area


class Dinov2Features(FeatureNetwork):
    """DINOv2 after each quarter of its layers (3, 6, 9, 12 of 12), patch tokens only.

    Input of 224 x 224 pixels in area, as in StyleGAN-T; raw hidden states, no final norm.
    """

    name = "dinov2"
    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        config: Any = network.config
        super().__init__(network, [config.hidden_size] * 4, dtype)
        for key, value in (("mean", self.MEAN), ("std", self.STD)):
            # Buffers: if created in every step, they would be copied from the host each time.
            values = torch.tensor(value, dtype=torch.float32)[:, None, None]
            self.register_buffer(key, values, persistent=False)
        self.patch = config.patch_size
        self.side = min(224, config.image_size) // self.patch * self.patch
        self.layers = [max(1, config.num_hidden_layers * quarter // 4) for quarter in (1, 2, 3, 4)]

    def prepare(self, pixels: Tensor) -> Tensor:
        unit = resize_to_area(pixels, self.side, self.patch) * 0.5 + 0.5
        return (unit - self.mean) / self.std

    def maps(self, prepared: Tensor) -> list[Tensor]:
        states = self.states(prepared)
        height, width = (length // self.patch for length in prepared.shape[-2:])
        # Token 0 is CLS, which has no location on the map.
        tokens = [states[layer][:, 1:] for layer in self.layers]
        return [t.transpose(1, 2).unflatten(2, (height, width)) for t in tokens]

    def states(self, prepared: Tensor) -> tuple[Tensor, ...]:
        """Tokens (N, 1 + places, D) before the first and after every layer."""
        return self.network(prepared, output_hidden_states=True).hidden_states


class ClipVisionFeatures(Dinov2Features):
    """CLIP's vision model after each quarter of its layers, patch tokens only.

    As with DINOv2: frames of 224 x 224 pixels in area, raw hidden states.
    """

    name = "clip-vision"
    MEAN = (0.48145466, 0.4578275, 0.40821073)
    STD = (0.26862954, 0.26130258, 0.27577711)

    def states(self, prepared: Tensor) -> tuple[Tensor, ...]:
        # CLIP expects square images; its position embedding is interpolated for others.
        return self.network(
            prepared, output_hidden_states=True, interpolate_pos_encoding=True
        ).hidden_states


def build_clip_vision(path: Path | None, dtype: torch.dtype) -> ClipVisionFeatures:
    """The network at ``path``, a folder or a file; raises ValueError without one."""
    if path is None:
        raise ValueError(
            "The feature network 'clip-vision' needs its path: a CLIP vision folder, or ComfyUI's "
            "file in models/clip_vision. Give the path itself as `adversarial.features`."
        )
    return ClipVisionFeatures(read_clip_vision(path), dtype)


def cached_dinov2() -> Path | None:
    """Snapshot folder of DINOv2-S in the local Hugging Face cache, if complete."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(DINOV2_REPOSITORY, file) for file in DINOV2_FILES]
    paths = [Path(file) for file in found if isinstance(file, str)]
    return paths[0].parent if len(paths) == len(DINOV2_FILES) else None


def _model_type(folder: Path) -> str | None:
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")


def is_dinov2(path: Path) -> bool:
    """Whether ``path`` is a complete DINOv2 folder."""
    try:
        whole = all((path / file).is_file() for file in DINOV2_FILES)
        return whole and _model_type(path) == "dinov2"
    except (OSError, ValueError, AttributeError):
        return False


def build_dinov2(path: Path | None, dtype: torch.dtype) -> FeatureNetwork:
    from transformers import Dinov2Model

    folder = path or cached_dinov2()
    if folder is None or not all((folder / file).is_file() for file in DINOV2_FILES):
        place = f"the folder {folder}" if folder else "the local Hugging Face cache"
        raise FileNotFoundError(
            f"No DINOv2 in {place}; nothing is downloaded automatically. Put config.json and "
            f"model.safetensors of '{DINOV2_REPOSITORY}' into a folder and give its path (or that "
            f"of a CLIP vision folder or file), or `hf download {DINOV2_REPOSITORY}`, or choose "
            "'efficientnet-lite0'."
        )
    kind = _model_type(folder)
    if kind != "dinov2":
        raise ValueError(
            f"{folder} holds a model of type {kind!r}, allowed is 'dinov2' (or CLIP vision)."
        )
    loaded: Any = Dinov2Model.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    network, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"{folder} lacks weights ({missing}, ...); copy the whole model again.")
    # Library versions load to different types; in fp32 the hash is the same with all of them.
    return Dinov2Features(network.float(), dtype)
