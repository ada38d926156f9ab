"""CLIP and VAE of a small Wan: core's UMT5 and core's TAEHV at the sizes of a folder.

Core's TAEHV gives each latent four frames. Decoding, it cuts off the first three, for which there
are none in a clip of 4 k + 1 frames; encoding, it repeats the *last* frame, so that a latent would
hold other frames than those decoded from it. The trainer's `TinyVae` repeats the *first* one three
times before the clip. The VAE here does so too before core's encoder sees the clip, which then has
nothing to add: latents are the trainer's, and encoding undoes decoding frame by frame.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...trainer.models.about import read_about
from ...trainer.models.tiny_vae import (
    CHANNELS,
    TRIMMED,
    Grow,
    Memory,
    Pool,
    Soften,
    read_tiny_vae,
)
from ...trainer.models.umt5 import EMBEDDING, PAD, TIED, folder_tokenizer
from ...trainer.models.weights import read_json, read_weights
from .clip import embedding_folders, filled
from .vae import check_frames, colour_fields, fit_colours

NAME = "umt5xxl"
"""Core's name of the text encoder, whatever its size."""
SIZES = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")
FIXED = {
    "model_type": "umt5",
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
"""What core's UMT5 is like at every size; transformers' gelu_new is "gelu_pytorch_tanh" there."""
MOST_TOKENS = 512
STILL = 5
"""Frames of the clips that preview colours are fitted to: a first latent and a later one."""


def load_small_clip(
    folder: Path, dtype: torch.dtype | None = None, disable_dynamic: bool = False
) -> Any:
    """CLIP of ``folder``'s ``text_encoder`` and ``tokenizer``, padded and cut to the tokens that
    its ``mcm.json`` names.

    ``dtype`` is what the weights are stored in; None leaves the choice to ComfyUI.
    ``disable_dynamic`` asks for core's plain patcher. Raises ValueError for a text encoder that is
    not UMT5, or whose weights do not fit.
    """
    import comfy.sd
    import comfy.text_encoders.wan
    from comfy.supported_models_base import ClipTarget

    place = folder / "text_encoder"
    sizes, weights = _sizes(place), _weights(place)
    tokens = read_about(folder, tokens=MOST_TOKENS)["tokens"]
    tokenizer = partial(_tokenizer, folder / "tokenizer", sizes["d_model"], tokens)
    options: dict[str, Any] = {f"{NAME}_model_config": sizes}
    if dtype is not None:
        options["dtype"] = dtype
    clip = filled(
        partial(
            comfy.sd.CLIP,
            ClipTarget(tokenizer, comfy.text_encoders.wan.te()),
            embedding_directory=embedding_folders(),
            parameters=sum(value.numel() for value in weights.values()),
            model_options=options,
        ),
        weights,
        place,
        {"disable_dynamic": disable_dynamic},
    )
    clip.patcher.cached_patcher_init = load_clip_patcher, (folder, dtype)
    return clip


def load_clip_patcher(folder: Path, dtype: torch.dtype | None, disable_dynamic: bool = False):
    """The patcher of a CLIP loaded again, for core (hooks, a second GPU)."""
    return load_small_clip(folder, dtype, disable_dynamic).patcher


def _sizes(place: Path) -> dict[str, Any]:
    """The sizes that core's UMT5 takes. Raises ValueError for another text encoder."""
    from transformers import UMT5Config

    given = read_json(place / "config.json")
    config = {**UMT5Config().to_dict(), **given}
    for name, value in FIXED.items():
        if config.get(name) != value:
            raise ValueError(
                f"'{place}' has a text encoder with `{name}`={config.get(name)!r}; ComfyUI runs "
                f"UMT5 with {value!r} only."
            )
    return {name: config[name] for name in SIZES}


def _weights(place: Path) -> dict[str, Tensor]:
    """The word embedding under one of its two names."""
    weights = read_weights(place)
    tied = weights.pop(TIED, None)
    if tied is not None:
        weights.setdefault(EMBEDDING, tied)
    return weights


def _tokenizer(
    folder: Path,
    width: int,
    tokens: int,
    embedding_directory: Any = None,
    tokenizer_data: dict[str, Any] | None = None,
) -> Any:
    from comfy.sd1_clip import SD1Tokenizer

    one = partial(
        _tokenizer_class(),
        str(folder),
        pad_with_end=False,
        embedding_size=width,
        embedding_key=NAME,
        tokenizer_class=FolderTokenizer,
        has_start_token=False,
        pad_to_max_length=False,
        max_length=99999999,  # as core's: one row, however long
        min_length=tokens,
        pad_token=PAD,
    )
    return SD1Tokenizer(
        embedding_directory=embedding_directory,
        tokenizer_data=tokenizer_data or {},
        clip_name=NAME,
        tokenizer=one,
    )


@lru_cache(1)
def _tokenizer_class() -> type:
    from comfy.sd1_clip import SDTokenizer

    class CuttingTokenizer(SDTokenizer):
        """Cuts a prompt where core's pads it, before its end token, as the trainer does."""

        def tokenize_with_weights(self, text: str, *args: Any, **options: Any) -> list[list]:
            (row,) = super().tokenize_with_weights(text, *args, **options)
            most = self.min_length
            return [row if len(row) <= most else [*row[: most - 1], row[-1]]]

    return CuttingTokenizer


class FolderTokenizer:
    """The trainer's reader of a ``tokenizer`` folder, as core's SDTokenizer calls one."""

    def __init__(self, folder: str):
        self.tokenizer = folder_tokenizer(Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str) -> FolderTokenizer:
        return cls(folder)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self.tokenizer.ids(text)}

    def get_vocab(self) -> dict[str, int]:
        return self.tokenizer.vocabulary()


def load_small_vae(file: Path) -> Any:
    """VAE of the tiny VAE in ``file``, which must have its encoder.

    Core's VAE is built with the published TAEHV, since it knows no other, and then given the
    layers of this one. Raises ValueError for a file that is missing, damaged or of another kind.
    """
    import comfy.sd
    from comfy.taesd.taehv import TAEHV

    tiny = read_tiny_vae(file, encoder=True)
    # In fp32 it is taken for one that works on latents as they are.
    vae = comfy.sd.VAE(sd=TAEHV(latent_channels=CHANNELS).float().state_dict())
    stage = vae.first_stage_model
    stage.encoder, stage.decoder = (_as_core(part) for part in (tiny.encoder, tiny.decoder))
    stage.load_state_dict(tiny.state_dict())
    stage.to(vae.vae_dtype).eval().requires_grad_(False)
    vae.patcher.size = 0  # ask again: both sizes were the published one's
    vae.size = vae.patcher.model_size()
    vae.process_input = _with_lead
    vae.process_output = lambda pixels: pixels.clamp_(0, 1)
    check_frames(vae)
    vae.patcher.cached_patcher_init = load_vae_patcher, (file,)
    return vae


def _with_lead(clips: Tensor) -> Tensor:
    """``clips`` (B, 3, F, H, W) after three times their first frame."""
    return torch.cat([clips[:, :, :1].expand(-1, -1, TRIMMED, -1, -1), clips], 2)


def load_vae_patcher(file: Path, disable_dynamic: bool = False) -> Any:
    """The patcher of a VAE loaded again, for core (another device, a second GPU)."""
    from comfy.model_patcher import ModelPatcher

    patcher = load_small_vae(file).patcher
    if not disable_dynamic:
        return patcher
    return ModelPatcher(patcher.model, patcher.load_device, patcher.offload_device)


def _as_core(layers: nn.Sequential) -> nn.Sequential:
    """Core's layers of TAEHV for ``layers`` of the trainer's, with the same names of weights."""
    return nn.Sequential(*map(_core_layer, layers))


def _core_layer(layer: Any) -> nn.Module:
    from comfy.taesd import taehv as core

    if isinstance(layer, Soften):
        return core.Clamp()
    if isinstance(layer, Memory):
        width = layer.conv[-1].out_channels
        return core.MemBlock(width, width, nn.ReLU(inplace=True))
    if isinstance(layer, Grow):
        return core.TGrow(layer.conv.in_channels, layer.conv.out_channels // layer.conv.in_channels)
    if isinstance(layer, Pool):
        width = layer.conv.out_channels
        return core.TPool(width, layer.conv.in_channels // width)
    if isinstance(layer, nn.Conv2d):
        options = {"stride": layer.stride, "bias": layer.bias is not None}
        return core.conv(layer.in_channels, layer.out_channels, **options)
    return nn.ReLU(inplace=True) if isinstance(layer, nn.ReLU) else layer


@torch.no_grad()
def preview_colours(vae: Any) -> tuple[list[list[float]], list[float]]:
    """The linear map from latents of ``vae`` to RGB in [-1, 1], over still clips."""
    images, stage = colour_fields(), vae.first_stage_model
    clips = vae.process_input(images[:, :, None].expand(-1, -1, STILL, -1, -1))
    latents = stage.encode(clips.to(next(stage.parameters()))).float().cpu()  # (N, C, f, h, w)
    several = images.repeat_interleave(latents.shape[2], 0)
    return fit_colours(latents.transpose(1, 2).flatten(0, 1), several)
