"""The method on a flow: teacher, points, targets and losses of a tiny Wan."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import wan_files
from accelerate import Accelerator
from torch import nn

from trainer.cli.main import main
from trainer.config import load_config
from trainer.diffusion.sampling import sample_lcm, sample_ode
from trainer.distill.batch import make_batch
from trainer.distill.distiller import sizes_of
from trainer.distill.draws import draw_step
from trainer.distill.library import Recipe
from trainer.distill.plan import TRAJECTORY, TeacherPlan
from trainer.distill.session import build_session
from trainer.distill.step import gradients
from trainer.distill.student import Student, roll_out
from trainer.families import load_model, wan
from trainer.families.causal import CausalCodec
from trainer.lora.adapter import add_lora, lora_parameters
from trainer.models.checkpointing import compile_blocks, enable_checkpointing
from trainer.runs.events import read_events
from trainer.runs.folder import Run

SHAPE = (16, 3, 4, 4)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    models = wan_files.save_comfyui(tmp_path_factory.mktemp("ComfyUI") / "models")
    return next((models / "diffusion_models").iterdir())


@pytest.fixture(scope="module")
def settings(file, style_images, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a red star moving up\na blue circle\n", encoding="utf-8")
    return {
        "model": str(file), "images": style_images, "prompts": prompts, "data.frames": 9,
        "data.height": 32, "data.width": 32, "data.library_clips": 2, "data.batch_size": 2,
        "data.min_side": 16, "lora.rank": 2, "preview.steps": "1,2", "preview.teacher_steps": 2,
        "preview.count": 1, "adversarial.features": "efficientnet-lite0", "hardware.device": "cpu",
    }  # fmt: skip


class PointMass(nn.Module):
    """The velocity of a flow whose data is one ``clip``: every point leads straight to it."""

    def __init__(self, clip):
        super().__init__()
        self.clip = nn.Parameter(clip, requires_grad=False)

    def forward(self, latents, time, encoder_hidden_states):
        t = (time / 1000).view(-1, 1, 1, 1, 1).clamp(min=1e-6)
        return SimpleNamespace(sample=(latents - self.clip) / t)


@pytest.fixture(scope="module")
def point_mass(file):
    model = load_model(str(file))
    model.network = PointMass(torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)))
    return model


def near(found, clip):
    torch.testing.assert_close(found, clip.expand_as(found), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_where_the_teacher_is_consistent_target_and_prediction_are_the_clip(point_mass):
    student, plan = Student(point_mass), TeacherPlan.of_model(load_config(), point_mass)
    levels, clip = plan.path.levels(48), point_mass.network.clip
    noise = torch.randn(48, *SHAPE, generator=torch.Generator().manual_seed(2))
    text = point_mass.encode_text(["a star"])
    following = torch.cat([torch.zeros(1), levels[:-1]])
    points = plan.path.add_noise(clip.expand_as(noise), noise, levels)
    near(student.predict(points, levels, text), clip)
    guidance = torch.full((48,), 4.0)
    stepped = student.teacher_step(
        points, levels, following, text.expand(48, -1, -1), text, guidance
    )
    near(student.target(stepped, following, text), clip)
    assert torch.equal(student.target(clip[None], torch.zeros(1), text), clip[None])
    whole = tuple(range(48))
    states = roll_out(student, ["a star"], noise[:1], guidance=4.0, levels=levels, visited=whole,
                      kept=whole)[0].float()  # fmt: skip
    for place, level in enumerate(levels):
        on_the_line = (1 - level) * clip + level * noise[0]
        torch.testing.assert_close(states[1 + place], on_the_line, rtol=0, atol=5e-3)
    torch.testing.assert_close(states[0], clip, rtol=0, atol=5e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 8])
def test_any_number_of_steps_samples_that_clip(point_mass, steps):
    text = point_mass.encode_text(["a star"])
    for sampler in (sample_lcm, sample_ode):
        found = sampler(point_mass.predict, point_mass.noise, text, (1, *SHAPE), steps, seed=0)
        near(found, point_mass.network.clip)


def test_the_base_model_is_sampled_at_its_own_shift(point_mass):
    seen: list[float] = []
    text = point_mass.encode_text(["a star"])
    sample_ode(point_mass.predict, point_mass.noise, text, (1, *SHAPE), 4, seed=0,
               on_step=lambda step: seen.append(round(step.level, 4)))  # fmt: skip
    assert seen == [1.0, 0.96, 0.8889, 0.7273], "ComfyUI's `simple` at shift 8"


@pytest.mark.parametrize("preset", ["recipe", "paper", "lcm"])
def test_every_preset_trains(settings, preset, tmp_path):
    path = tmp_path / "r"
    given = {**settings, "run": path, "preset": preset, "steps": 2, "preview.every": 2}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert main(["train", *flags]) == 0
    run = Run.open(path)
    steps = read_events(run.events_path, "step")
    names = {"loss", "consistency", "grad_norm"} | ({"adversarial"} if preset != "lcm" else set())
    values = torch.tensor([[step[name] for name in sorted(names)] for step in steps])
    assert len(steps) == 2 and values.isfinite().all() and (values.abs() < 1e4).all()
    assert all(step["grad_norm"] > 0 for step in steps)
    assert run.config().recipe.trajectory.ddim_timesteps is None, "as the settings say"


@pytest.fixture(scope="module")
def session(settings, tmp_path_factory):
    given = {**settings, "run": tmp_path_factory.mktemp("runs") / "r", "adversarial.weight": 0}
    return build_session(
        load_config(overrides=given), Accelerator(cpu=True), lambda text: None, lambda *a: None
    )


def gradient_at(session, place, **changes):
    """Norm of the LoRA's gradient, of points of the teacher's trajectory at ``place``."""
    draws = draw_step(session.config, sizes_of(session), 0)
    where = {"source": torch.full((2,), TRAJECTORY), "place": torch.full((2,), place)}
    batch = make_batch(session, replace(draws, **where), 0)
    found = lora_parameters(session.model.network)
    for parameter in found:
        parameter.grad = None
    changed = replace(batch, **{name: change(batch) for name, change in changes.items()})
    logs = gradients(session.parts, changed, session.memory, 1.0).logs
    grads = [p.grad for p in found if p.grad is not None]
    return float(torch.stack([g.norm() for g in grads]).norm()), float(logs["loss"])


def test_the_first_sampling_step_is_trained(session):
    """At t = 1 alpha / sigma is 0: as a weight it would leave pure noise out, and one step with it.
    An error of the velocity reaches the clip multiplied by t.
    """
    (first, _), (later, _) = gradient_at(session, 47), gradient_at(session, 39)
    assert first > 0.1 * later > 0


def test_the_step_from_the_first_latent_to_the_second_is_no_motion(session):
    """The first latent holds one frame, the others four."""

    def changed(place):
        def ends(batch):
            clips = batch.ends.clone()
            clips[:, :, place] += 3.0
            return clips

        return gradient_at(session, 47, ends=ends)[1]

    _, loss = gradient_at(session, 47)
    assert changed(0) == loss, "whatever the first one is"
    assert changed(1) != loss and changed(2) != loss


def test_guidance_is_away_from_wans_own_negative_prompt(session):
    model = session.model
    assert "静止不动的画面" in model.negative
    draws = draw_step(session.config, sizes_of(session), 0)
    batch = make_batch(session, draws, 0)
    assert torch.equal(batch.empty, model.encode_text([wan.NEGATIVE]))
    assert not torch.equal(batch.empty, model.encode_text([""]))
    without = replace(model.family, teaching=replace(wan.TEACHING, negative=""))
    other = replace(model, family=without)
    recipes = [Recipe.of(session.config, m, session.sources.latent_shape) for m in (model, other)]
    assert recipes[0].teacher != recipes[1].teacher, "the library is made with it"


def test_without_a_tiny_vae_a_part_of_the_frames_is_looked_at(settings, tmp_path, monkeypatch):
    """Real and generated frames are parts of one size, and content is compared in the same one."""
    monkeypatch.setattr(CausalCodec, "reach", 6)
    monkeypatch.setattr(CausalCodec, "margin", 1)
    models = wan_files.save_comfyui(tmp_path / "models")
    shutil.rmtree(models / "vae_approx")
    more = {"data.height": 64, "data.cache": str(tmp_path), "adversarial.content_weight": 1.0}
    more["model"] = str(next((models / "diffusion_models").iterdir()))
    config = load_config(overrides={**settings, **more})
    session = build_session(config, Accelerator(cpu=True), lambda _: None, lambda *_: None)
    assert type(session.parts.decoder) is CausalCodec
    seen = []
    session.parts.features.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    draws = draw_step(config, sizes_of(session), 0)
    batch = make_batch(session, replace(draws, part_place=torch.tensor([0.9, 0.3])), 0)
    outcome = gradients(session.parts, batch, session.memory, 1.0)
    per_step = config.data.batch_size * config.data.frames_per_clip
    assert set(seen) == {(per_step, 3, 32, 32)}
    assert outcome.logs["content"] > 0 and session.end_maps is None
    looked = batch.style.place
    latents = outcome.prediction.clone().requires_grad_(True)
    session.parts.decoder.decode_frames(latents, batch.style.frames, looked).sum().backward()
    rows = latents.grad.abs().sum(dim=(0, 1, 2, 4))
    assert rows[:2].eq(0).all() and rows[2:].gt(0).all()


def test_compiled_blocks_compute_the_same_under_recomputing(file, tmp_path):
    """By the backend that runs what was traced as it is."""

    def built(compiled):
        network = load_model(str(file)).network
        add_lora(network, 2, 2.0)
        with torch.no_grad():
            for parameter in lora_parameters(network):
                parameter.fill_(0.02)
        if compiled:
            assert compile_blocks(network, wan.FAMILY.blocks, tmp_path, backend="eager") == 2
            enable_checkpointing(network, wan.FAMILY.blocks)
        return network

    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, *SHAPE, generator=generator)
    text = torch.randn(1, 8, wan_files.TEXT_WIDTH, generator=generator)
    found = []
    for compiled in (False, True):
        network = built(compiled)
        out = network(latents, torch.tensor([700.0]), encoder_hidden_states=text).sample
        out.square().mean().backward()
        found.append([out.detach(), *(p.grad for p in lora_parameters(network))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
