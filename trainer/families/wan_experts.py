"""The two experts of Wan 2.2 14B: networks like that of Wan 2.1 14B, each for a part of the noise
levels. They are told apart by the names of their files only.

Down to t = 0.875 the first decides what happens and where; the second makes the pictures of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..diffusion.part import FlowPart
from ..models.wan import HIGH, LOW, PARTS, expert_of
from ..models.weights import ModelError
from .record import Teaching

BOUNDARY = 0.875
"""The level at which the second takes over (Wan 2.2: `wan_t2v_A14B.py`, `boundary`)."""
SHIFT = BOUNDARY / (1 - BOUNDARY)
"""Of few-step sampling: 7, with which half of any even number of steps lies on each side."""
TEACHER_SHIFT = 12.0
"""Of the base model's own sampling (`sample_shift` there)."""
MOTION_ALONE: dict[str, Any] = {
    "adversarial.weight": 0.0,
    "motion.representation": "raw",
    "trajectory.real_probability": 1.0,
    "trajectory.real_min_timestep": 0,
}


@dataclass(frozen=True)
class Expert:
    """What distinguishes one of the two from a Wan for all noise levels: its ``part`` of the path,
    a ``title`` for people, the CFG scale of its teaching (Wan 2.2: `sample_guide_scale`), and the
    settings that its training fixes, with why.
    """

    title: str
    part: FlowPart
    cfg: float
    fixed: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


EXPERTS = {
    HIGH: Expert(
        "high noise",
        FlowPart(SHIFT, teacher_shift=TEACHER_SHIFT, low=BOUNDARY),
        4.0,
        MOTION_ALONE,
        "The high-noise expert decides what moves and where, in states that are nearly noise. What "
        "they show is blurred, so it is not compared with style images: the student learns the "
        "base model's own trajectories in few steps. The low-noise expert learns the style.",
    ),
    LOW: Expert("low noise", FlowPart(SHIFT, teacher_shift=TEACHER_SHIFT, high=BOUNDARY), 3.0),
}


def own_of(transformer: Path, other: Path | None, whole: Teaching) -> dict[str, Any]:
    """What a `VideoModel` has of its own as the expert at ``transformer``, by field; empty for a
    Wan for all noise levels. ``whole`` is how such a one teaches.
    """
    expert = EXPERTS.get(expert_of(transformer))
    if expert is None:
        return {}
    w, steps = expert.cfg - 1, whole.library_steps // 2
    teaching = replace(
        whole, guidance=(w, w), library_guidance=w, cfg=expert.cfg, library_steps=steps
    )
    return {
        "noise": expert.part,
        "part": expert.title,
        "other": other,
        "own_teaching": teaching,
        "fixed": expert.fixed,
        "fixed_why": expert.why,
    }


def check_other(transformer: Path, given: Path | None) -> None:
    """Raise ModelError for a ``given`` other expert that is none, or not the other one."""
    if given is None:
        return
    mine, its = expert_of(transformer), expert_of(given)
    if not mine:
        raise ModelError(
            f"'{transformer}' is a Wan for all noise levels and takes no `other_expert`; leave it "
            "out."
        )
    wanted = LOW if mine == HIGH else HIGH
    if its != wanted:
        raise ModelError(
            f"'{given}' is not the {wanted}-noise expert of Wan 2.2 14B, which belongs to "
            f"'{transformer.name}': its name says {its or 'neither high nor low'} noise."
        )


def refuse_both(path: Path) -> None:
    """Raise ModelError for a folder with both, which does not say which one is meant."""
    for choice in lacks_choice(path):
        raise ModelError(f"'{path}' needs {choice}")


def lacks_choice(path: Path) -> list[str]:
    """What a folder with both experts lacks, a sentence; empty for any other."""
    if not all((path / part).is_dir() for part in PARTS):
        return []
    return [
        f"a choice between the two experts of Wan 2.2 14B, which are trained one at a time: its "
        f"folder {path.name}/transformer (high noise: motion) or {path.name}/transformer_2 (low "
        "noise: the look)."
    ]


def title_of(transformer: Path) -> str:
    """ " high noise" or " low noise" for an expert, to put behind its size; empty for others."""
    which = expert_of(transformer)
    return f" {which} noise" if which else ""


def name_of(folder: Path) -> str:
    """What to call a model in ``folder``: a part of a model with two has the name of that."""
    title = title_of(folder) if folder.name in PARTS else ""
    return f"{folder.parent.name}{title}" if title else folder.name
