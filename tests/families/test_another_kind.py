"""A base model of another kind is one file and one line: it is listed, has presets and an estimate,
trains, samples, is measured and exported, its LoRA is known again and opens a graph, and nothing
else knows of it.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from flow_family import FAMILY, save_tiny
from safetensors.torch import load_file, save_file

from trainer import families
from trainer.catalog import find_models
from trainer.cli.main import main
from trainer.config import load_config
from trainer.families import load_model
from trainer.lora.few_step import few_step_kind
from trainer.lora.files import read_metadata
from trainer.lora.formats import read_lora
from trainer.lora.match import fit_pairs, match, offered_size, pair_widths
from trainer.lora.metadata import LoraCard
from trainer.lora.names import with_paths
from trainer.lora.pairs import LoraError, lora_targets
from trainer.lora.workflow import lora_workflow
from trainer.media import read_clip
from trainer.runs.events import read_events
from trainer.runs.folder import Run
from trainer.settings import QUALITY_PRESETS


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    families.FAMILIES.append(FAMILY)  # the one line
    yield save_tiny(tmp_path_factory.mktemp("models") / "tiny flow ü")
    families.FAMILIES.remove(FAMILY)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("a red star moving up\na blue circle\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module", params=["endpoint", "consistency"])
def run(request, flow, prompts, style_images, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / request.param
    options = {
        "--model": flow, "--images": style_images, "--prompts": prompts, "--run": path,
        "--steps": 3, "--data.library-clips": 2, "--data.batch-size": 2, "--data.min-side": 16,
        "--lora.rank": 2, "--lora.alpha": 2, "--preview.every": 3, "--preview.count": 1,
        "--preview.steps": "1,2", "--preview.teacher-steps": 2, "--motion.target": request.param,
        "--trajectory.replay-probability": 0.5, "--adversarial.features": "efficientnet-lite0",
        "--hardware.device": "cpu", "--hardware.gradient-checkpointing": "true",
        "--trajectory.ddim-timesteps": 8, "--data.library-steps": 4,
    }  # fmt: skip
    assert main(["train", *(f"{name}={value}" for name, value in options.items())]) == 0
    return Run.open(path)


def test_it_trains_with_finite_losses_and_previews(run):
    steps = read_events(run.events_path, "step")
    assert len(steps) == 3
    for name in ("loss", "adversarial", "discriminator", "grad_norm"):
        assert all(torch.isfinite(torch.tensor(step[name])) for step in steps), name
    assert sum(step["grad_norm"] for step in steps) > 0
    assert read_clip(next((run.samples / "step-000003").glob("*steps-2.mp4")))[0].shape[0] == 5


def test_its_lora_changes_what_is_sampled(run, flow, tmp_path):
    clips = []
    for strength in (10, -10):
        out = tmp_path / f"{strength} ä.webp"
        options = ["--prompt", "a red star", "--steps", "2", "--seed", "1", "--out", str(out)]
        options += ["--lora", str(run.export_path), f"--strength={strength}"]
        assert main(["sample", "--model", str(flow), *options]) == 0
        clips.append(read_clip(out)[0])
    assert clips[0].shape[0] == 5
    assert (clips[0] != clips[1]).any()


def test_it_is_measured(run, flow, prompts, tmp_path):
    rows = tmp_path / "rows.json"
    options = ["--model", str(flow), "--lora", str(run.export_path), "--prompts", str(prompts)]
    options += ["--count", "2", "--steps", "1", "--teacher-steps", "2", "--json", str(rows)]
    assert main(["evaluate", *options]) == 0
    found = json.loads(rows.read_text(encoding="utf-8"))["rows"]
    assert [row["method"] for row in found] == ["teacher", "student"]


def test_it_is_exported_and_inspected(run, flow, tmp_path, capsys):
    out = tmp_path / "again.safetensors"
    assert main(["export", str(run.path), "--checkpoint", "3", "--out", str(out)]) == 0
    assert load_file(out).keys() == load_file(run.export_path).keys()
    capsys.readouterr()
    assert main(["inspect", str(out), "--model", str(flow)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^mcm.family +flow$", shown, re.MULTILINE)
    assert re.search(r"^modules +\d+$", shown, re.MULTILINE), "every one is known to the model"


def test_its_lora_is_known_by_the_names_of_its_layers(run, flow, tmp_path, capsys):
    """Kohya's underscore names, and nothing in the header."""
    bare = tmp_path / "bare ö.safetensors"
    save_file(load_file(run.export_path), bare)
    capsys.readouterr()
    assert main(["inspect", str(bare)]) == 0
    shown = capsys.readouterr().out
    assert re.search("^made for +the tiny flow$", shown, re.MULTILINE)
    network = load_model(str(flow)).network
    pairs = with_paths(read_lora(bare).pairs)
    assert sorted(pairs) == lora_targets(network)
    assert "patch_embed.text_proj" in pairs
    assert not any("time_" in path or path == "proj_out" for path in pairs)
    assert match(pairs, network).complete
    assert offered_size(pair_widths(pairs)) == (32, 32, 5)
    assert few_step_kind(read_lora(bare)) is None, "no such LoRAs are published"


def test_its_lora_fits_no_model_of_another_kind(run, flow, tiny_model):
    pairs, other = read_lora(run.export_path).pairs, load_model(str(tiny_model)).network
    with pytest.raises(LoraError, match="it was made for the tiny flow, .*Load the base model"):
        fit_pairs(pairs, other)


def test_its_lora_opens_a_graph_with_its_own_loader(run, flow):
    graph = json.loads(read_metadata(run.export_path)["workflow"])
    nodes = {node["type"]: node for node in graph["nodes"]}
    assert nodes["CheckpointLoaderSimple"]["widgets_values"] == [f"{flow.name}.safetensors"]
    assert not any(type.startswith("MCM_Load") and "Lora" not in type for type in nodes)
    (told,) = nodes["CheckpointLoaderSimple"]["properties"]["models"]
    assert told["directory"] == "checkpoints"
    assert told["url"].endswith(f"/someone/flow/resolve/main/{flow.name}.safetensors")


def test_without_nodes_its_lora_has_no_graph(flow, monkeypatch):
    other = replace(FAMILY, name="nodeless", graph=None)
    monkeypatch.setattr(families, "FAMILIES", [*families.FAMILIES, other])
    card = LoraCard(title="x", family="nodeless", base_model="x", base_hash="", base_license="",
                    frames=5, width=32, height=32, fps=8)  # fmt: skip
    assert lora_workflow(card, "x.safetensors", "a star") == ""


def test_it_is_listed_with_its_licence_and_what_it_lacks(flow, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no hub"))
    shutil.copytree(flow, tmp_path / "models" / "whole")
    shutil.copytree(flow, tmp_path / "models" / "author" / "torn")
    shutil.rmtree(tmp_path / "models" / "author" / "torn" / "vae")
    found = {model.name: model for model in find_models(folders=[tmp_path / "models"])}
    assert found["whole"].ready and found["whole"].licence == FAMILY.licence
    assert found["author/torn"].missing == ("vae",)
    assert "13.3 hours on a clock" in QUALITY_PRESETS["normal"].about(found["whole"].speed)


def test_a_card_preset_is_the_familys(flow):
    for model in ("flow", str(flow)):
        config = load_config(overrides={"model": model}, card=12)
        assert (config.data.height, config.lora.rank, config.data.frames) == (48, 2, 5)


def test_its_memory_is_estimated_without_its_files(flow, capsys):
    options = ["--family", "flow", "--card", "8", "--adversarial.features=efficientnet-lite0"]
    assert main(["preflight", "--estimate", *options]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^Peak memory +0\.\d\d GiB$", shown, re.MULTILINE)
    assert "The run fits a card with 8 GB." in shown


def test_a_run_goes_on_from_its_checkpoint(run):
    assert main(["resume", str(run.path), "--steps=4"]) == 0
    assert [step["step"] for step in read_events(run.events_path, "step")] == [1, 2, 3, 4]


@torch.no_grad()
def test_text_past_the_end_of_a_prompt_is_zero_and_counts_for_nothing(flow):
    model = load_model(str(flow))
    states = model.encode_text(["a red star", "a blue circle moving up"])
    assert (states[0, 4:] == 0).all() and (states[0, :4] != 0).any(-1).all()
    vectors = model.pooled_text(["a red star", "a blue circle moving up"])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2))
