"""Published networks that a user has on disk: VideoMAE for distances of clips, CLIP for prompts.

Folders in transformers' own format with safetensors weights; nothing is downloaded. The I3D network
of the classic FVD is not taken: its usual file is a TorchScript program, not weights. Distances by
VideoMAE are less blind to motion anyway (Ge et al. 2024, arXiv 2404.12391).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from ..adversarial.features import weights_hash
from .networks import Measuring

BATCH = 4
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of the pixels that each network was trained with, where its
``preprocessor_config.json`` is missing."""

Moments = tuple[Sequence[float], Sequence[float]]


def with_videomae(network: Measuring, folder: Path) -> Measuring:
    """``network`` with clip features (B, E) by the VideoMAE in ``folder``: the mean of its last
    tokens, for as many frames as it takes, spread over the clip, at its own size.

    Raises ``ValueError`` for a folder without such a model.
    """
    from transformers import VideoMAEModel

    model: Any = _load(VideoMAEModel, folder, "videomae")
    hashed = weights_hash(model)
    model.to(network.device)
    frames, side = model.config.num_frames, model.config.image_size
    moments = _moments(folder, IMAGENET)

    def video_features(clips: Tensor) -> Tensor:
        spread = torch.linspace(0, clips.shape[2] - 1, frames).round().long()
        shown = clips[:, :, spread].transpose(1, 2)
        return _batched(lambda part: _tokens(model, part, side, moments), shown)

    named = ("videomae", hashed)
    return replace(network, video_features=video_features, also=(*network.also, named))


def _tokens(model: Any, clips: Tensor, side: int, moments: Moments) -> Tensor:
    pixels = _normalised(clips.flatten(0, 1), side, moments)
    return model(pixels.unflatten(0, clips.shape[:2])).last_hidden_state.mean(dim=1)


def with_clip(network: Measuring, folder: Path) -> Measuring:
    """``network`` with CLIPSIM by the CLIP in ``folder``: cosine of prompt and frame, averaged over
    the frames of a clip (Wu et al. 2021, arXiv 2104.14806).

    Raises ``ValueError`` for a folder without such a model.
    """
    from transformers import CLIPModel, CLIPTokenizer

    model: Any = _load(CLIPModel, folder, "clip")
    hashed = weights_hash(model)
    model.to(network.device)
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    side, length = model.config.vision_config.image_size, tokenizer.model_max_length
    moments = _moments(folder, OPENAI)

    @torch.no_grad()
    def similarity(clips: Tensor, captions: Sequence[str]) -> np.ndarray:
        limit = min(length, model.config.text_config.max_position_embeddings)
        tokens = tokenizer(
            list(captions), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        text = F.normalize(_vector(model.get_text_features(**tokens.to(network.device))), dim=1)
        frames = clips.transpose(1, 2)
        images = _batched(
            lambda part: _images(model, part.to(network.device), side, moments), frames
        )
        return torch.einsum("nfd,nd->nf", images, text).mean(dim=1).cpu().numpy()

    named = ("clip", hashed)
    return replace(network, similarity=similarity, also=(*network.also, named))


def _images(model: Any, clips: Tensor, side: int, moments: Moments) -> Tensor:
    pixels = _normalised(clips.flatten(0, 1), side, moments)
    vectors = F.normalize(_vector(model.get_image_features(pixel_values=pixels)), dim=1)
    return vectors.unflatten(0, clips.shape[:2])


def _vector(output: Any) -> Tensor:
    """The projected vectors: since transformers 5 inside an output object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _load(kind: Any, folder: Path, model_type: str) -> Any:
    config = Path(folder) / "config.json"
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"'{folder}' is not a model folder ({error}); choose one with config.json and "
            "model.safetensors, as `hf download` makes it."
        ) from error
    if found != model_type:
        raise ValueError(f"'{folder}' holds a model of type {found!r}; {model_type!r} is needed.")
    try:
        model, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"'{folder}' cannot be loaded: {error}") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"'{folder}' lacks weights ({missing}, ...); copy the model again.")
    return model.float().eval().requires_grad_(False)


def _moments(folder: Path, usual: Moments) -> Moments:
    file = Path(folder) / "preprocessor_config.json"
    if not file.is_file():
        return usual
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        mean, std = ([float(x) for x in found[f"image_{name}"]] for name in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean {mean} and deviation {std} are not those of RGB pixels")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{file}' cannot be used ({error!r}); copy the model again.") from error
    return mean, std


def _normalised(pixels: Tensor, side: int, of: Moments) -> Tensor:
    """Frames (N, 3, H, W) in [-1, 1], their shorter side at ``side``, cropped to the middle."""
    height, width = pixels.shape[-2:]
    scale = side / min(height, width)
    size = [max(side, round(length * scale)) for length in (height, width)]
    pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    top, left = ((length - side) // 2 for length in size)
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in of)
    return (pixels[..., top : top + side, left : left + side] * 0.5 + 0.5 - mean) / std


@torch.no_grad()
def _batched(network: Any, inputs: Tensor) -> Tensor:
    return torch.cat([network(part) for part in inputs.float().split(BATCH)])
