"""The teacher's trajectory library: rollouts in all or in fewer steps."""

from __future__ import annotations

import pytest
import torch

from trainer.config import load_config
from trainer.diffusion.sampling import SAMPLERS
from trainer.distill.motions import roll_out
from trainer.distill.student import Student
from trainer.families import load_model

PROMPTS = ["a red circle moving up", "a blue star"]
GUIDANCE = 2.0


@pytest.fixture(scope="module")
def student(tiny_model):
    model = load_model(str(tiny_model))
    return Student(model, 4.0, 0.5)


@pytest.mark.parametrize(("stride", "steps"), [(1, 10), (2, 5), (3, 4)])
@torch.no_grad()
def test_a_rollout_is_the_teachers_guided_sampling(student, stride, steps):
    model, rows = student.model, torch.tensor([1, 0, 1])
    shape = model.latent_shape(model.frames, model.height, model.width)
    library = roll_out(
        student, PROMPTS, rows, shape, guidance=GUIDANCE, seed=7, steps=10, stride=stride
    )
    assert library.states.shape == (3, steps + 1, *shape) and library.stride == stride
    z = library.noise.float()
    text, empty = model.encode_text([PROMPTS[row] for row in rows]), model.encode_text([""])
    now = 999
    for place in range(steps, 0, -1):  # each stored state leads to the one below it
        to = max(now - 100 * stride, 0) if place > 1 else 0
        full = [torch.full((3,), t) for t in (now, to)]
        z = student.teacher_step(
            z, *full, text, empty.expand(3, -1, -1), torch.full((3,), GUIDANCE)
        )
        assert (library.states[:, place - 1].float() - z).abs().max() < 0.02 * z.abs().max()
        level = torch.full((3,), (now + 1) // 100 - 1)
        points = library.points(torch.arange(3), level, full[0], z)
        assert torch.equal(points.latents, library.states[:, place].float())
        assert torch.equal(points.next, library.states[:, place - 1].float())
        now = to
    assert torch.equal(library.clean, library.states[:, 0])
    if 10 % stride == 0:
        sampled = SAMPLERS["ddim"](
            model.predict_eps, text, (3, *shape), steps, model.scheduler_config,
            guidance_scale=GUIDANCE + 1, negative_text=empty, seed=0,
            init_latents=library.noise.float(),
        )  # fmt: skip
        assert (library.clean.float() - sampled).abs().max() < 0.02 * sampled.abs().max()


def test_only_where_ends_count_may_the_teacher_skip_timesteps():
    assert load_config().library_stride == 2
    assert load_config(overrides={"data.library_steps": 50}).library_stride == 1
    assert load_config(overrides={"data.library_steps": 250}).library_stride == 1
    assert load_config(overrides={"data.library_steps": 1}).library_stride == 50
    for other in ({"motion.target": "consistency"}, {"videos": "clips"}):
        assert load_config(overrides=other).library_stride == 1
