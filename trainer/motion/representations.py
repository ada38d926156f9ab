"""Fixed motion representations of video latents (MCM, arXiv 2406.06890, section 3.2).

Each is a function of latents (B, C, F, h, w) that keeps B as its first axis; the other axes are its
own. It is differentiable, draws nothing, and works in float32 (float64 for a float64 input) also
under autocast. The learned ones are in `learned`, which also builds a representation from its name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

LOW_PASS_CUTOFF = 0.25
"""Width of the Gaussian low-pass as a part of the Nyquist frequency, in time and space alike (the
value of FreeInit, arXiv 2312.07537): the filter passes 0.61 at a quarter of Nyquist and 0.0003 at
Nyquist."""
CORRELATION_WINDOW = 3
"""Side of the neighbourhood of `local_correlation`, in latent cells."""
NORM_EPS = 1e-6
"""Added to squared norms, so that an empty cell has correlation 0 and a finite gradient."""


def as_full_precision(x: Tensor) -> Tensor:
    """``x`` in float32, or unchanged if float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def raw(latents: Tensor) -> Tensor:
    """The latents themselves (B, C, F, h, w): plain LCM, the baseline."""
    _check_video(latents, frames=1)
    return as_full_precision(latents)


def diff(latents: Tensor) -> Tensor:
    """Frame differences (B, C, F - 1, h, w), later minus earlier."""
    _check_video(latents, frames=2)
    x = as_full_precision(latents)
    return x[:, :, 1:] - x[:, :, :-1]


def low_frequency(latents: Tensor, cutoff: float = LOW_PASS_CUTOFF) -> Tensor:
    """Latents (B, C, F, h, w) after a Gaussian low-pass in the 3-D Fourier domain.

    The gain at frequency ``n`` (3 components, 1 at Nyquist) is ``exp(-|n|^2 / (2 cutoff^2))``. The
    mean of a clip passes unchanged. The clip is treated as periodic in time and space.
    """
    _check_video(latents, frames=1)
    x = as_full_precision(latents)
    with torch.autocast(x.device.type, enabled=False):
        spectrum = torch.fft.rfftn(x, dim=(2, 3, 4))
        spectrum = spectrum * _gaussian_gain(x, cutoff)
        return torch.fft.irfftn(spectrum, s=x.shape[2:], dim=(2, 3, 4))


def high_frequency(latents: Tensor, cutoff: float = LOW_PASS_CUTOFF) -> Tensor:
    """What `low_frequency` removes (B, C, F, h, w); the two add up to the latents."""
    return as_full_precision(latents) - low_frequency(latents, cutoff)


def local_correlation(latents: Tensor, window: int = CORRELATION_WINDOW) -> Tensor:
    """Correlation of each cell with the ``window`` x ``window`` cells around it in the next frame.

    Returns (B, window^2, F - 1, h, w) within [-1, 1]: cosines over the C channels, row by row of
    the window, 0 outside of the frame.

    Raises ValueError if ``window`` is not odd, or there are fewer than 2 frames.
    """
    _check_video(latents, frames=2)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"`window`={window} must be odd; use 3 or 5.")
    x = _unit_channels(as_full_precision(latents))
    height, width = x.shape[-2:]
    margin = window // 2
    earlier = x[:, :, :-1]
    later = functional.pad(x[:, :, 1:], (margin,) * 4)
    # One shift at a time: unfolding would hold window^2 copies of every channel at once.
    maps = [
        (earlier * later[..., dy : dy + height, dx : dx + width]).sum(dim=1)
        for dy in range(window)
        for dx in range(window)
    ]
    return torch.stack(maps, dim=1)


def global_correlation(latents: Tensor) -> Tensor:
    """Correlation of every cell of a frame with every cell of the next frame.

    Memory grows with (h w)^2: 63 MB a clip of 16 frames at 32x32 latents (256 px), 1 GB at 64x64
    (512 px), in float32 and before the backward pass doubles it.

    Returns (B, F - 1, h w, h w) within [-1, 1]: cosines over the C channels; rows are the earlier
    frame's cells.
    """
    _check_video(latents, frames=2)
    x = _unit_channels(as_full_precision(latents)).flatten(3)
    with torch.autocast(x.device.type, enabled=False):
        earlier = x[:, :, :-1].permute(0, 2, 3, 1)
        later = x[:, :, 1:].permute(0, 2, 1, 3)
        return earlier @ later


def of_one_kind(latents: Tensor, lead: int) -> Tensor:
    """The latents (B, C, F - lead, h, w) of a clip that hold equally many frames.

    The first ``lead`` hold fewer, and would differ from the next one also where nothing moves.
    """
    # Not even a view of the whole: it would change the order in which gradients are added up.
    return latents[:, :, lead:] if lead else latents


REPRESENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": raw,
    "diff": diff,
    "low_frequency": low_frequency,
    "high_frequency": high_frequency,
    "local_correlation": local_correlation,
    "global_correlation": global_correlation,
}
"""Fixed representations by name."""


def _unit_channels(x: Tensor) -> Tensor:
    return x * (x.square().sum(dim=1, keepdim=True) + NORM_EPS).rsqrt()


def _gaussian_gain(x: Tensor, cutoff: float) -> Tensor:
    """Gain (F, h, w // 2 + 1) of the half spectrum of real ``x``."""
    if cutoff <= 0:
        raise ValueError(f"`cutoff`={cutoff} must be above 0, as a part of the Nyquist frequency.")
    frames, height, width = x.shape[2:]
    t = torch.fft.fftfreq(frames, device=x.device, dtype=x.dtype) * 2
    rows = torch.fft.fftfreq(height, device=x.device, dtype=x.dtype) * 2
    columns = torch.fft.rfftfreq(width, device=x.device, dtype=x.dtype) * 2
    squared = t[:, None, None] ** 2 + rows[:, None] ** 2 + columns**2
    return torch.exp(-squared / (2 * cutoff**2))


def _check_video(latents: Tensor, frames: int) -> None:
    if latents.ndim != 5 or latents.shape[2] < frames:
        raise ValueError(
            f"latents must be (B, C, F, h, w) with F >= {frames}, got {tuple(latents.shape)}."
        )
