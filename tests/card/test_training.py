"""The training step with each option, the library and whole runs on a pretended card."""

from __future__ import annotations

from typing import Any

import pytest
from fake_card import CARD, CardTensor, FakeCard
from host_waits import BESIDE_STEPS, IN_A_STEP, WITH_OFFLOADED_OPTIMIZER, WITHOUT_IMAGES, places
from same_run import assert_same_run

from trainer.cli.main import main
from trainer.config import load_config
from trainer.distill.batch import Session, make_batch
from trainer.distill.distiller import Distiller, sizes_of
from trainer.distill.draws import REPLAY, StepDraws, draw_step
from trainer.distill.loop import make_accelerator, train
from trainer.distill.session import build_session
from trainer.distill.step import gradients
from trainer.families import FAMILIES
from trainer.runs.events import read_events
from trainer.runs.folder import Run
from trainer.runs.guards import NanGuard

STEP_OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {"hardware.precision": "fp32", "hardware.decode_precision": "fp32"},
    "fp16": {"hardware.precision": "fp16", "optim.accumulation": 2},
    "all in memory": {"hardware.offload_idle": False, "optim.schedule": "cosine"},
    "channels last": {"hardware.channels_last": True, "data.frames_per_clip": 4},
    "raw, hinge": {"motion.representation": "raw", "motion.target": "consistency"},
    "low, bce": {"motion.representation": "low_frequency", "adversarial.loss": "bce"},
    "high, wgan": {"motion.representation": "high_frequency", "adversarial.loss": "wgan"},
    "local": {"motion.representation": "local_correlation", "adversarial.weight_mode": "fixed"},
    "global": {"motion.representation": "global_correlation", "motion.loss": "l2"},
    "learned": {"motion.representation": "learned", "motion.target": "consistency"},
    "learned deep": {"motion.representation": "learned_deep", "motion.anchor_weight": 0.1},
    "r1": {"adversarial.r1_weight": 1.0, "adversarial.mismatched_captions": False},
    "no terms": {
        "adversarial.content_weight": 0.0, "adversarial.statistics_weight": 0.0,
        "adversarial.caption_weight": 0.0, "adversarial.augment": "", "motion.energy_weight": 0.0,
    },
    "no discriminator": {"adversarial.weight": 0.0, "optim.grad_clip": 0.0},
    "efficientnet": {"adversarial.features": "efficientnet-lite0"},
}  # fmt: skip
STAND_INS = {"modelscope": "small", "animatediff": "small_animatediff", "wan": "small_wan"}
"""Families that a tiny model is made of here -> the fixture of its settings."""
SIZES = ("data.frames", "data.height", "data.width", "lora.rank", "data.batch_size")


def presets() -> dict[str, tuple[str, dict[str, Any]]]:
    """What the card presets differ in besides their sizes, each once."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    known = []
    for family in FAMILIES:
        for preset in family.cards if family.name in STAND_INS else ():
            rest = {k: v for k, v in preset.settings.items() if k not in SIZES}
            rest["optim.accumulation"] = min(2, rest["optim.accumulation"])
            if (family.name, rest) not in known:
                known.append((family.name, rest))
                found[f"{family.name} {preset.gigabytes} GB"] = family.name, rest
    return found


def build(settings: dict[str, Any], run) -> Session:
    config = load_config(overrides={**settings, "run": str(run)})
    quiet = (lambda text: None), (lambda *progress: None)
    session = build_session(config, make_accelerator(config), *quiet)
    assert session.model.device == CARD
    return session


def check_step(session: Session, card: FakeCard, also: dict[str, str] | None = None) -> None:
    """A whole step, and the card's half of one that replays, which never waits for the host."""
    card.waits.clear()
    report = Distiller(session, NanGuard()).step(0)
    assert report.taken and report.values["grad_norm"] > 0
    assert places(card.waits) <= {*IN_A_STEP, *(also or {})}
    reads = {where: n for (where, kind), n in card.waits.items() if kind != "copy to host"}
    assert reads == {"trainer/distill/distiller.py:shared_values": 1}, "all numbers at once"
    batch = make_batch(session, replaying(session), 1)
    card.waits.clear()
    gradients(session.parts, batch, session.memory, 1.0)
    assert not card.waits, "nothing between a batch and its gradients is read by the host"


def replaying(session: Session) -> StepDraws:
    """Draws that take up an earlier prediction."""
    every = (draw_step(session.config, sizes_of(session), step) for step in range(1, 100))
    return next(draws for draws in every if (draws.source == REPLAY).any())


@pytest.mark.parametrize("option", STEP_OPTIONS)
def test_a_step_with(option, small, card, tmp_path):
    session = build({**small, **STEP_OPTIONS[option]}, tmp_path / "run")
    check_step(session, card)
    assert all(isinstance(copy, CardTensor) for copy in session.ema.copies)


@pytest.mark.parametrize("preset", presets())
def test_a_step_with_the_preset(preset, card, tmp_path, request):
    family, settings = presets()[preset]
    base = request.getfixturevalue(STAND_INS[family])
    features = {} if family == "modelscope" else {"adversarial.features": "efficientnet-lite0"}
    session = build({**base, **settings, **features}, tmp_path / "run")
    assert session.model.resting
    check_step(session, card, WITH_OFFLOADED_OPTIMIZER if session.config.optim.offload else None)
    assert next(session.model.codec.vae.parameters()).device.type == "cpu"


@pytest.mark.parametrize("features", ["dinov2", "clip"])
def test_a_step_with_the_network_and_a_clip_that_reads(
    features, small_animatediff, networks, card, tmp_path
):
    of = {"adversarial.features": networks / features, "adversarial.clip": networks / "clip"}
    session = build({**small_animatediff, **{k: str(v) for k, v in of.items()}}, tmp_path / "run")
    check_step(session, card)


def test_a_step_on_videos_without_images(small, videos, card, tmp_path):
    without = {key: value for key, value in small.items() if key != "images"}
    more = {"videos": str(videos), "motion.target": "consistency"}
    session = build({**without, **more}, tmp_path / "run")
    assert places(card.waits) <= set(BESIDE_STEPS)
    check_step(session, card, WITHOUT_IMAGES)


def run_of(settings: dict[str, Any], path) -> Run:
    run = Run.create(path, load_config(overrides={**settings, "run": str(path)}))
    assert train(run, None).status == "finished"
    return run


def test_a_whole_run_is_that_of_the_cpu(small, tmp_path):
    exact = {"hardware.precision": "fp32", "hardware.decode_precision": "fp32", "preview.every": 2}
    settings = {**small, **exact, "motion.representation": "learned"}
    on_cpu = run_of({**settings, "hardware.device": "cpu"}, tmp_path / "cpu")
    with FakeCard() as card:
        on_card = run_of(settings, tmp_path / "card")
    assert places(card.waits) <= set(BESIDE_STEPS)
    assert_same_run(on_card, on_cpu)


@pytest.mark.parametrize("offload", [False, True])
def test_a_run_goes_on_from_its_checkpoint(small, card, tmp_path, offload):
    run = run_of({**small, "optim.offload": offload}, tmp_path / "run")
    assert main(["resume", str(run.path), "--steps=3"]) == 0
    assert [event["step"] for event in read_events(run.events_path, "step")] == [1, 2, 3]
    assert places(card.waits) <= {*BESIDE_STEPS, *WITH_OFFLOADED_OPTIMIZER}
