"""The benchmark of cards runs everywhere at tiny size, and the table of presets is up to date."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.families import FAMILIES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
VARIANT = "bf16, recomputing"


def run(*arguments: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    done = run("--tiny", "--repeats", "1", "--json", str(out), "--variant", VARIANT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no graphics card, processor only" in out.with_suffix(".md").read_text(encoding="utf-8")
    return json.loads(out.read_text(encoding="utf-8"))


def test_every_family_is_measured(found):
    rows = {row["family"]: row for row in found["steps"]}
    assert set(rows) == {family.name for family in FAMILIES}
    for row in rows.values():
        assert row["variant"] == VARIANT
        assert row["seconds"] > 0 and row["estimated_gib"] > 0 and row["peak_share"] > 0


def test_clips_are_timed_for_student_and_teacher(found):
    for family in FAMILIES:
        rows = [row for row in found["clips"] if row["family"] == family.name]
        student = [row["steps"] for row in rows if row["who"] == "student"]
        assert student == [1, 2, 4, 8] and rows[-1]["who"] == "teacher"
        assert all(row["seconds"] > 0 for row in rows)


def test_a_second_call_adds_rows_and_replaces_those_measured_again(found, tmp_path):
    out, family = tmp_path / "gpu.json", FAMILIES[0].name
    old = {**found["steps"][0], "family": family, "seconds": 1e9}
    before = {**found, "steps": [old, {**old, "variant": "bf16"}]}
    out.write_text(json.dumps(before), encoding="utf-8")
    chosen = ("--family", family, "--variant", VARIANT)
    assert run("--tiny", "--repeats", "1", "--json", str(out), *chosen).returncode == 0
    after = json.loads(out.read_text(encoding="utf-8"))
    seconds = {row["variant"]: row["seconds"] for row in after["steps"]}
    assert set(seconds) == {VARIANT, "bf16"}
    assert seconds["bf16"] == 1e9 and seconds[VARIANT] < 1e9
    assert len(after["clips"]) == len(found["clips"])


def test_without_a_card_it_says_so(tmp_path):
    done = run("--json", str(tmp_path / "gpu.json"))
    assert done.returncode == 1 and "No graphics card" in done.stdout
    assert not (tmp_path / "gpu.json").exists()


def test_the_published_memory_of_presets_is_that_of_the_presets():
    text = (BENCHMARKS / "results" / "memory.json").read_text(encoding="utf-8")
    rows = {(row["family"], row["card"]): row for row in json.loads(text)["presets"]}
    published = {family.name: family.cards for family in FAMILIES}
    published |= {b.name: b.cards for family in FAMILIES for b in family.bases if b.cards}
    assert len(rows) == sum(map(len, published.values()))
    for name, cards in published.items():
        for preset in cards:
            row = rows[name, preset.gigabytes]
            assert row["preset"] == preset.title.partition(": ")[2]
            assert row["gib"] <= 0.9 * preset.gigabytes


def test_a_whole_run_is_timed_phase_by_phase(tmp_path):
    out = tmp_path / "run.json"
    done = run("--family", "wan", "--whole-run", "--tiny", "--json", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["finished"] and found["tiny"] and found["steps"] == 2 and not found["skipped"]
    assert found["lora_bytes"] > 0 and found["main_memory_gib"] > 0 and found["date"]
    assert found["peak_gib"] is None and found["busy"] is None, "there is no card"
    seconds = {row["phase"]: row["seconds"] for row in found["phases"]}
    wanted = {"check", "reading", "text", "library", "steps", "previews", "checkpoints", "export"}
    assert wanted <= set(seconds)
    assert all(seconds[phase] > 0 for phase in wanted)
    assert sum(seconds.values()) == pytest.approx(60 * found["minutes"])
    assert "| library | " in done.stdout


def test_a_whole_run_is_of_one_family_that_has_stand_ins(tmp_path):
    out = str(tmp_path / "run.json")
    done = run("--whole-run", "--tiny", "--json", out, "--family", "modelscope")
    assert done.returncode == 2 and "--whole-run takes one family: --family wan" in done.stderr
    done = run("--whole-run", "--tiny", "--family", "wan")
    assert done.returncode == 2 and "add --json OUT" in done.stderr
