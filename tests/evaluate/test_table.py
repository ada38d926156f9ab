from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minimaker.looks import STYLES, write_style_folder
from minimaker.truth import true_worlds
from trainer.evaluate.rows import MEASURES
from trainer.evaluate.table import Evaluation, EvaluationResult, evaluate
from trainer.families import load_model
from trainer.lora.adapter import add_lora, lora_state
from trainer.lora.export import kohya_tensors
from trainer.lora.pairs import LoraPair
from trainer.mini.words import style_folder
from trainer.sheets import contact_sheet

PROMPTS = ["a red star growing", "a blue square circling", "a green cross moving up"]


@pytest.fixture(scope="module")
def folder(untrained_folder, tmp_path_factory):
    """A style folder, a prompts file and a LoRA for the untrained model."""
    root = tmp_path_factory.mktemp("inputs")
    write_style_folder(root / "style", STYLES["ink"], 4, 64, seed=0)
    (root / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    unet = load_model(str(untrained_folder)).network
    add_lora(unet, rank=2, alpha=2)
    draw = torch.Generator().manual_seed(0)
    pairs = {
        path: LoraPair(pair.down, 0.3 * torch.randn(pair.up.shape, generator=draw), pair.alpha)
        for path, pair in lora_state(unet).items()
    }
    metadata = {"mcm.timestep_scaling": "5.0", "mcm.original_steps": "40"}
    metadata["mcm.family"] = "modelscope"
    save_file(kohya_tensors(pairs), root / "student.safetensors", metadata)
    return root


@pytest.fixture(scope="module")
def model(untrained_folder):
    return load_model(str(untrained_folder))


def measured(model, folder, **options) -> EvaluationResult:
    small = {"steps": (1, 2), "teacher_steps": 1, "count": 2, "features": "efficientnet-lite0"}
    return evaluate(model, Evaluation(prompts=folder / "prompts.txt", **{**small, **options}))


@pytest.fixture(scope="module")
def result(model, folder) -> EvaluationResult:
    return measured(model, folder, lora=folder / "student.safetensors", style=folder / "style")


def test_a_model_without_a_judge_gets_every_measure_that_needs_none(result):
    assert [(row["method"], row["steps"]) for row in result.rows] == [
        ("teacher", 1),
        ("student", 1),
        ("student", 2),
    ]
    missing = {"colour", "shape", "motion", "fd_video", "fd_style", "watermark", "clipsim"}
    missing |= {"flow_style_ratio", "both", "camera"}
    for row in result.rows[1:]:
        assert {name for name in MEASURES if row[name] is None} == missing
        for name in set(MEASURES) - missing:
            low, high = row[f"{name}_ci"]
            assert np.isfinite([low, row[name], high]).all() and low <= high
    assert result.rows[0]["fd_teacher"] is None and result.rows[0]["flow_ratio"] == 1.0


def test_the_meta_says_what_was_measured_with_what(result, model):
    meta = result.meta
    assert meta["features"]["name"] == "efficientnet-lite0"
    assert len(meta["features"]["sha256"]) == 64
    assert meta["model"]["sha256"] == model.base_hash
    assert meta["lora"]["name"] == "student.safetensors" and len(meta["lora"]["sha256"]) == 64
    assert meta["style"] == {"name": "style", "images": 4}
    assert meta["count"] == 2 and meta["seed"] == 0
    assert meta["student"]["timestep_scaling"] == 5.0 and meta["student"]["original_steps"] == 40


def test_the_table_is_saved_whole_and_printed_aligned(result, tmp_path):
    result.save(tmp_path / "out.json")
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found == {"rows": result.rows, "meta": result.meta}
    head, *lines, note = result.text().splitlines()
    assert head.split()[:3] == ["method", "steps", "style_kid"] and "colour" not in head
    assert len({len(line) for line in (head, *lines)}) == 1 and len(lines) == 3
    assert "efficientnet-lite0" in note and "[" in result.text(intervals=True)


def test_examples_are_ready_to_be_drawn(result):
    assert [len(columns) for _, columns in result.examples] == [3, 3]
    labels = [label for label, _ in result.examples[0][1]]
    assert labels == ["teacher, 1 step", "student, 1 step", "student, 2 steps"]
    assert contact_sheet(result.examples).width > 8 * 64


def test_the_lora_changes_the_student_alone_and_is_taken_out_again(
    result, model, folder, untrained_folder
):
    fresh = load_model(str(untrained_folder)).network.state_dict()
    assert all(torch.equal(fresh[k], v) for k, v in model.network.state_dict().items())
    bare = measured(model, folder, steps=(1,))
    assert bare.rows[0]["flow"] == result.rows[0]["flow"]
    for (_, base), (_, adapted) in zip(bare.examples, result.examples, strict=True):
        np.testing.assert_array_equal(base[0][1], adapted[0][1])
        assert (base[1][1] != adapted[1][1]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": None}, "'untrained' needs `prompts`"),
        ({"steps": ()}, r"`steps`=\(\)"),
        ({"steps": (0, 1)}, "must be 1 or more"),
        ({"count": 1}, "`count`=1"),
        ({"features": "i3d"}, "`features`='i3d' is not a feature network"),
    ],
)
def test_bad_input_is_named_before_anything_is_sampled(model, folder, options, message):
    told: list[str] = []
    given = {"prompts": folder / "prompts.txt", "features": "efficientnet-lite0", **options}
    with pytest.raises(ValueError, match=message):
        evaluate(model, Evaluation(**given), lambda what, done, total: told.append(what))
    assert not told


def test_the_mini_model_is_measured_by_its_judge_against_true_clips():
    told: list[tuple[str, int, int]] = []
    asked = Evaluation(
        style=style_folder("poster"),
        worlds=true_worlds(style_folder("poster")),
        steps=(2,),
        teacher_steps=6,
        count=12,
    )
    result = evaluate(load_model("mini"), asked, lambda *what: told.append(what))
    assert result.meta["features"]["name"] == "mini-judge"
    teacher, student = result.rows
    missing = {"clipsim", "both", "camera"}
    assert {name for name in MEASURES if teacher[name] is None} == {"fd_teacher", *missing}
    assert {name for name in MEASURES if student[name] is None} == missing
    public, styled = result.meta["references"]
    assert (public["method"], styled["method"]) == ("public video", "style video")
    assert min(public["colour"], styled["colour"], public["motion"], styled["motion"]) > 0.6
    assert styled["style_kid"] < public["style_kid"]
    assert styled["fd_style"] < public["fd_style"] and public["fd_video"] < styled["fd_video"]
    assert teacher["colour"] > 0.5, "the teacher follows the colour word"
    assert ("teacher, 6 steps", 12, 12) in told and ("student, 2 steps", 12, 12) in told
