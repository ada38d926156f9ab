"""Clips longer than the model's own length: overlapping windows, blended in every step.

Core has context windows too, but their handler takes one timestep for the batch, where latents of
frames-as-batch have one per row; it would treat several videos as one; and it changes often. So the
windows here use one wrapper around core's ``calc_cond_batch`` and our own code for the schedules
(those of AnimateDiff, as in core).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...trainer.words import allowed_frames
from .core import wrap
from .info import video_info
from .latents import split_videos

FUSE_METHODS = ("pyramid", "flat")
KEY = "mcm_context"


@dataclass(frozen=True)
class ContextOptions:
    """How a clip is cut: windows of `length` frames, each sharing `overlap` with the next."""

    length: int
    overlap: int
    schedule: str
    closed_loop: bool
    fuse: str


def add_context_windows(
    model: Any,
    context_length: int,
    context_overlap: int,
    context_schedule: str = "standard_uniform",
    closed_loop: bool = False,
    fuse_method: str = FUSE_METHODS[0],
) -> Any:
    """A clone of MODEL ``model`` that samples clips longer than ``context_length`` frames in
    windows of that length, ``context_overlap`` frames of which are shared with the next.

    A clip that is not longer is sampled as without windows. Raises ValueError for a MODEL of
    another pack, a length that it cannot make, and an overlap as long as the window.
    """
    info = video_info(model)
    if info.stride:
        raise ValueError(
            f"'{info.name}' is ComfyUI's own video model, whose clips are no batches of frames: "
            "these windows would cut videos apart, not frames. Use ComfyUI's 'WAN Context Windows "
            "(Manual)' instead."
        )
    if context_length not in info.frames:
        raise ValueError(
            f"`context_length`={context_length} is not a clip length that '{info.name}' supports; "
            f"use {allowed_frames(info.frames)}."
        )
    if not 0 <= context_overlap < context_length:
        raise ValueError(
            f"`context_overlap`={context_overlap} must be 0 to {context_length - 1}, less than "
            f"`context_length`={context_length}; a quarter of it is usual."
        )
    clone = model.clone()
    clone.model_options[KEY] = ContextOptions(
        context_length, context_overlap, context_schedule, closed_loop, fuse_method
    )
    wrap(clone, "CALC_COND_BATCH", KEY, _in_windows)
    wrap(clone, "PREPARE_SAMPLING", KEY, _memory_of_a_window)
    return clone


def _memory_of_a_window(executor: Any, model: Any, noise_shape: Any, *args: Any, **named: Any):
    """Around core's ``prepare_sampling``: memory is that of one window, not of the whole clip."""
    options: ContextOptions = model.model_options[KEY]
    rows = min(noise_shape[0], options.length)
    return executor(model, [rows, *noise_shape[1:]], *args, **named)


def _in_windows(executor: Any, model: Any, conds: list, x_in: Tensor, timestep: Tensor, told: dict):
    """Around core's ``calc_cond_batch(model, conds, x_in (rows, C, h, w), timestep (rows,),
    model_options)``: its predictions, one (rows, C, h, w) for each of ``conds``.
    """
    options: ContextOptions = told[KEY]
    transformer = told["transformer_options"]
    frames = transformer.get("mcm_frames") or x_in.shape[0]
    if frames <= options.length:
        return executor(model, conds, x_in, timestep, told)
    inside = {**told, "transformer_options": {**transformer, "mcm_frames": options.length}}
    step = current_step(timestep, transformer["sample_sigmas"])
    windows = SCHEDULES[options.schedule](frames, options, step)
    weights = torch.tensor(fuse_weights(options), device=x_in.device).view(-1, 1, 1, 1)
    sums = [torch.zeros_like(x_in) for _ in conds]
    counts = torch.zeros_like(x_in[:, :1, :1, :1])
    for video in split_videos(x_in.shape[0], frames):
        for window in windows:
            _stop_if_asked()
            rows = torch.tensor([video[index] for index in window], device=x_in.device)
            cut = Window(rows, x_in.shape[0])
            own = [cut.conditions(cond) for cond in conds]
            found = executor(model, own, x_in[rows], timestep[rows], inside)
            for total, predicted in zip(sums, found, strict=True):
                total.index_add_(0, rows, predicted * weights.to(predicted.dtype))
            counts.index_add_(0, rows, weights.to(counts.dtype))
    return [total / counts for total in sums]


def _stop_if_asked() -> None:
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def current_step(timestep: Tensor, levels: Tensor) -> int:
    """The step that contains ``timestep`` (rows,) of noise levels; ``levels`` fall to 0.

    Samplers that call the model between two levels (heun, dpm_2, ...) stay in their step.
    """
    return max(0, int((levels >= timestep[0] * (1 - 1e-4)).sum()) - 1)


class Window:
    """One window of a batch of ``count`` rows: what core gives a network, cut to ``rows``."""

    def __init__(self, rows: Tensor, count: int) -> None:
        self.rows, self.count = rows, count
        self._controls: dict[int, Any] = {}

    def cut(self, value: Any) -> Any:
        """Tensors with one row for each of the batch; everything else as it is."""
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == self.count:
            return value[self.rows.to(value.device)]
        return value

    def conditions(self, conds: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        """Prompts with their masks, model inputs and ControlNets, for this window."""
        if conds is None:
            return None
        return [self._condition(cond) for cond in conds]

    def _condition(self, cond: dict[str, Any]) -> dict[str, Any]:
        own = {name: self.cut(value) for name, value in cond.items()}
        inputs = dict(cond.get("model_conds", {}))
        for name, value in inputs.items():
            held = getattr(value, "cond", None)
            if isinstance(held, Tensor) and self.cut(held) is not held:
                inputs[name] = value._copy_with(self.cut(held))
        own["model_conds"] = inputs
        if cond.get("control") is not None:
            own["control"] = self.control(cond["control"])
        return own

    def control(self, control: Any) -> Any:
        """``control`` (a ControlBase) for this window; equal arguments give one object, which lets
        core run the prompt and the negative prompt in one batch.
        """
        if id(control) not in self._controls:
            part = copy.copy(control)
            images = self.cut(control.cond_hint_original)
            if images is not control.cond_hint_original:
                part.cond_hint_original, part.cond_hint = images, None
            if control.previous_controlnet is not None:
                part.previous_controlnet = self.control(control.previous_controlnet)
            self._controls[id(control)] = part
        return self._controls[id(control)]


def fuse_weights(options: ContextOptions) -> list[float]:
    """The weight of each frame of a window in an overlap: 1 2 3 3 2 1 (pyramid) or all equal."""
    if options.fuse == "flat":
        return [1.0] * options.length
    return [float(min(i, options.length - 1 - i) + 1) for i in range(options.length)]


def static_windows(frames: int, options: ContextOptions, step: int) -> list[list[int]]:
    """The same windows in every step, the last moved back to end with the clip."""
    last = frames - options.length
    starts = [*range(0, last, options.length - options.overlap), last]
    return [list(range(start, start + options.length)) for start in starts]


def looped_windows(frames: int, options: ContextOptions, step: int) -> list[list[int]]:
    """Windows that move in every step and wrap from the end to the beginning."""
    moved = round(frames * halving(step))
    end = frames + moved - (0 if options.closed_loop else options.overlap)
    starts = range(moved, end, options.length - options.overlap)
    return [[(start + i) % frames for i in range(options.length)] for start in starts]


def uniform_windows(frames: int, options: ContextOptions, step: int) -> list[list[int]]:
    """As `looped_windows`, but a window that would run over the end stands at the end, and where
    the next one does not begin the clip again, one more does.
    """
    open_end = ContextOptions(options.length, options.overlap, "", False, "")
    windows = looped_windows(frames, open_end, step)
    placed: list[list[int]] = []
    for index, window in enumerate(windows):
        if window[0] <= window[-1]:
            placed.append(window)
            continue
        placed.append(list(range(frames - options.length, frames)))
        last = index + 1 == len(windows)
        if 0 not in (placed[0] if last else windows[index + 1]):
            placed.append(list(range(options.length)))
    return [window for index, window in enumerate(placed) if window not in placed[:index]]


def halving(step: int) -> float:
    """Fractions of 1 that fill the gaps evenly: 0, 1/2, 1/4, 3/4, 1/8, ... (van der Corput)."""
    fraction, part = 0.0, 0.5
    while step:
        fraction += part * (step & 1)
        step, part = step >> 1, part / 2
    return fraction


SCHEDULES: dict[str, Callable[[int, ContextOptions, int], list[list[int]]]] = {
    "standard_uniform": uniform_windows,
    "standard_static": static_windows,
    "looped_uniform": looped_windows,
}
"""Name -> ``(frames of the clip, options, step)`` -> the frames of each window."""
