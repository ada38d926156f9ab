"""The teacher's trajectory library: rollouts in all or in fewer steps, kept clip by clip."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from trainer.config import load_config
from trainer.data.cache import ContentCache
from trainer.data.prompts import build_prompts
from trainer.diffusion.sampling import SAMPLERS
from trainer.distill.library import (
    STAGE,
    Recipe,
    fetch_library,
    plan_clips,
    read_shipped,
    write_shipped,
)
from trainer.distill.plan import TeacherPlan
from trainer.distill.student import Student, roll_out
from trainer.families import MINI, load_model
from trainer.lora.adapter import add_lora
from trainer.motion.sources import TrajectoryLibrary
from trainer.runs.guards import StopRequested

PROMPTS = ["a red circle moving up", "a blue star"]
GUIDANCE = 2.0


def load_student(folder: Path) -> Student:
    model = load_model(str(folder))
    add_lora(model.network, 2, 2.0, 0)
    return Student(model)


@pytest.fixture(scope="module")
def student(tiny_model):
    return load_student(tiny_model)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS), encoding="utf-8")
    return build_prompts(file, file, [])


@pytest.fixture
def settings(tmp_path):
    return {
        "data.cache": tmp_path / "cache",
        "data.library_clips": 3,
        "data.library_steps": 5,
        "trajectory.ddim_timesteps": 10,
        "trajectory.real_min_timestep": 500,
    }


class Log:
    """What was said, and what progress was told; may ask to stop after some calls."""

    def __init__(self, stop_after: int = 10**6):
        self.lines: list[str] = []
        self.calls: list[tuple[str, int, int]] = []
        self.stop_after = stop_after

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, what: str, done: int, total: int) -> None:
        self.calls.append((what, done, total))
        if len(self.calls) > self.stop_after:
            raise StopRequested("stop")

    @property
    def made(self) -> int:
        """Clips that had to be rolled out."""
        return int(self.lines[0].split()[4]) if "base model makes" in self.lines[0] else 0


def fetch(student, prompts, settings, stop_after: int = 10**6):
    config, log = load_config(overrides=settings), Log(stop_after)
    shape = student.model.latent_shape(8, 32, 32)
    try:
        found = fetch_library(
            config, student, prompts, shape, Accelerator(cpu=True), log, log.progress
        )
    except StopRequested:
        found = None
    return found, log


def cached(root: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(file) for file in root.rglob("*.safetensors")]


@pytest.mark.parametrize(("stride", "steps"), [(1, 10), (2, 5), (3, 4)])
@torch.no_grad()
def test_a_rollout_is_the_teachers_guided_sampling(student, stride, steps):
    model, texts = student.model, [PROMPTS[1], PROMPTS[0], PROMPTS[1]]
    shape = model.latent_shape(model.frames, model.height, model.width)
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(7))
    visited = tuple(range(9, -1, -stride))[::-1]
    states = roll_out(
        student, texts, noise, guidance=GUIDANCE, levels=model.noise.levels(10), visited=visited,
        kept=visited,
    )  # fmt: skip
    library = TrajectoryLibrary(states, torch.tensor([1, 0, 1]), visited)
    assert library.states.shape == (3, steps + 1, *shape)
    z = library.noise.float()
    text, empty = model.encode_text(texts), model.encode_text([""])
    now = 999
    for place in range(steps, 0, -1):  # each stored state leads to the one below it
        to = max(now - 100 * stride, 0) if place > 1 else 0
        full = [torch.full((3,), t) for t in (now, to)]
        z = student.teacher_step(
            z, *full, text, empty.expand(3, -1, -1), torch.full((3,), GUIDANCE)
        )
        assert (library.states[:, place - 1].float() - z).abs().max() < 0.02 * z.abs().max()
        where = torch.full((3,), (now + 1) // 100 - 1)
        latents, following = library.points(torch.arange(3), where, full[0], z)
        assert torch.equal(latents, library.states[:, place].float())
        assert torch.equal(following, library.states[:, place - 1].float())
        now = to
    assert torch.equal(library.clean, library.states[:, 0])
    if 10 % stride == 0:
        sampled = SAMPLERS["ddim"](
            model.predict, model.noise, text, (3, *shape), steps,
            guidance_scale=GUIDANCE + 1, negative_text=empty, seed=0,
            init_latents=library.noise.float(),
        )  # fmt: skip
        assert (library.clean.float() - sampled).abs().max() < 0.02 * sampled.abs().max()


def test_only_where_ends_count_may_the_teacher_skip_timesteps(student):
    def stride(overrides):
        return TeacherPlan.of_model(load_config(overrides=overrides), student.model).stride

    assert stride({}) == 2
    assert stride({"data.library_steps": 50}) == stride({"data.library_steps": 250}) == 1
    assert stride({"data.library_steps": 1}) == 50
    assert stride({"motion.target": "consistency"}) == stride({"videos": "clips"}) == 1


def test_only_what_training_reads_is_kept(student, prompts, settings):
    """Ends are compared: the end, the points that are drawn, and the noise (drawn again)."""
    library, _ = fetch(student, prompts, settings)
    whole = {**settings, "motion.target": "consistency"}
    full, _ = fetch(student, prompts, whole)
    assert full.states.shape[1] == 11 and full.whole
    assert library.states.shape[1] == 1 + 3, "999, 799, 599 and the end"
    assert library.places == (5, 7, 9) and not library.whole
    sizes = {len(tensors["states"]) for tensors in cached(settings["data.cache"])}
    assert sizes == {3, 10}, "without the noise"
    place = torch.tensor([5, 9])
    latents, following = library.points(torch.tensor([0, 1]), place, place, library.noise)
    assert torch.equal(latents[0], library.states[0, 1])
    assert torch.equal(latents[1], library.noise[1]) and following is None


def test_a_stop_keeps_every_finished_clip(student, prompts, settings):
    many = {**settings, "data.library_clips": 20}
    nothing, log = fetch(student, prompts, many, stop_after=8)
    assert nothing is None and log.calls[0] == (STAGE, 0, 20)
    again, log = fetch(student, prompts, many)
    assert 0 < log.made < 20 and log.calls[-1] == (STAGE, 20, 20)
    straight, _ = fetch(student, prompts, {**many, "data.cache": settings["data.cache"] / "b"})
    assert torch.equal(again.states, straight.states), "to the bit"


def test_a_longer_library_begins_with_the_clips_that_are_there(student, prompts, settings):
    short, log = fetch(student, prompts, {**settings, "data.library_clips": 2})
    assert log.made == 2
    longer, log = fetch(student, prompts, {**settings, "data.library_clips": 5})
    assert log.made == 3
    assert torch.equal(longer.prompts[:2], short.prompts)
    assert torch.equal(longer.states[:2], short.states)
    assert len(set(longer.noise.flatten(1).sum(1).tolist())) == 5, "each has noise of its own"


def test_the_style_and_its_trigger_make_no_other_library(student, tmp_path, settings):
    """Prompts of a file: the images' captions have no part in it."""
    file = tmp_path / "p.txt"
    file.write_text("a red circle moving up\n[trigger], a blue star\n", encoding="utf-8")
    _, log = fetch(student, build_prompts(file, file, ["a cat"], ""), settings)
    assert log.made == 3
    for captions, trigger in ((["a dog, zorn"], "zorn"), (["ink"], "ink")):
        found = build_prompts(file, file, captions, trigger)
        assert all(trigger in prompt.text for prompt in found.prompts)
        _, log = fetch(student, found, settings)
        assert log.made == 0


def changed_folder(source: Path, folder: Path, what: str) -> Path:
    shutil.copytree(source, folder)
    if what in ("betas", "prediction"):
        file = folder / "scheduler" / "scheduler_config.json"
        found = json.loads(file.read_text(encoding="utf-8"))
        found |= {"beta_schedule": "linear"} if what == "betas" else {}
        file.write_text(json.dumps(found), encoding="utf-8")
    elif what in ("text_encoder", "unet", "vae"):
        (file,) = (folder / what).glob("*.safetensors")
        tensors = load_file(file)
        name = next(k for k, v in tensors.items() if v.ndim > 1)
        tensors[name] = tensors[name] * 1.5
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("what", "made"),
    [("nothing", 0), ("vae", 0), ("betas", 3), ("text_encoder", 3), ("unet", 3)],
)
def test_the_library_is_the_teachers_own(
    student, tiny_model, tmp_path, prompts, settings, what, made
):
    fetch(student, prompts, settings)
    other = load_student(changed_folder(tiny_model, tmp_path / what, what))
    _, log = fetch(other, prompts, settings)
    assert log.made == made


@pytest.mark.parametrize(
    ("change", "made"),
    [
        ({"data.library_guidance": 3.0}, 3),
        ({"data.library_steps": 10}, 3),
        ({"trajectory.real_min_timestep": 900}, 3),
        ({"seed": 5}, 0),
        ({"optim.lr": 1e-3}, 0),
    ],
)
def test_settings_that_make_clips_are_part_of_their_key(student, prompts, settings, change, made):
    fetch(student, prompts, settings)
    _, log = fetch(student, prompts, {**settings, **change})
    assert log.made == made


def test_a_model_brings_clips_of_its_own(student, tiny_model, tmp_path, prompts, settings):
    library, _ = fetch(student, prompts, settings)
    shutil.copytree(tiny_model, tmp_path / "with")
    owner = load_student(tmp_path / "with")
    shape = owner.model.latent_shape(8, 32, 32)
    recipe = Recipe.of(load_config(overrides=settings), owner.model, shape)
    file = tmp_path / "with" / "library.safetensors"
    write_shipped(file, recipe, plan_clips(prompts, 3), library.states)
    taken, log = fetch(owner, prompts, {**settings, "data.cache": tmp_path / "empty"})
    assert log.made == 0 and torch.equal(taken.states, library.states)
    file.write_bytes(file.read_bytes()[:100])
    _, log = fetch(owner, prompts, {**settings, "data.cache": tmp_path / "empty"})
    assert log.made == 3, "a damaged one is made again"


def test_a_rollout_that_is_not_finite_is_refused_and_not_kept(tiny_model, prompts, settings):
    broken = load_student(tiny_model)
    broken.model.network.conv_out.weight.data[:] = float("nan")
    with pytest.raises(FloatingPointError, match="library_guidance"):
        fetch(broken, prompts, settings)
    assert not list(ContentCache(settings["data.cache"]).root.rglob("*.safetensors"))


def test_the_mini_model_brings_the_library_of_every_preset():
    """So that its first preview comes within a minute, whatever the images."""
    model, config = load_model("mini"), load_config()
    recipe = Recipe.of(config, model, model.latent_shape(8, 64, 64))
    clips = plan_clips(build_prompts(None, MINI / "prompts.txt", []), config.data.library_clips)
    keys = read_shipped(MINI / "library.safetensors").keys()
    assert {recipe.key(clip, None) for clip in clips} <= keys
