"""Every command as a user types it, on the embedded model and on bad input."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch

from trainer.cli.main import COMMANDS, main
from trainer.cli.options import blocks_to_swap_from
from trainer.cli.sample import sample_arguments
from trainer.config import ConfigError, fields, load_config, save_config
from trainer.families import MINI
from trainer.lora.formats import read_lora
from trainer.media import read_clip
from trainer.mini.words import style_folder
from trainer.runs.folder import Run
from trainer.runs.state import read_state

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--data.library-clips=2", "--data.batch-size=2", "--hardware.device=cpu"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """`demo` cut to a few steps, in a folder with a space and an umlaut."""
    path = tmp_path_factory.mktemp("demo") / "mein Stil ö"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.cli.demo.LIBRARY_CLIPS", 8)
        assert main(["demo", "--minutes", "0.02", "--style", "neon", "--run", str(path)]) == 0
    return Run.open(path)


def test_demo_leaves_lora_clip_and_comparison(demo):
    assert read_state(demo).status == "finished"
    frames, fps = read_clip(demo.path / "clip.mp4")
    assert frames.shape == (8, 256, 256, 3) and fps == 8
    assert (demo.path / "comparison.webp").stat().st_size > 10_000
    assert (demo.path / "comparison.png").stat().st_size > 10_000
    assert read_lora(demo.export_path).metadata["mcm.base_model"] == "mini"


def test_sample_with_a_lora_takes_what_the_lora_recommends(demo, tmp_path, capsys):
    out = tmp_path / "clip ü.webp"
    lora = ["--lora", str(demo.export_path)]
    assert main(["sample", *lora, "--prompt", "a red star growing", "--out", str(out)]) == 0
    assert "4 steps, CFG 1" in capsys.readouterr().out
    assert read_clip(out)[0].shape == (8, 256, 256, 3)


def test_sample_is_the_same_clip_for_the_same_seed(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        argv = ["sample", "--prompt", "a red star growing", "--steps", "2", "--seed", seed]
        assert main([*argv, "--scale", "1", "--out", str(tmp_path / name)]) == 0
    a, b, c = (read_clip(tmp_path / name)[0] for name in "abc")
    assert (a == b).all() and not (a == c).all()


def test_a_finished_run_says_so_and_keeps_its_lora(demo, capsys):
    before = demo.export_path.stat().st_mtime_ns
    assert main(["resume", str(demo.path)]) == 0
    assert "is finished after" in capsys.readouterr().out
    assert demo.export_path.stat().st_mtime_ns == before


def test_evaluate_writes_the_rows_of_the_contract(demo, tmp_path):
    out = tmp_path / "rows.json"
    argv = ["evaluate", "--lora", str(demo.export_path), "--style", str(style_folder("neon"))]
    argv += ["--steps", "1", "2", "--teacher-steps", "2", "--count", "8", "--json", str(out)]
    assert main(argv) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [(r["method"], r["steps"]) for r in rows] == [
        ("teacher", 2),
        ("student", 1),
        ("student", 2),
    ]
    names = ("colour", "shape", "motion", "style_kid", "flow_ratio", "watermark")
    assert all(isinstance(row[name], float) for row in rows for name in names)


def test_inspect_names_family_format_and_recommendation(demo, capsys):
    assert main(["inspect", str(demo.export_path)]) == 0
    shown = capsys.readouterr().out
    for text in ("kohya", "mini", "mcm.steps", "AutoV2", "sha256"):
        assert text in shown


def test_preflight_measures_and_says_that_it_fits(capsys, tmp_path):
    argv = ["preflight", "--images", str(style_folder("ink")), "--run", str(tmp_path / "r")]
    assert main([*argv, *QUICK, "--preview.steps=1", "--preview.teacher-steps=2"]) == 0
    shown = capsys.readouterr().out
    assert "The run fits." in shown and "s per step" in shown
    assert not (tmp_path / "r").exists()


def test_stop_says_so_when_nothing_runs(demo, capsys):
    assert main(["stop", str(demo.path)]) == 0
    assert "not running" in capsys.readouterr().out


def test_a_second_training_in_the_same_folder_is_refused(demo, capsys):
    argv = ["train", "--images", str(style_folder("ink")), "--run", str(demo.path)]
    assert main(argv) == 1
    assert "resume" in capsys.readouterr().err


def broken_model(tmp_path: Path) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(MINI, folder, ignore=shutil.ignore_patterns("styles", "judge", "framenet"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "{tmp}/nowhere"], "nowhere"),
        (["--images", "{tmp}"], "No usable images"),
        (["--images", "{ink}", "--model", "{tmp}/nothing"], "was not found"),
        (["--images", "{ink}", "--model", "{tmp}"], "not a text-to-video model"),
        (["--images", "{ink}", "--model", "{broken}"], "damaged or incomplete"),
        (["--images", "{ink}", "--motion.weight=-1"], "motion.weight"),
        (["--images", "{ink}", "--data.frames=9"], "use 8, 16"),
        (["--images", "{ink}", "--data.height=60"], "multiple of 8"),
        (["--images", "{ink}", "--prompts", "{latin}"], "UTF-8"),
        (["--images", "{ink}", "--videos", "{ink}"], "No usable videos"),
        (["--images", "{ink}", "--start-from", "{latin}"], "safetensors"),
        (["--config", "{latin}"], "UTF-8"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_sentence(arguments, message, tmp_path, capsys):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("grün".encode("latin-1"))
    places = {"tmp": tmp_path, "ink": style_folder("ink"), "latin": latin}
    if "{broken}" in arguments:
        places["broken"] = broken_model(tmp_path)
    argv = [part.format(**places) for part in arguments]
    assert main(["train", *argv, "--run", str(tmp_path / "run"), *QUICK]) == 1
    assert message in capsys.readouterr().err


def test_help_is_short_and_every_setting_is_in_the_long_one(capsys):
    shown = {}
    for flag in ("--help", "--help-expert"):
        with pytest.raises(SystemExit):
            main(["train", flag])
        shown[flag] = capsys.readouterr().out
    for record in fields():
        name = f"\n  --{record.name.replace('_', '-')} "
        assert name in shown["--help-expert"], name
        assert (name in shown["--help"]) != record.expert, name
    assert "Default" in shown["--help"] and "--warm-start" not in shown["--help-expert"]
    named = {name for texts in COMMANDS.values() for name in texts}
    assert named >= {"demo", "train", "resume", "stop", "sample", "evaluate", "inspect"}


def bundled_lora() -> Path:
    return next((MINI / "loras").glob("*.safetensors"))


def with_header(source: Path, out: Path, **told: str) -> Path:
    """The LoRA at ``source`` with other ``mcm.*`` entries."""
    from safetensors.torch import load_file, save_file

    header = read_lora(source).metadata | {f"mcm.{key}": value for key, value in told.items()}
    save_file(load_file(source), out, header)
    return out


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"steps": "four"}, "`mcm.steps`='four'"),
        ({"timestep_scaling": "nan"}, "`mcm.timestep_scaling`='nan'"),
        ({"family": "animatediff"}, "is a LoRA for 'animatediff'"),
        ({"prediction_type": "v_prediction"}, "distilled from a model that predicts v_prediction"),
        ({"version": "9"}, "newer version of this pack"),
    ],
)
def test_sample_and_evaluate_check_a_lora_alike(told, message, tmp_path, capsys):
    lora = ["--lora", str(with_header(bundled_lora(), tmp_path / "a ü.safetensors", **told))]
    out = ["--out", str(tmp_path / "x.webp")]
    for argv in (["sample", *lora, "--prompt", "x", *out], ["evaluate", *lora, "--count", "2"]):
        assert main(argv) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.webp").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora", "{lora}", "--strength", "0"], "`--strength 0` switches the LoRA off"),
        (["--strength", "nan"], "`--strength nan` must be from -10 to 10"),
        (["--guidance", "-1"], "`--guidance -1.0` must be from 0 to 100"),
        (["--steps", "0"], "`--steps 0` must be from 1 to 1000"),
        (["--frames", "9"], "`frames`=9 is not supported"),
        (["--blocks-to-swap", "-1"], "`--blocks-to-swap -1` must be 0 or more"),
        (["--blocks-to-swap", "99"], "`--blocks-to-swap`=99 is more than the"),
    ],
)
def test_numbers_that_sample_cannot_use_are_named(arguments, message, tmp_path, capsys):
    argv = [part.format(lora=bundled_lora()) for part in arguments]
    assert main(["sample", "--prompt", "x", "--out", str(tmp_path / "x.webp"), *argv]) == 1
    assert message in capsys.readouterr().err


def test_evaluate_says_what_is_wrong_before_it_samples(tmp_path, capsys):
    bad = (["--steps", "51"], "`steps`=51"), (["--json", str(tmp_path / "no" / "x")], "`--json`")
    for argv, message in bad:
        assert main(["evaluate", "--count", "2", "--lora", str(bundled_lora()), *argv]) == 1
        shown = capsys.readouterr().err
        assert message in shown and "teacher" not in shown


def test_blocks_wait_as_in_the_run_that_the_lora_lies_in(tmp_path):
    def asked(*argv):
        parser = ArgumentParser()
        sample_arguments(parser)
        lora = ["--lora", str(tmp_path / "ink.safetensors")]
        given = parser.parse_args([*lora, "--prompt", "x", "--out", "x.mp4", *argv])
        return blocks_to_swap_from(given)

    assert asked() == 0, "a LoRA anywhere else"
    settings = {"hardware.blocks_to_swap": 3, "memory": "lean"}
    save_config(load_config(overrides=settings), tmp_path / "config.toml")
    assert asked() == 3
    assert asked("--blocks-to-swap", "0") == 0
    (tmp_path / "config.toml").write_text("steps = 'many'", encoding="utf-8")
    with pytest.raises(ConfigError, match="steps"):
        asked()


def test_a_device_that_is_not_there_is_no_other_one(tmp_path, capsys):
    missing = "mps" if torch.cuda.is_available() else "cuda"
    asked = ["--prompt", "x", "--out", str(tmp_path / "x.webp"), "--lora", str(bundled_lora())]
    assert main(["sample", *asked, "--device", missing]) == 1
    assert f"The device {missing} is not available: PyTorch finds" in capsys.readouterr().err


def test_evaluate_tells_where_it_is_when_there_is_no_terminal(capsys):
    from trainer.cli.evaluate import Bars

    with Bars(line_seconds=0) as bars:
        bars("teacher, 50 steps", 0, 3)
        bars("teacher, 50 steps", 2, 3)
        bars("student, 1 step", 1, 3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("/3,")[0] for line in lines] == [
        "teacher, 50 steps: 2",
        "student, 1 step: 1",
    ]
