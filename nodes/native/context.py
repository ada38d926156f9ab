"""Clips longer than the model: overlapping windows in every step, blended, on core's schedules.

Core's handler of context windows takes one timestep for the batch, while frames-as-batch latents
have one a row, and it would window over several videos as if they were one. The subclass here
corrects both, and hands each window its own frames of per-frame prompts and ControlNet images.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...trainer.words import allowed_frames
from .info import video_info

SCHEDULES = ("standard_uniform", "standard_static", "looped_uniform")
FUSE_METHODS = ("pyramid", "flat")


def add_context_windows(
    model: Any,
    context_length: int,
    context_overlap: int,
    context_schedule: str = SCHEDULES[0],
    closed_loop: bool = False,
    fuse_method: str = FUSE_METHODS[0],
) -> Any:
    """A clone of MODEL ``model`` that samples clips longer than ``context_length`` frames in
    windows of that length, ``context_overlap`` frames of which are shared with the next.

    A clip that is not longer is sampled as without windows. Raises ValueError for a MODEL of
    another pack, a length that it cannot make, and an overlap that leaves nothing to advance by.
    """
    import comfy.context_windows as core

    info = video_info(model)
    if context_length not in info.frames:
        raise ValueError(
            f"`context_length`={context_length} is not a clip that '{info.name}' can make; use "
            f"{allowed_frames(info.frames)}."
        )
    if not 0 <= context_overlap < context_length:
        raise ValueError(
            f"`context_overlap`={context_overlap} must be 0 to {context_length - 1}, less than "
            f"`context_length`={context_length}; a quarter of it is usual."
        )
    clone = model.clone()
    clone.model_options["context_handler"] = _handler_class()(
        context_schedule=core.get_matching_context_schedule(context_schedule),
        fuse_method=core.get_matching_fuse_method(fuse_method),
        context_length=context_length,
        context_overlap=context_overlap,
        closed_loop=closed_loop,
    )
    core.create_prepare_sampling_wrapper(clone)
    return clone


@lru_cache(1)
def _handler_class() -> type:
    from comfy.context_windows import IndexListContextHandler, IndexListContextWindow

    class VideoWindow(IndexListContextWindow):
        """Rows of a batch; core indexes with a list in a list, which torch is about to change."""

        def get_tensor(self, full: Tensor, device=None, *_args, **_options) -> Tensor:
            return full if full.shape[0] == 1 else full[self.index_list].to(device or full.device)

        def add_window(self, full: Tensor, to_add: Tensor, *_args, **_options) -> Tensor:
            full[self.index_list] += to_add
            return full

    class VideoContextHandler(IndexListContextHandler):
        """Windows over the frames of each video of a frames-as-batch latent (videos * F, ...)."""

        def should_use_context(self, model, conds, x_in, timestep, model_options):
            return _frames(x_in, model_options) > self.context_length

        def set_step(self, timestep: Tensor, model_options: dict[str, Any]) -> None:
            """The step that ``timestep`` (videos * F,) of noise levels lies in.

            Samplers that call the model between two levels (heun, dpm_2, ...) stay in their step.
            """
            levels = model_options["transformer_options"]["sample_sigmas"]
            passed = int((levels >= timestep[0] * (1 - 1e-4)).sum())
            self._step = max(0, passed - 1)

        def get_context_windows(self, model, x_in, model_options):
            windows = super().get_context_windows(model, x_in, model_options)
            return [VideoWindow(window.index_list) for window in windows]

        def execute(self, calc_cond_batch, model, conds, x_in, timestep, model_options):
            frames = _frames(x_in, model_options)
            options = model_options["transformer_options"]
            inside = {
                **model_options,
                "transformer_options": {**options, "mcm_frames": self.context_length},
            }
            parts = []
            for start in range(0, x_in.shape[0], frames):
                rows = slice(start, start + frames)
                video = VideoWindow(list(range(start, start + frames)))
                own = [self.get_resized_cond(cond, x_in, video) for cond in conds]
                parts.append(
                    super().execute(calc_cond_batch, model, own, x_in[rows], timestep[rows], inside)
                )
            return [torch.cat(predicted) for predicted in zip(*parts, strict=True)]

        def get_resized_cond(self, cond_in, x_in, window, device=None):
            resized = super().get_resized_cond(cond_in, x_in, window, device or x_in.device)
            for cond in resized or ():
                own_rows(cond, x_in.shape[0], window)
            return resized

    return VideoContextHandler


def _frames(x_in: Tensor, model_options: dict[str, Any]) -> int:
    """Frames of one video of ``x_in`` (videos * F, ...)."""
    return model_options["transformer_options"].get("mcm_frames") or x_in.shape[0]


def own_rows(cond: dict[str, Any], rows: int, window: Any) -> None:
    """Cut what core leaves whole in ``cond`` down to ``window``: model inputs and ControlNet images
    that have one row for each of ``rows`` frames.
    """
    inputs = dict(cond.get("model_conds", {}))
    for key, value in inputs.items():
        held = getattr(value, "cond", None)
        if isinstance(held, Tensor) and held.ndim and held.shape[0] == rows:
            inputs[key] = value._copy_with(window.get_tensor(held))
    cond["model_conds"] = inputs
    if cond.get("control") is not None:
        cond["control"] = control_window(cond["control"], rows, window)


def control_window(control: Any, rows: int, window: Any) -> Any:
    """``control`` (a ControlBase) for the frames of ``window``; equal arguments give one object,
    which lets core run the prompt and the negative prompt in one batch.
    """
    made = window.__dict__.setdefault("mcm_controls", {})
    if id(control) not in made:
        part = copy.copy(control)
        images = control.cond_hint_original
        if isinstance(images, Tensor) and images.shape[0] == rows:
            part.cond_hint_original = window.get_tensor(images)
            part.cond_hint = None
        if control.previous_controlnet is not None:
            part.previous_controlnet = control_window(control.previous_controlnet, rows, window)
        made[id(control)] = part
    return made[id(control)]
