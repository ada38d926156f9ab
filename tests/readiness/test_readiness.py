"""The check before anything long: each missing part is found in a moment, with what to do."""

from __future__ import annotations

import re
import stat
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sd15_files import Parts, build_parts
from transformers import CLIPVisionConfig, CLIPVisionModel

from trainer.adversarial.features import EFFICIENTNET_PACKAGES
from trainer.cli.main import main
from trainer.config import TrainConfig, load_config, with_overrides
from trainer.data.cache import ContentCache
from trainer.mini.words import style_folder
from trainer.models.motion_module import convert_keys, original_state
from trainer.readiness import NotReadyError, Readiness, check, require_ready
from trainer.readiness.parts import Disk
from trainer.readiness.torch_card import Machine, card_finding, nvidia_cards

CPU = Machine("Linux", (), "", False, ram_gib=1000.0)
CARD = "NVIDIA GeForce RTX 4070"


@pytest.fixture(scope="module")
def parts() -> Parts:
    return build_parts()


@pytest.fixture(scope="module")
def models(tmp_path_factory, parts: Parts) -> Path:
    """A ComfyUI's `models` with a tiny checkpoint (and one without VAE) and a motion module."""
    root = tmp_path_factory.mktemp("comfy ä") / "models"
    for name in ("checkpoints", "animatediff_models", "vae", "clip_vision"):
        (root / name).mkdir(parents=True)
    weights = {key: value.contiguous() for key, value in parts.checkpoint().items()}
    save_file(weights, root / "checkpoints" / "whole.safetensors")
    bare = {k: v for k, v in weights.items() if not k.startswith("first_stage_model.")}
    save_file(bare, root / "checkpoints" / "bare.safetensors")
    vae = {k.removeprefix("first_stage_model."): v for k, v in weights.items()
           if k.startswith("first_stage_model.")}  # fmt: skip
    save_file(vae, root / "vae" / "vae-ft-mse.safetensors")
    module = original_state(convert_keys(dict(parts.adapter.state_dict()), "mm"))
    torch.save(module, root / "animatediff_models" / "mm_sd_v15_v2.ckpt")
    vision = CLIPVisionModel(CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=1,
        image_size=28, patch_size=7))  # fmt: skip
    state = {f"vision_model.{k.removeprefix('vision_model.')}": v.contiguous()
             for k, v in vision.state_dict().items()}  # fmt: skip
    save_file(state, root / "clip_vision" / "clip_vision_tiny.safetensors")
    return root


@pytest.fixture
def no_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without DINOv2 and EfficientNet."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(sys.modules, EFFICIENTNET_PACKAGES[0], None)


def config_of(models: Path, name: str = "whole", **changes: object) -> TrainConfig:
    real = {
        "model": str(models / "checkpoints" / f"{name}.safetensors"),
        "motion_module": str(models / "animatediff_models" / "mm_sd_v15_v2.ckpt"),
        "images": str(style_folder("ink")),
        "data.height": 64,
        "data.width": 64,
        "data.batch_size": 1,
        "run": str(models.parent / "run"),
    }
    return load_config(overrides={**real, **changes})


def look(config: TrainConfig, models: Path, machine: Machine = CPU) -> Readiness:
    return check(config, Disk(models.parent), machine=machine)


def state_of(readiness: Readiness, part: str) -> str:
    return next(finding.state for finding in readiness.findings if finding.part == part)


def test_a_whole_real_model_is_ready_and_its_parts_are_named(models):
    readiness = look(config_of(models), models)
    assert readiness.ready, readiness.text()
    for part in ("Base model", "Motion module", "Text encoder and VAE", "Feature network",
                 "Style images", "Captions", "Prompts", "Clip size", "Disk"):  # fmt: skip
        assert state_of(readiness, part) in ("ok", "note"), readiness.text()


def test_everything_missing_is_said_at_once_with_where_to_get_it(models, no_networks):
    config = config_of(models, "bare", motion_module=None, images=str(models / "nowhere"))
    readiness = look(config, models)
    bad = {finding.setting: finding for finding in readiness.bad}
    assert set(bad) == {"motion_module", "vae", "adversarial.features", "images"}
    for setting, (name, size, licence, repository, folder) in {
        "motion_module": ("mm_sd_v15_v2.ckpt", "1.8 GB", "Apache-2.0", "guoyww/animatediff",
                          "models/animatediff_models"),
        "vae": ("vae-ft-mse-840000-ema-pruned.safetensors", "0.33 GB", "MIT",
                "stabilityai/sd-vae-ft-mse-original", "models/vae"),
        "adversarial.features": ("config.json and model.safetensors", "88 MB", "Apache-2.0",
                                 "facebook/dinov2-small", "models/dinov2/dinov2-small"),
    }.items():  # fmt: skip
        first = bad[setting].downloads[0]
        assert (first.name, first.size, first.licence) == (name, size, licence)
        assert (first.repository, first.folder) == (repository, folder)
        assert f"--{setting.replace('_', '-')} PATH" in bad[setting].report()
    found = {setting: [Path(path).name for path in f.found] for setting, f in bad.items()}
    assert found["motion_module"] == ["mm_sd_v15_v2.ckpt"]
    assert found["vae"] == ["vae-ft-mse.safetensors"]
    assert found["adversarial.features"] == ["clip_vision_tiny.safetensors"]


def test_what_was_found_on_disk_makes_it_ready(models, no_networks):
    config = config_of(models, "bare")
    bad = look(config, models).bad
    mended = with_overrides(config, {finding.setting: finding.found[0] for finding in bad})
    assert len(bad) == 2 and look(mended, models).ready


@pytest.mark.parametrize(
    ("changes", "setting", "words"),
    [
        ({"data.height": 360}, "data.height", "multiple of 16 px.*use 352 or 368"),
        ({"data.width": 40}, "data.width", "use 32 or 48"),
        ({"data.frames": 64}, "data.frames", "not supported"),
        ({"data.frames_per_clip": 32}, "data.frames_per_clip", "more than the 16 frames"),
        ({"prompts": "{tmp}/latin.txt"}, "prompts", "UTF-8"),
        ({"images": "{tmp}"}, "images", "No usable images"),
        ({"videos": "{tmp}/no"}, "videos", "does not exist"),
        ({"start_from": "{tmp}/latin.txt"}, "start_from", "."),
        ({"motion_module": "{tmp}/page.ckpt"}, "motion_module", "web page"),
        ({"motion_module": "{tmp}/no.ckpt"}, "motion_module", "does not exist"),
        ({"vae": "{tmp}/page.ckpt"}, "vae", "web page"),
        ({"model": "{tmp}/page.ckpt"}, "model", "web page"),
        ({"model": "{tmp}/no.ckpt"}, "model", "was not found"),
        ({"adversarial.features": "dinov2"}, "adversarial.features", "not on this machine"),
        ({"hardware.device": "cuda"}, "hardware.device", "no NVIDIA card"),
        ({"hardware.device": "mps"}, "hardware.device", "no Apple card"),
        ({"optim.optimizer": "adamw8bit"}, "optim.optimizer", "adamw8bit"),
    ],
)  # fmt: skip
def test_each_wrong_setting_is_found_and_named(
    changes, setting, words, models, no_networks, tmp_path
):
    (tmp_path / "latin.txt").write_bytes("grün".encode("latin-1"))
    (tmp_path / "page.ckpt").write_text("<!DOCTYPE html>", encoding="utf-8")
    good = {"adversarial.features": str(models / "clip_vision" / "clip_vision_tiny.safetensors")}
    told = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in changes.items()}
    (finding,) = look(config_of(models, **{**good, **told}), models).bad
    assert finding.setting == setting
    assert re.search(words, finding.text), finding.text


def test_sizes_without_an_anchor_need_no_more_than_the_model(models):
    free = {"motion.self_anchor_weight": 0.0, "motion.anchor_weight": 0.0}
    assert look(config_of(models, **{"data.height": 72, **free}), models).ready
    anchored = {"motion.self_anchor_weight": 0.0, "motion.anchor_weight": 0.1}
    (finding,) = look(config_of(models, **{"data.height": 72, **anchored}), models).bad
    assert "motion.anchor_weight" in finding.text


def large_step(cache: Path) -> TrainConfig:
    """A step of the mini model that is too large to be called small."""
    return load_config(overrides={
        "images": str(style_folder("ink")), "data.batch_size": 32, "data.cache": str(cache),
        "memory": "fast"})  # fmt: skip


@pytest.mark.parametrize(("gib", "state"), [(0.1, "bad"), (1000.0, "ok")])
def test_a_large_step_is_tried_on_shapes_and_held_against_the_memory(gib, state, tmp_path):
    for machine in (
        Machine("Linux", (), "", False, ram_gib=gib),
        Machine("Linux", (CARD,), "13.0", True, card_gib=gib, ram_gib=1000.0),
    ):
        readiness = check(large_step(tmp_path), Disk(), machine=machine)
        (finding,) = (f for f in readiness.findings if f.part == "Memory")
        assert finding.state == state and readiness.ready == (state == "ok")
        assert ("Try --memory lean" in finding.text) == (state == "bad")


def test_the_estimate_is_made_once_for_the_same_settings(tmp_path):
    config, machine = large_step(tmp_path), Machine("Linux", (), "", False, ram_gib=1000.0)
    check(config, Disk(), machine=machine)
    (stored,) = tmp_path.rglob("*.safetensors")
    ContentCache(tmp_path).store(stored.stem, {"bytes": torch.tensor([1 << 30] * 5)})
    again = check(with_overrides(config, {"trigger": "wsnth", "steps": 7}), Disk(), machine=machine)
    assert "about 5.0 GiB" in next(f.text for f in again.findings if f.part == "Memory")
    other = check(with_overrides(config, {"data.batch_size": 33}), Disk(), machine=machine)
    assert "about 5.0 GiB" not in next(f.text for f in other.findings if f.part == "Memory")


def test_it_reads_no_weights(models, monkeypatch):
    """A file of gigabytes must be checked in seconds: its large tensors are never read."""
    from trainer.models import weights

    class HeaderOnly:
        """A file of safetensors that gives its metadata and no tensor."""

        def __init__(self, path, **options):
            self.file = safe_open(path, **options)

        def __enter__(self):
            self.metadata = self.file.__enter__().metadata
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

    sizes, read = [], weights.shapes

    def noted(*given):
        found = read(*given)
        sizes.extend(tensor.numel() for tensor in found.values() if not tensor.is_meta)
        return found

    monkeypatch.setattr(weights, "shapes", noted)
    monkeypatch.setattr(weights, "safe_open", HeaderOnly)
    assert look(config_of(models), models).ready
    assert sizes and max(sizes) <= weights._SMALL


@pytest.mark.parametrize(
    ("wanted", "machine", "state", "words"),
    [
        ("auto", Machine("Windows", (CARD,), "", False), "warn", "Get started.*--index-url"),
        ("auto", Machine("Linux", (CARD,), "", False), "warn", "pip install --force-reinstall"),
        ("cuda", Machine("Windows", (CARD,), "", False), "bad", "built for the CPU only"),
        ("auto", Machine("Linux", (CARD,), "13.0", False), "warn", "Update the NVIDIA driver"),
        ("auto", Machine("Linux", (CARD,), "13.0", True), "ok", CARD),
        ("cpu", Machine("Linux", (CARD,), "", False), "note", "built for the CPU only"),
        ("cpu", Machine("Linux", (CARD,), "13.0", True), "ok", "the CPU"),
        ("auto", Machine("Linux", (), "13.0", False), "ok", "the CPU"),
        ("cuda", Machine("Linux", (), "13.0", False), "bad", "no NVIDIA card"),
        ("auto", Machine("Darwin", (), "", False, mps=True), "ok", "Apple's card"),
        ("mps", Machine("Linux", (), "", False), "bad", "no Apple card"),
    ],
)
def test_a_pytorch_that_does_not_see_the_card_is_said(wanted, machine, state, words):
    finding = card_finding(wanted, machine)
    assert finding.state == state
    assert re.search(words, finding.text), finding.text
    assert "http" not in finding.text and "download." not in finding.text


def test_cards_are_those_that_the_driver_lists(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_cards() == ()
    if sys.platform == "win32":
        (tmp_path / "nvidia-smi.bat").write_text(f"@echo {CARD}\r\n", encoding="ascii")
    else:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho '{CARD}'\n", encoding="ascii")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert nvidia_cards() == (CARD,)


def test_train_says_it_before_anything_long_and_makes_no_run(models, no_networks, tmp_path, capsys):
    argv = ["train", "--model", str(models / "checkpoints" / "bare.safetensors")]
    argv += ["--images", str(style_folder("ink")), "--run", str(tmp_path / "run")]
    assert main(argv) == 1
    said = capsys.readouterr().err
    for word in ("mm_sd_v15_v2.ckpt", "1.8 GB", "vae-ft-mse", "facebook/dinov2-small"):
        assert word in said
    assert not (tmp_path / "run").exists()


def test_preflight_check_only_looks_and_tells_programs(models, tmp_path, capsys):
    argv = ["preflight", "--check", "--model", str(models / "checkpoints" / "bare.safetensors")]
    out = tmp_path / "out.json"
    assert main([*argv, "--images", str(style_folder("ink")), "--json", str(out)]) == 1
    assert "NOT ready" in capsys.readouterr().out
    assert '"ready": false' in out.read_text(encoding="utf-8")
    assert main(["preflight", "--check", "--images", str(style_folder("ink"))]) == 0
    assert capsys.readouterr().out.strip().endswith("Ready.")


def test_every_way_to_train_is_checked(models, no_networks, tmp_path):
    """Resume and the queue start trainings too, and a file may be gone by then."""
    from trainer.distill.loop import train
    from trainer.runs.folder import Run
    from trainer.runs.state import read_state

    config = config_of(models, run=str(tmp_path / "run"))
    run = Run.create(tmp_path / "run", config)
    with pytest.raises(NotReadyError, match="Feature network"):
        train(run, require_ready, resume=True)
    assert read_state(run).status == "failed" and "88 MB" in (read_state(run).error or "")
    said: list[str] = []
    require_ready(load_config(overrides={"images": str(style_folder("ink"))}), said.append)
    assert said[-1].endswith("Ready.")


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(start, tmp_path):
    """The first bytes of a safetensors file are the length of its header: any number."""
    from trainer.models.weights import read_file

    length = int.from_bytes(start + b"\0" * (8 - len(start)), "little")
    head = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    body = length.to_bytes(8, "little") + head.ljust(length) + b"\0" * 4
    (tmp_path / "x.safetensors").write_bytes(body)
    assert read_file(tmp_path / "x.safetensors")["x"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("caption", "state"),
    [("a red circle", None), ("a portrait of a woman", "warn"), ("", "note")],
)
def test_the_mini_model_says_what_it_is_for(tmp_path: Path, caption: str, state: str | None):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        if caption:
            (tmp_path / f"{number}.txt").write_text(caption, encoding="utf-8")
    found = check(load_config(overrides={"images": tmp_path}), machine=CPU)
    said = [f for f in found.findings if f.part == "The mini model"]
    assert [f.state for f in said] == ([state] if state else [])
    assert all("docs/first-style.md" in f.text for f in said)


def test_remarks_on_captions_say_what_they_are(tmp_path: Path):
    for name, caption in (("a", b"a red circle"), ("b", b"a caf\xe9 by the sea")):
        pixels = np.random.default_rng(len(caption)).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_bytes(caption)
    found = check(load_config(overrides={"images": tmp_path}), machine=CPU)
    (said,) = [finding for finding in found.findings if finding.part == "Captions"]
    assert said.state == "note"
    assert "'b.png': b.txt was read as Windows-1252" in said.text and "a.txt" not in said.text
