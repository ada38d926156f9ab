"""Detects NaN, infinite values and flat frames where they first appear, and reports the cause.

A decoder turns NaN into black frames without an error, which hides the cause.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FLAT = 1 / 255
"""A clip whose pixels, in [-1, 1], differ by less is one flat colour."""


class BrokenOutputError(ValueError):
    """A clip that shows nothing; the message names the cause and what to do."""


def check_latents(latents: Tensor, unet: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Raise BrokenOutputError unless sampled ``latents`` are finite.

    ``dtype`` is what ``unet`` computed in, by default that of its weights.
    """
    if bool(torch.isfinite(latents).all()):
        return
    raise BrokenOutputError(
        f"The sampled clip holds NaN or infinite values: {_cause(unet, dtype, NETWORK)}"
    )


def check_finite(pixels: Tensor, vae: nn.Module, dtype: torch.dtype | None = None) -> None:
    """The same for frames that ``vae`` has decoded."""
    if not bool(torch.isfinite(pixels).all()):
        raise BrokenOutputError(
            f"The decoded clip holds NaN or infinite values: {_cause(vae, dtype, DECODER)}"
        )


def check_pixels(pixels: Tensor, vae: nn.Module) -> None:
    """Raise BrokenOutputError unless decoded clips ``pixels`` (N, 3, F, H, W) in [-1, 1] are finite
    and none of them is one flat colour.
    """
    check_finite(pixels, vae)
    flat = pixels.flatten(1)
    spread = flat.amax(dim=1) - flat.amin(dim=1)
    if bool((spread < FLAT).any()):
        level = float(flat[spread.argmin()].mean())
        colour = "black" if level < -0.9 else "white" if level > 0.9 else "one flat colour"
        raise BrokenOutputError(
            f"The clip is {colour} in every pixel: the latents left the range that the autoencoder "
            "decodes. Lower the LoRA's strength or the guidance scale, or use the VAE that belongs "
            "to this base model."
        )


NETWORK = "the LoRA's strength or the guidance scale is too high. Try strength 1 and CFG 1."
DECODER = "the latents are too large for it. Lower the LoRA's strength or the guidance scale."


def _cause(network: nn.Module, dtype: torch.dtype | None, otherwise: str) -> str:
    """The likely reason why ``network`` gave values that are not finite, and what to do."""
    kind = type(network).__name__
    state = network.state_dict()
    broken = [name for name, value in state.items() if not _finite(value)]
    if broken:
        return (
            f"{len(broken)} of {len(state)} weights of the {kind} are NaN or infinite (first: "
            f"{broken[0]}). The file is damaged, or a LoRA with such weights was merged in."
        )
    dtype = dtype or next((v.dtype for v in state.values() if v.is_floating_point()), None)
    if dtype == torch.float16:
        return (
            f"the {kind} computes in fp16, whose largest number is 65504, and overflowed. Use bf16 "
            "or fp32."
        )
    return otherwise


def _finite(value: Tensor) -> bool:
    if not value.is_floating_point() or value.is_meta:
        return True
    wide = value.float() if value.dtype.itemsize == 1 else value  # fp8 knows no isfinite
    return bool(torch.isfinite(wide).all())
