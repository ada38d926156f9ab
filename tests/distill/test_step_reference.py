"""The training step against a second, deliberately plain implementation of the paper's formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from trainer.adversarial.frame_losses import CommonLoss, LossMemory, StatisticsLoss
from trainer.config import load_config, with_overrides
from trainer.distill.batch import make_batch
from trainer.distill.distiller import Distiller, sizes_of
from trainer.distill.draws import FRESH, REPLAY, TRAJECTORY, draw_step
from trainer.distill.session import build_session
from trainer.distill.step import (
    COMMON_SHARE,
    gradients,
    motion_losses,
    style_losses,
    trajectory_points,
)
from trainer.families.codec import pick_frames
from trainer.lora.adapter import adapter_disabled, lora_parameters
from trainer.motion.sources import Replay
from trainer.runs.guards import NanGuard


@pytest.fixture(scope="module", params=["consistency", "endpoint"])
def session(request, tiny_model, style_images, tmp_path_factory):
    config = load_config(
        overrides={
            "model": str(tiny_model),
            "images": style_images,
            "run": tmp_path_factory.mktemp("runs") / "r",
            "data.library_clips": 3,
            "data.batch_size": 6,
            "data.min_side": 16,
            "motion.representation": "raw",
            "motion.target": request.param,
            "adversarial.features": "mini",  # which also reads captions
            "adversarial.augment": "",
            "hardware.device": "cpu",
            "hardware.decode_precision": "fp32",
            "lora.rank": 4,
        }
    )
    built = build_session(config, Accelerator(cpu=True), lambda text: None, lambda *a: None)
    generator = torch.Generator().manual_seed(3)
    for parameter in lora_parameters(
        built.model.network
    ):  # a student that differs from its teacher
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    clips = torch.randn(6, *built.sources.latent_shape, generator=generator)
    built.replay.add(clips, torch.arange(6), torch.tensor([0, 1, 2, 2, 1, 0]))
    return built


@pytest.fixture(scope="module")
def draws(session):
    sizes = sizes_of(session)
    for step in range(100):
        drawn = draw_step(session.config, sizes, step)
        if set(drawn.source.tolist()) == {TRAJECTORY, FRESH, REPLAY}:
            return drawn
    raise AssertionError("no draw mixes all three sources")


def naive_f(model, z, t, text):
    """f(z, t) for one clip, written out: eps, x0, c_skip, c_out."""
    eps = model.network(z[None], t, encoder_hidden_states=text[None]).sample[0].double()
    alphas = model.noise.alphas_cumprod.double()
    a = alphas[t]
    x0 = (z.double() - (1 - a).sqrt() * eps) / a.sqrt()
    s = 4.0 * t
    c_skip, c_out = 0.25 / (s**2 + 0.25), s / np.sqrt(s**2 + 0.25)
    return c_skip * z.double() + c_out * x0


def naive_point(session, draws, row):
    """Point, target and prompt of one sample, following the paper's section 3 word by word; with
    ``motion.target`` endpoint the target is the clip of the teacher that the noise leads to.
    """
    model, prompts, library = session.model, session.prompts, session.motions
    a = model.noise.alphas_cumprod.double()[20 * (int(draws.place[row]) + 1) - 1]
    ends = session.config.recipe.motion.target == "endpoint"
    level, source, clip = int(draws.place[row]), int(draws.source[row]), int(draws.motion[row])
    prompt, start = int(draws.prompt[row]), draws.start[row]
    if source == TRAJECTORY or (ends and source == FRESH):
        prompt, start = int(library.prompts[clip]), library.states[clip, -1].float()
    if source == REPLAY:
        prompt = int(session.replay.prompts[draws.replay[row]])
        clip = int(session.replay.origins[draws.replay[row]])
        earlier = session.replay.clips[draws.replay[row]].double()
    text = model.encode_text([prompts.prompts[prompt].text])[0]
    if source == TRAJECTORY:
        visited = [*range(49, -1, -2 if ends else -1)][::-1]  # in 25 steps if only ends count
        kept = [v for v in visited if 20 * (v + 1) - 1 >= 800] if ends else visited
        z = library.states[clip, 1 + kept.index(level)].float()
    else:
        earlier = naive_f(model, start, 999, text) if source == FRESH else earlier
        z = (a.sqrt() * earlier + (1 - a).sqrt() * draws.noise[row].double()).float()
    if ends:
        target = library.states[clip, 0].double()
    else:
        target = naive_target(session, draws, row, z, text)
    return z, target, naive_f(model, z, 20 * (level + 1) - 1, text), prompt


def naive_target(session, draws, row, z, text):
    """f at the point to which one guided DDIM step of the teacher leads from ``z``."""
    model, level = session.model, int(draws.place[row])
    t_from, t_to = 20 * (level + 1) - 1, 20 * level - 1 if level else 0
    if int(draws.source[row]) == TRAJECTORY:
        below = session.motions.states[int(draws.motion[row]), level].float()
        return naive_f(model, below, t_to, text)
    empty = model.encode_text([""])[0]
    with adapter_disabled(model.network):
        cond = model.network(z[None], t_from, encoder_hidden_states=text[None]).sample[0].double()
        none = model.network(z[None], t_from, encoder_hidden_states=empty[None]).sample[0].double()
    eps = cond + float(draws.guidance[row]) * (cond - none)
    a, b = (model.noise.alphas_cumprod.double()[t] for t in (t_from, t_to))
    x0 = (z.double() - (1 - a).sqrt() * eps) / a.sqrt()
    return naive_f(model, (b.sqrt() * x0 + (1 - b).sqrt() * eps).float(), t_to, text)


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@torch.no_grad()
def test_points_targets_and_predictions_equal_a_plain_reference(session, draws):
    batch = make_batch(session, draws, 0)
    points = trajectory_points(session.parts.student, batch)
    predicted = session.parts.student.predict(points.latents, batch.level, batch.text)
    for row in range(len(draws.source)):
        z, target, prediction, prompt = naive_point(session, draws, row)
        assert int(batch.rows[row]) == prompt
        assert relative(points.latents[row], z) < 1e-5
        assert relative(points.target[row], target) < 1e-5
        assert relative(predicted[row], prediction) < 1e-5


@torch.no_grad()
def test_losses_equal_their_formulas(session, draws):
    batch = make_batch(session, draws, 0)
    points = trajectory_points(session.parts.student, batch)
    predicted = session.parts.student.predict(points.latents, batch.level, batch.text)
    motion = motion_losses(session.parts, predicted, points, batch)
    c = session.config.recipe.motion.huber_c
    p, q = predicted.double(), points.target.double()
    assert float(motion["consistency"]) == pytest.approx(
        float((((p - q) ** 2 + c**2).sqrt() - c).mean()), rel=1e-5
    )

    style, _ = style_losses(session.parts, predicted, points, batch, LossMemory())
    logits, seen = [], ([], [])
    session.parts.discriminator.eval()
    for row in range(len(predicted)):
        for k, frame in enumerate(draws.frames[row].tolist()):
            maps, wanted = (
                session.parts.features(
                    session.model.codec.vae.decode(clip[row, :, frame][None]).sample
                )
                for clip in (predicted, points.target)
            )
            logits.append(session.parts.discriminator(maps, batch.style.text[2 * row + k][None]))
            for side, deep in zip(seen, (maps, wanted), strict=True):
                side.append([m[0].double().numpy() for m in deep[2:]])
    session.parts.discriminator.train()
    assert float(style["adversarial"]) == pytest.approx(float(-torch.cat(logits).mean()), rel=1e-4)
    assert float(style["content"]) == pytest.approx(naive_content(*seen), rel=2e-3), (
        "stored as half"
    )
    weights = session.config.recipe.adversarial
    total = style["adversarial"] + weights.caption_weight * style["caption"]
    total = total + weights.content_weight * style["content"]
    total = total + weights.statistics_weight * style["statistics"]
    assert float(style["style"]) == pytest.approx(float(total), rel=1e-5)


def naive_content(ours, wanted):
    """Mean over frames of 1 - cosine, summed over maps: each map less the average of its side (here
    the frames of one batch), and less its mean over the frame.
    """
    total = 0.0
    for level in range(len(ours[0])):
        a, b = (np.stack([frame[level] for frame in side]) for side in (ours, wanted))
        a, b = (m - m.mean(0) for m in (a, b))
        a, b = (m - m.mean((2, 3), keepdims=True) for m in (a, b))
        for x, y in zip(a, b, strict=True):
            total += 1 - float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    return total / len(ours)


@torch.no_grad()
def test_content_of_a_clip_that_is_its_target_is_free_and_of_another_is_not(session, draws):
    batch = make_batch(session, draws, 0)
    clip = session.motions.clean[batch.origins].float()
    points = replace(trajectory_points(session.parts.student, batch), target=clip)

    def content(prediction):
        losses, _ = style_losses(session.parts, prediction, points, batch, LossMemory())
        return float(losses["content"])

    assert content(clip) < 1e-3
    assert content(clip.flip(-1)) > 0.01


@torch.no_grad()
def test_statistics_are_of_plain_frames_and_plain_images(session, draws):
    batch = make_batch(session, draws, 0)
    clip = session.motions.clean[batch.origins].float()
    points = trajectory_points(session.parts.student, batch)
    level = (batch.level / 1000).repeat_interleave(2)
    memory, crowds, common = LossMemory(), StatisticsLoss(), CommonLoss()
    frames = session.parts.decoder.decode_images(pick_frames(clip, batch.style.frames))
    for _ in range(2):
        style, _ = style_losses(session.parts, clip, points, batch, memory)
        sides = [session.parts.features(pixels)[:2] for pixels in (frames, batch.style.pixels)]
        expected = crowds(*sides, batch.style.text, batch.style.real_text)
        expected = expected + COMMON_SHARE * common(*sides, level)
    assert float(style["statistics"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(style["statistics"]) > 0.1, "the teacher's frames are not in the style"


def test_every_level_moves_the_unet_as_its_power_of_the_snr_says(session, draws):
    """d x0 / d eps is -sigma / alpha, so with power 1 the gradient at eps has one size."""
    batch = make_batch(session, draws, 0)

    def gradients_of(power):
        seen = []

        def keep(module, inputs, out):
            if out.sample.requires_grad:
                out.sample.retain_grad()
                seen.append(out.sample)

        hook = session.model.network.register_forward_hook(keep)
        config = with_overrides(session.config, {"trajectory.snr_power": power})
        gradients(replace(session.parts, config=config), batch, LossMemory(), 1.0)
        hook.remove()
        return seen[0].grad.flatten(1).norm(dim=1)

    plain, weighted = gradients_of(0.0), gradients_of(0.5)
    alpha, sigma = session.model.noise.alpha_sigma(batch.level, 1)
    torch.testing.assert_close(weighted, plain * (alpha / sigma).sqrt(), rtol=0.05, atol=0)


def test_a_step_changes_the_adapter_and_nothing_else(session):
    before = {n: p.detach().clone() for n, p in session.model.network.named_parameters()}
    judged = {n: p.detach().clone() for n, p in session.parts.discriminator.named_parameters()}
    report = Distiller(session, NanGuard()).step(0)
    assert report.taken and report.values["grad_norm"] > 0
    for name, parameter in session.model.network.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name
    changed = [
        n
        for n, p in session.parts.discriminator.named_parameters()
        if not torch.equal(p, judged[n])
    ]
    assert changed
    assert all(p.grad is None for p in session.model.codec.vae.parameters())
    assert all(p.grad is None for p in session.parts.features.parameters())


def test_a_step_with_a_nan_leaves_no_trace_in_later_ones(session):
    distiller = Distiller(session, NanGuard())
    distiller.step(0)
    remembered = session.memory.tensors()
    weight = next(iter(lora_parameters(session.model.network)))
    healthy = weight.detach().clone()
    weight.data.fill_(torch.nan)
    assert not distiller.step(1).taken
    weight.data.copy_(healthy)
    for name, kept in session.memory.tensors().items():
        assert kept and kept.keys() == remembered[name].keys()
        assert all(torch.equal(kept[key], remembered[name][key]) for key in kept), name
    report = distiller.step(2)
    assert report.taken and np.isfinite(list(report.values.values())).all()


def test_pick_frames_takes_the_drawn_frames_clip_by_clip():
    clips = (
        torch.arange(2 * 3 * 5.0).reshape(2, 1, 3, 5, 1).transpose(2, 3)
    )  # value = clip, frame, row
    picked = pick_frames(clips, torch.tensor([[0, 4], [2, 3]]))
    expected = [clips[0, :, 0], clips[0, :, 4], clips[1, :, 2], clips[1, :, 3]]
    assert torch.equal(picked, torch.stack(expected))


def test_predictions_keep_their_origin_through_a_checkpoint():
    replay, again = Replay(4, (1, 2, 1, 1)), Replay(4, (1, 2, 1, 1))
    clips = torch.arange(6.0).reshape(6, 1, 1, 1, 1).expand(6, 1, 2, 1, 1)
    replay.add(clips, torch.arange(6), torch.arange(10, 16))  # a ring: the first two are gone
    again.load_state_dict(replay.state_dict())
    taken, prompts, origins = again.take(torch.arange(4))
    assert taken[:, 0, 0, 0, 0].tolist() == prompts.tolist() == [4, 5, 2, 3]
    assert origins.tolist() == [14, 15, 12, 13]
    older = {k: v for k, v in replay.state_dict().items() if k != "origins"}
    with pytest.raises(ValueError, match="older version"):
        again.load_state_dict(older)
