"""Both experts of a tiny Wan 2.2 14B train, each on its part of the trajectory."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
import wan_files
from accelerate import Accelerator

from trainer.cli.main import main
from trainer.config import load_config
from trainer.distill import recipe as recipes
from trainer.distill.batch import make_batch
from trainer.distill.distiller import sizes_of
from trainer.distill.draws import draw_step
from trainer.distill.estimate import estimate
from trainer.distill.plan import FRESH, TRAJECTORY
from trainer.distill.recipe import Recipe, plan_clips
from trainer.distill.session import build_session
from trainer.distill.step import gradients, trajectory_points
from trainer.distill.student import Student
from trainer.families import load_model, wan
from trainer.lora.files import read_metadata
from trainer.media import read_clip
from trainer.models import weights
from trainer.readiness.check import check
from trainer.runs.events import read_events
from trainer.runs.folder import Run

BOUNDARY = 0.875


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return wan_files.save_experts(tmp_path_factory.mktemp("ComfyUI ä") / "models")


@pytest.fixture(scope="module")
def settings(style_images, tmp_path_factory):
    place = tmp_path_factory.mktemp("experts")
    (place / "prompts.txt").write_text("a red star moving up\na blue circle\n", encoding="utf-8")
    return {
        "images": style_images, "prompts": place / "prompts.txt", "data.cache": place / "cache",
        "data.frames": 9, "data.height": 32, "data.width": 32, "data.library_clips": 2,
        "data.batch_size": 2, "data.min_side": 16, "data.library_steps": 4, "lora.rank": 2,
        "preview.steps": "1,2", "preview.teacher_steps": 2, "preview.count": 1,
        "adversarial.features": "efficientnet-lite0", "hardware.device": "cpu",
    }  # fmt: skip


def train(settings, model, path, **more):
    given = {**settings, "model": model, "run": path, "steps": 2, "preview.every": 2, **more}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert main(["train", *flags]) == 0
    return Run.open(path)


class Watch:
    """Which networks are in memory whenever one is read whole, and when text encoders are."""

    def __init__(self, monkeypatch):
        self.whole, self.beside = [], []
        monkeypatch.setattr(wan, "build_wan", self.watched(wan.build_wan))

    def watched(self, function):
        def call(found, *args):
            made = function(found, *args)
            if not weights._SHAPES_ONLY.get():
                gc.collect()
                self.beside.append([name for name, there in self.whole if there() is not None])
                self.whole.append((found.path.name, weakref.ref(made)))
            return made

        return call


@pytest.fixture(scope="module")
def runs(files, settings, tmp_path_factory):
    """A run of each, and the networks that were read for the low-noise one's."""
    path = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        low = train(settings, files["low"], path / "low")
    return {"low": low, "high": train(settings, files["high"], path / "high"), "watch": watch}


def session_of(settings, file, **more):
    given = {**settings, "model": str(file), **more}
    return build_session(
        load_config(overrides=given), Accelerator(cpu=True), lambda text: None, lambda *a: None
    )


@pytest.fixture(scope="module")
def low(settings, files, runs):
    return session_of(settings, files["low"], **{"adversarial.weight": 0})


@pytest.fixture(scope="module")
def high(settings, files, runs):
    return session_of(settings, files["high"])


def test_the_two_networks_are_never_in_memory_together(runs):
    watch = runs["watch"]
    assert [name for name, _ in watch.whole] == [
        wan_files.EXPERTS["high"],
        wan_files.EXPERTS["low"],
    ]
    assert watch.beside == [[], []]


def test_the_low_noise_one_learns_style_and_motion(runs):
    steps = read_events(runs["low"].events_path, "step")
    assert len(steps) == 2 and all(step["grad_norm"] > 0 for step in steps)
    for name in ("loss", "adversarial", "discriminator", "statistics"):
        assert all(torch.isfinite(torch.tensor(step[name])) for step in steps), name
    previews = runs["low"].samples / "step-000002"
    frames = [
        read_clip(next(previews.glob(f"*{which}.mp4")))[0] for which in ("steps-2", "teacher")
    ]
    assert all(clip.shape[0] == 9 for clip in frames)


def test_the_high_noise_one_learns_motion_alone_and_says_why(runs):
    run = runs["high"]
    steps = read_events(run.events_path, "step")
    assert len(steps) == 2 and all(step["grad_norm"] > 0 for step in steps)
    assert all("adversarial" not in step and step["loss"] > 0 for step in steps)
    assert "The low-noise expert learns the style" in run.log_path.read_text(encoding="utf-8")
    assert read_clip(next((run.samples / "step-000002").glob("*steps-2.mp4")))[0].shape[0] == 9


def test_the_check_says_what_is_trained(settings, files):
    given = {**settings, "model": str(files["high"])}
    told = {finding.part: finding for finding in check(load_config(overrides=given)).findings}
    assert told["Feature network"].text.startswith("not needed")
    assert "high-noise expert decides" in told["What is trained"].text
    given["model"] = str(files["low"])
    told = {finding.part: finding for finding in check(load_config(overrides=given)).findings}
    assert "What is trained" not in told and wan_files.EXPERTS["high"] in str(told)


def exact_rollout(model, clip, start):
    """The end of the teacher's trajectory, from its definition alone: guided steps of Euler."""
    levels = model.noise.levels(24)[1::2] if model.noise.places == 24 else None
    visited = levels[[2, 5, 8, 11]]  # every sixth place of 24
    falling = [*visited.flip(0).tolist(), model.noise.lowest]
    text, empty = model.encode_text([clip.text]), model.encode_text([wan.NEGATIVE])
    latents = start[None]
    for level, following in zip(falling[:-1], falling[1:], strict=True):
        now = torch.tensor([level])
        cond, uncond = (model.predict(latents, now, each) for each in (text, empty))
        velocity = cond + (model.teaching.cfg - 1) * (cond - uncond)
        latents = latents + (following - level) * velocity
    return latents[0]


@torch.no_grad()
def test_the_library_of_the_low_noise_one_is_made_by_both(low, files, settings):
    """Noise, through the first network to the boundary, through the second to the clip."""
    clip = plan_clips(low.prompts, 2)[0]
    state = exact_rollout(
        load_model(str(files["high"])), clip, clip.noise(low.sources.latent_shape)
    )
    torch.testing.assert_close(low.library.noise[0].float(), state, rtol=0, atol=5e-3)
    end = exact_rollout(load_model(str(files["low"])), clip, low.library.noise[0].float())
    torch.testing.assert_close(low.library.clean[0].float(), end, rtol=0, atol=5e-3)


def test_the_library_of_the_high_noise_one_ends_at_the_boundary(high, low):
    """In the states with which the other one's begins."""
    torch.testing.assert_close(high.library.clean, low.library.noise, rtol=0, atol=2e-3)
    clip = plan_clips(high.prompts, 2)[0]
    assert torch.equal(high.library.noise[0], clip.noise(high.sources.latent_shape).half())
    assert high.library.places == (5, 11, 17, 23), "all that the rollouts visited"


def test_clips_of_the_second_depend_on_the_first(low, settings, files, tmp_path, monkeypatch):
    other = wan_files.save_experts(tmp_path / "models", ffn_dim=64)
    shape, config = low.sources.latent_shape, low.config
    clip, mine = plan_clips(low.prompts, 1)[0], Recipe.of(config, low.model, shape)
    theirs = Recipe.of(config, replace(low.model, other=other["high"]), shape)
    assert mine.key(clip, None) != theirs.key(clip, None)
    assert mine.lead.key(clip, None) != theirs.lead.key(clip, None)
    assert mine.teacher == theirs.teacher


def test_points_of_the_second_lie_below_the_boundary(low):
    draws = draw_step(low.config, sizes_of(low), 0)
    top = replace(draws, place=torch.tensor([23, 0]), source=torch.tensor([TRAJECTORY, FRESH]))
    batch = make_batch(low, top, 0)
    assert float(batch.level[0]) == float(batch.most) == BOUNDARY
    assert float(batch.next_level[1]) == 0
    assert torch.equal(batch.real_latents[0].half(), low.library.noise[draws.motion[0]])
    assert torch.equal(batch.start[0].half(), low.library.noise[draws.motion[1]])
    points = trajectory_points(low.parts.student, batch)
    made = low.parts.student.generate(batch.start, batch.most, batch.text[1:])
    level = batch.level[1]
    torch.testing.assert_close(
        points.latents[1], (1 - level) * made[0] + level * draws.noise[1], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(points.target, batch.ends)


@pytest.mark.parametrize("preset", ["paper", "lcm"])
@pytest.mark.parametrize("which", ["low", "high"])
def test_every_preset_trains(which, preset, settings, files, runs, tmp_path):
    session = session_of(settings, files[which], preset=preset)
    batch = make_batch(session, draw_step(session.config, sizes_of(session), 0), 0)
    assert batch.ends is None and (batch.level <= BOUNDARY).all() == (which == "low")
    if batch.fresh is not None:
        wanted = session.motions.noise[batch.origins[batch.fresh]]
        assert torch.equal(batch.start.half(), wanted), "no noise, which it never sees"
    outcome = gradients(session.parts, batch, session.memory, 1.0)
    assert outcome.logs["loss"].isfinite() and outcome.logs["loss"] > 0


def test_all_points_of_the_first_are_the_teachers_and_aim_at_the_boundary(high):
    """With the target's velocity, a step of Euler leads exactly to the stored state."""
    for step in range(8):
        draws = draw_step(high.config, sizes_of(high), step)
        batch = make_batch(high, draws, step)
        assert batch.fresh is None and batch.style is None
        assert (batch.level > BOUNDARY).all() and (batch.level <= 1).all()
        points = trajectory_points(high.parts.student, batch)
        t = batch.level.view(-1, 1, 1, 1, 1)
        velocity = (points.latents - points.target) / t
        reached = points.latents - (t - BOUNDARY) * velocity
        torch.testing.assert_close(reached, batch.ends, rtol=1e-3, atol=1e-3)
    assert float(high.plan.levels[0]) > BOUNDARY


def test_what_the_first_predicts_is_kept_as_a_state(high):
    batch = make_batch(high, draw_step(high.config, sizes_of(high), 0), 0)
    outcome = gradients(high.parts, batch, high.memory, 1.0)
    points = trajectory_points(high.parts.student, batch)
    with torch.no_grad():
        output = high.model.predict(points.latents, batch.level, batch.text)
    t = batch.level.view(-1, 1, 1, 1, 1)
    wanted = points.latents - (t - BOUNDARY) * output
    torch.testing.assert_close(outcome.prediction, wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_stored_states_of_the_first_are_guided_steps(high):
    """The target at the lowest place is the clip that the guided teacher sees there."""
    row, place = 0, 0
    state = high.library.states[row, 1 + place].float()[None]
    level = high.plan.levels[list(high.library.places)][place][None]
    clip = plan_clips(high.prompts, 2)[row]
    student = Student(load_model(str(high.model.path)))
    text = student.model.encode_text([clip.text])
    empty = student.model.encode_text([wan.NEGATIVE])
    stepped = student.teacher_step(
        state, level, torch.tensor([BOUNDARY]), text, empty, torch.tensor([3.0])
    )
    torch.testing.assert_close(stepped[0], high.library.clean[row].float(), rtol=0, atol=5e-3)


def test_videos_are_refused_where_clips_begin_nowhere(settings, files, tmp_path):
    with pytest.raises(ValueError, match="`videos` cannot be used"):
        session_of(settings, files["low"], videos=str(tmp_path))


def test_beginnings_that_are_gone_are_made_again(settings, files, low, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(recipes, "_hash_at", lambda *a: made.append(a) or "other weights")
    again = session_of(settings, files["low"], **{"adversarial.weight": 0})
    torch.testing.assert_close(again.library.states, low.library.states)
    assert made, "the key is of the leading model's weights"


def test_a_preview_of_ones_own_prompt_makes_its_own_beginning(runs):
    assert (
        main(["preview", str(runs["low"].path), "--prompt", "a green square", "--seed", "3"]) == 0
    )
    (folder,) = runs["low"].samples.glob("own-*")
    assert read_clip(next(folder.glob("*steps-1.mp4")))[0].shape[0] == 9


def test_the_first_previews_show_its_guess_of_the_clip(high):
    """Student and original alike, by the original: the states themselves are nearly noise."""
    from trainer.evaluate.generate import _clean

    clip = plan_clips(high.prompts, 2)[0]
    text = high.model.encode_text([clip.text])
    state = high.library.clean[:1].float()
    level = torch.tensor([BOUNDARY])
    with torch.no_grad():
        shown = _clean(high.model, state, text)
        velocity = load_model(str(high.model.path)).predict(state, level, text)
    torch.testing.assert_close(shown, state - BOUNDARY * velocity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["high", "low"])
def test_memory_is_estimated_with_what_is_trained(which, settings, files):
    given = {**settings, "model": str(files[which])}
    with weights.shapes_only():
        found = estimate(load_config(overrides=given))
        motion = estimate(load_config(overrides={**given, "adversarial.weight": 0}))
    assert (found.total == motion.total) == (which == "high")


def test_a_run_goes_on(runs, files):
    assert main(["resume", str(runs["high"].path), "--steps", "3"]) == 0
    assert len(read_events(runs["high"].events_path, "step")) == 3


@pytest.mark.parametrize("which", ["high", "low"])
def test_its_lora_says_what_it_is_for_and_opens_a_graph_of_two_samplers(runs, which):
    told = read_metadata(runs[which].export_path)
    bounds = {"high": ("0.875", "1"), "low": ("0", "0.875")}[which]
    assert (told["mcm.part"], told["mcm.low"], told["mcm.high"]) == (f"{which} noise", *bounds)
    assert (told["mcm.steps"], told["mcm.steps_allowed"], told["mcm.shift"]) == ("4", "2,4,8", "7")
    nodes = json.loads(told["workflow"])["nodes"]
    by_type = {kind: [n for n in nodes if n["type"] == kind] for kind in {n["type"] for n in nodes}}
    mine, other = (node["widgets_values"][0] for node in by_type["UNETLoader"])
    names = wan_files.EXPERTS
    assert (mine, other) == (names[which], names["low" if which == "high" else "high"])
    values = [node["widgets_values"] for node in by_type["KSamplerAdvanced"]]
    first, second = ([v[0], *v[3:]] for v in values)
    assert first[0] == "enable" and first[-1] == "enable" and second[-1] == "disable"
    if which == "high":
        assert first[1:-1] == [2, 1.0, "euler", "simple", 0, 1]
        assert second[1:-1] == [20, 3.0, "euler", "simple", 10, 20]
    else:
        assert first[1:-1] == [20, 4.0, "euler", "simple", 0, 10]
        assert second[1:-1] == [4, 1.0, "lcm", "simple", 2, 4]
    assert [node["widgets_values"] for node in by_type["ModelSamplingSD3"]] == [[7.0], [7.0]]
    assert f"**{which} noise** expert" in by_type["MarkdownNote"][0]["widgets_values"][0]


def sampled(capsys, out, *flags):
    capsys.readouterr()
    asked = ["--prompt", "a red star", "--frames", "9", "--height", "32", "--width", "32"]
    assert main(["sample", *asked, "--out", str(out), *map(str, flags)]) == 0
    return read_clip(out)[0], capsys.readouterr().out


def test_a_clip_is_made_by_both_whichever_is_named(runs, files, capsys, tmp_path):
    loras = {which: runs[which].export_path for which in files}
    found = []
    for mine, other in (("low", "high"), ("high", "low")):
        flags = ["--model", files[mine], "--lora", loras[mine], "--other-lora", loras[other]]
        clip, said = sampled(capsys, tmp_path / f"{mine}.webp", *flags)
        assert "2 steps, CFG 1 (high noise) + 2 steps, CFG 1 (low noise)" in said
        found.append(torch.as_tensor(clip))
    assert torch.equal(*found) and found[0].shape[0] == 9
    flags = ["--model", files["low"], "--lora", loras["low"], "--steps", 2, "--seed", 1]
    _, said = sampled(capsys, tmp_path / "one.webp", *flags)
    assert "1 steps, CFG 4 (high noise) + 1 steps, CFG 1 (low noise)" in said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--steps", "3"], "`--steps 3` cannot be shared by two networks; use an even number"),
        (["--model", "mini", "--other-lora", "x"], "`--other-lora` is for the experts"),
    ],
)
def test_what_cannot_be_sampled_is_said(changed, message, files, tmp_path, capsys):
    asked = ["sample", "--model", str(files["low"]), "--prompt", "a", "--out", str(tmp_path / "x")]
    assert main(asked + changed) == 1
    assert message in capsys.readouterr().err


def test_the_lora_of_the_other_one_is_refused(runs, files, tmp_path, capsys):
    asked = ["sample", "--model", str(files["low"]), "--lora", str(runs["high"].export_path)]
    assert main([*asked, "--prompt", "a", "--out", str(tmp_path / "x.webp")]) == 1
    assert "trained for high noise" in capsys.readouterr().err


def test_a_clip_needs_both(files, tmp_path, capsys):
    alone = tmp_path / "models" / "diffusion_models" / files["high"].name
    shutil.copytree(files["high"].parents[1], tmp_path / "models")
    alone.with_name(files["low"].name).unlink()
    asked = ["sample", "--model", str(alone), "--prompt", "a", "--out", str(tmp_path / "x")]
    assert main(asked) == 1
    assert "needs both experts of Wan 2.2 14B" in capsys.readouterr().err


@pytest.fixture(scope="module")
def small(files, tmp_path_factory):
    """A diffusers folder of both whose own clips are small."""
    path = wan_files.save_folder(tmp_path_factory.mktemp("diffusers") / "Wan2.2-T2V-A14B-Diffusers")
    wan_files.build_transformer(seed=7).save_pretrained(path / "transformer_2")
    told = json.dumps({"frames": 5, "height": 32, "width": 32})
    for part in ("transformer", "transformer_2"):
        (path / part / "mcm.json").write_text(told, encoding="utf-8")
    return path


@pytest.mark.parametrize("other", [True, False])
def test_both_are_measured_together(other, small, runs, settings, tmp_path):
    rows = tmp_path / "rows.json"
    flags = ["--model", small / "transformer_2", "--lora", runs["low"].export_path]
    flags += ["--prompts", settings["prompts"], "--count", 2, "--steps", 2, "--teacher-steps", 4]
    flags += ["--features", "efficientnet-lite0", "--json", rows]
    if other:
        flags += ["--other-lora", runs["high"].export_path]
    assert main(["evaluate", *map(str, flags)]) == 0
    found = json.loads(rows.read_text(encoding="utf-8"))["rows"]
    told = [(row["method"], row["steps"]) for row in found]
    assert told == [("teacher", 4), ("student", 2)]
    assert all(row["flow"] > 0 for row in found if "flow" in row)
