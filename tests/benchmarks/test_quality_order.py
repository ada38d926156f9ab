"""The quality table in a minute: the mini model, a fixed seed, and the order its students come in.

Budgets are steps here, so that a slow machine decides as a fast one does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trainer.lora.formats import read_lora

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import quality  # noqa: E402
from quality_claims import STEPS, TEACHER_STEPS  # noqa: E402
from quality_rows import Source, student_sources  # noqa: E402

BUDGET = ["--train-steps", "64", "--count", "16", "--seed", "0"]
CHEAP = ["data.library_clips=16", "data.library_steps=10", "hardware.device=cpu"]
SOLVERS = [
    Source("ddim", TEACHER_STEPS, "ddim", 3.0),
    Source("ddim", 1, "ddim", 3.0),
    Source("dpmpp", 1, "dpmpp", 3.0),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """By who, style and number of steps."""
    work = tmp_path_factory.mktemp("order")
    given = ["--styles", "poster", "--students", "lcm", "mcm", "mcm-poster", *BUDGET]
    given += ["--set", *CHEAP, "--work", str(work), "--json", str(work / "out.json")]
    job = quality.prepare(quality.parser().parse_args(given))
    (trial,), (poster,) = job.trials, job.styles
    maker = job.maker(trial)
    found = {(s.method, style, s.steps): maker.row(s, style and poster)
             for s in SOLVERS for style in (None, "poster")}  # fmt: skip
    for plan in trial.plans:
        network = trial.bench.model.network
        loras = [read_lora(path, network) for path in plan.train(print).loras]
        for source in student_sources(plan.student, loras, 3.0):
            for style in (None, "poster"):
                found[plan.student.name, style, source.steps] = maker.row(source, style and poster)
    return found


@pytest.mark.parametrize("steps", STEPS)
def test_without_a_style_mcm_is_nearer_to_real_videos_than_lcm(rows, steps):
    mcm, lcm = (rows[name, None, steps]["fd_video"] for name in ("mcm", "lcm"))
    assert mcm < lcm


@pytest.mark.parametrize("steps", STEPS)
def test_a_style_student_is_nearer_to_the_style_and_to_its_true_videos(rows, steps):
    styled, lcm = (rows[name, "poster", steps] for name in ("mcm-poster", "lcm"))
    assert styled["style_kid"] < 0.9 * lcm["style_kid"]
    assert styled["fd_style"] < 0.9 * lcm["fd_style"]


@pytest.mark.parametrize("steps", STEPS)
def test_a_style_student_still_follows_its_prompts(rows, steps):
    styled, teacher = rows["mcm-poster", "poster", steps], rows["ddim", "poster", TEACHER_STEPS]
    assert teacher["motion"] > 0.9 and teacher["colour"] > 0.9
    assert styled["motion"] > 0.6 * teacher["motion"]
    assert styled["colour"] > 0.8 * teacher["colour"]


def test_one_step_of_a_student_beats_one_step_of_the_teachers_solvers(rows):
    for solver in ("ddim", "dpmpp"):
        assert rows["mcm", None, 1]["fd_video"] < rows[solver, None, 1]["fd_video"]
