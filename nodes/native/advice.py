"""Advice on the sampler node if a few-step MODEL is sampled with unsuitable values.

A student needs specific sampling settings. KSampler's defaults (20 steps, euler, CFG 8) give a
burnt or blurred clip without any error. So the running sampler is checked, and its node shows wrong
values with a button that sets the right ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from torch import Tensor

from .core import wrap
from .notices import tell

WRAPPER_KEY = "mcm_advice"
SAMPLER, SCHEDULER = "lcm", "simple"
MOST_STEPS = 8
HIGHEST_CFG = 2.0
"""Guidance above 1 needs two model calls per step and is not what was distilled; up to this value a
clip still looks right.
"""
LEAVING_OUT = ("dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2")
"""Samplers for which KSampler drops the second to last noise level of any scheduler."""
UNEVEN = 1.001
"""Steps over the noise levels may differ by one level because of rounding."""


@dataclass(frozen=True)
class Recommended:
    """Recommended sampling of a few-step LoRA: ``steps`` up to ``most_steps``, guidance ``cfg``."""

    steps: int = 4
    cfg: float = 1.0
    most_steps: int = MOST_STEPS


def advise(
    model: Any, steps: int = 4, cfg: float = 1.0, allowed: Sequence[int] = (MOST_STEPS,)
) -> None:
    """Make the sampler node of MODEL ``model`` (in place) show a notice when its values are wrong.

    ``steps`` and ``cfg`` are the LoRA's own, ``allowed`` its numbers of steps, as (1, 2, 4, 8). A
    later call replaces an earlier one.
    """
    recommended = Recommended(steps, cfg, max([steps, *allowed]))
    wrap(model, "OUTER_SAMPLE", WRAPPER_KEY, partial(_sample_with_advice, recommended))


def _sample_with_advice(
    recommended: Recommended,
    executor: Callable[..., Tensor],
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Around ``CFGGuider.outer_sample(noise, latent_image, sampler, sigmas, ...)``."""
    guider = executor.class_obj
    sampling = guider.model_patcher.get_model_object("model_sampling")
    if hasattr(sampling, "original_steps"):  # else another node replaced it after the LoRA
        found = wrong_values(recommended, sampler, sigmas, sampling.sigmas, guidance_of(guider))
        if found:
            tell(sentence(recommended, found), {name: right for name, (right, _) in found.items()})
    return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


def guidance_of(guider: Any) -> float:
    """The guidance scale of a running GUIDER; 1 for one that has none."""
    scales = [getattr(guider, name, None) for name in ("cfg", "cfg1", "cfg2")]
    return max((float(scale) for scale in scales if isinstance(scale, Real)), default=1.0)


def wrong_values(
    recommended: Recommended, sampler: Any, sigmas: Tensor, levels: Tensor, cfg: float
) -> dict[str, tuple[Any, str]]:
    """Widget of KSampler -> (right value, what was found) for each value that is wrong.

    ``sigmas`` (steps + 1,) are the noise levels of the run, ``levels`` (N,) those of the student,
    rising.
    """
    found: dict[str, tuple[Any, str]] = {}
    steps = len(sigmas) - 1
    if steps > recommended.most_steps:
        found["steps"] = (recommended.steps, f"{steps} steps")
    if not 1.0 <= cfg <= max(HIGHEST_CFG, recommended.cfg):
        found["cfg"] = (recommended.cfg, f"CFG {cfg:g}")
    name = sampler_name(sampler)
    if name and SAMPLER not in name:
        found["sampler_name"] = (SAMPLER, f"sampler '{name}'")
    if name not in LEAVING_OUT and not evenly_spread(sigmas, levels):
        found["scheduler"] = (SCHEDULER, "another scheduler")
    return found


def sampler_name(sampler: Any) -> str:
    """The name of core's sampler behind a SAMPLER; "lcm" for MCM Sampler, "" when it has none."""
    function = getattr(sampler, "sampler_function", None)
    if (getattr(function, "__module__", None) or "").endswith(".native.sampling"):
        return SAMPLER
    name = getattr(function, "__name__", "").removeprefix("sample_").removesuffix("_function")
    if name == "euler" and getattr(sampler, "inpaint_options", {}).get("random"):
        return "ddim"  # core's name for it
    return name.replace("unipc", "uni_pc")


def evenly_spread(sigmas: Tensor, levels: Tensor) -> bool:
    """Whether a run takes the student's noise ``levels`` (N,) in equal steps, as ``simple`` does.

    ``sigmas`` (steps + 1,) may be a part of the way: a lower start (denoise below 1) or an end
    before 0. One step is always even.
    """
    left = sigmas[sigmas > 0]
    places = [*level_numbers(left, levels), *([-1.0] if len(left) < len(sigmas) else [])]
    steps = [high - low for high, low in zip(places, places[1:], strict=False)]
    return not steps or bool(max(steps) - min(steps) <= UNEVEN)


def level_numbers(sigmas: Tensor, levels: Tensor) -> Sequence[float]:
    """Where ``sigmas`` (n,) lie among the rising ``levels`` (N,): 0 to N - 1, between two levels by
    their logarithms.
    """
    import numpy as np

    known = levels.detach().double().cpu().log().numpy()
    return np.interp(sigmas.detach().double().cpu().log().numpy(), known, range(len(known)))


def sentence(recommended: Recommended, found: dict[str, tuple[Any, str]]) -> str:
    """The text of the notice."""
    return (
        f"This few-step MODEL needs sampler '{SAMPLER}', scheduler '{SCHEDULER}', CFG "
        f"{recommended.cfg:g} and 1 to {recommended.most_steps} steps (best: {recommended.steps}). "
        f"This run uses {', '.join(told for _, told in found.values())}, so expect a poor clip."
    )
