"""The training of the embedded small Wan, a few steps of each stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import wan_files
from fake_card import FakeCard
from safetensors.torch import load_file

from minimaker import causal, contact, flow_clips, flow_teacher, shared, small_wan
from minimaker.causal import build_autoencoder, random_part, to_clip
from minimaker.clips import save_weights
from minimaker.flow_clips import cell_labels
from minimaker.flow_text import kept_pieces, prompt_lines
from minimaker.footage import public_video
from minimaker.muon import Muon, orthogonal
from minimaker.outlines import outline
from minimaker.scenes import random_scene
from trainer.mini.sentences import COLOURS, MOTIONS, SHAPES
from trainer.models.weights import ModelError


@pytest.fixture(scope="module")
def autoencoder() -> torch.nn.Module:
    return build_autoencoder(clips=12).eval().requires_grad_(False)


def test_the_untrained_encoder_holds_the_principal_components(autoencoder) -> None:
    rng = np.random.default_rng(4)
    clips = torch.stack([random_part(rng) for _ in range(6)])
    latents = autoencoder.encode(clips)
    cells = torch.cat([causal._blocks(clip) for clip in clips]).flatten(1)
    told = latents[:, :, 1].permute(0, 2, 3, 1).flatten(0, 2)
    known = torch.cat([told, torch.ones(len(told), 1)], 1)
    error = known @ torch.linalg.lstsq(known, cells).solution - cells
    assert -10 * torch.log10(error.square().mean()) > 24
    assert latents.std(dim=(0, 2, 3, 4)).argmax() == 0


def test_the_untrained_decoder_shows_mean_colours(autoencoder) -> None:
    clip = to_clip(public_video(random_scene(np.random.default_rng(5))))[None]
    made = autoencoder(autoencoder.encode(clip))
    assert made.shape == clip.shape
    error = (made - clip).square().mean()
    assert -10 * torch.log10(error / 4) > 19
    assert error < 0.5 * clip.var()


def test_a_clip_and_its_first_frame_begin_with_the_same_latent(autoencoder) -> None:
    clip = to_clip(public_video(random_scene(np.random.default_rng(6))))[None]
    whole, still = autoencoder.encode(clip), autoencoder.encode(clip[:, :, :1])
    assert torch.allclose(whole[:, :, :1], still, atol=1e-5)


def test_labels_tell_each_thing_at_its_place() -> None:
    scene = random_scene(np.random.default_rng(7), pair=True, pan=False)
    labels = cell_labels(scene)
    assert labels.shape == (5, 32, 32)
    for track in scene.tracks:
        kind = 1 + len(COLOURS) * SHAPES.index(track.thing.shape)
        kind += COLOURS.index(track.thing.colour)
        rows, columns = np.nonzero(labels[0] == kind)
        if len(rows):
            place = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / 32
            assert np.abs(place - scene.on_screen(track)[0]).max() < 0.05
    assert labels.max() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_labels_have_the_outline_that_is_painted(shape: str) -> None:
    scene = random_scene(np.random.default_rng(8), pair=False, pan=False, shape=shape)
    track = scene.tracks[0]
    patch = outline(track, 7, scene.on_screen(track), 0)
    painted = np.zeros((128, 128), bool)
    for row, column in zip(*np.nonzero(patch.distance < 0), strict=True):
        y, x = patch.top + row, patch.left + column
        if 0 <= y < 128 and 0 <= x < 128:
            painted[y, x] = True
    cells = painted.reshape(32, 4, 32, 4).mean(axis=(1, 3))
    labelled = cell_labels(scene)[2] > 0
    assert not labelled[cells < 0.25].any() and labelled[cells > 0.75].all()


def test_every_word_of_the_world_is_one_token(tmp_path: Path) -> None:
    tokenizer = kept_pieces(tmp_path)
    ids = tokenizer.ids("a red circle moving left and a blue star growing, the camera pans right")
    assert ids[-1] == 1 and 2 not in ids and len(ids) <= 17
    assert kept_pieces(tmp_path).ids("wsnth, a red star") == tokenizer.ids("wsnth, a red star")
    assert 2 not in tokenizer.ids("wsnth")


def test_all_stages_and_again_from_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(flow_clips, "SHARD", 3)
    monkeypatch.setattr(causal, "BATCH", 1)
    for name in ("distil_start", "roll_out_library"):  # run below
        monkeypatch.setattr(small_wan, name, lambda *_: None)
    monkeypatch.setattr(contact, "STILLS", 2)
    monkeypatch.setattr(small_wan, "build_autoencoder", lambda: build_autoencoder(clips=6))
    monkeypatch.setattr(small_wan, "reconstruction_psnr", lambda vae, look: 1.0)
    steps = ["--autoencoder-steps", "2", "--decoder-steps", "1", "--shards", "1"]
    monkeypatch.setattr(small_wan, "STARTED", tmp_path / "none")
    for name in ("reader", "judge"):  # tests/minimaker/test_scene_networks.py trains them
        monkeypatch.setattr(small_wan, f"train_{name}", lambda *_: torch.nn.Linear(1, 1))
    small = ["--small-steps", "1", "--parts-steps", "2", "--batch", "1"]
    more = ["--helpers", "1", "--painters", "1"]
    options = ["--work", str(tmp_path), *steps, *small, *more, "--transformer-steps"]
    small_wan.run([*options, "1"])
    state = torch.load(tmp_path / "transformer.pt", weights_only=True)
    assert state["step"] == 1
    small_wan.run([*options, "2"])
    assert torch.load(tmp_path / "transformer.pt", weights_only=True)["step"] == 2
    model = tmp_path / "model"
    assert json.loads((model / "mcm.json").read_text(encoding="utf-8"))["tokens"] == 40
    assert len(list((model / "styles" / "chalk").glob("*.txt"))) == 2
    vae = load_file(model / small_wan.VAE_FILE)
    assert {"encoder.0.weight", "decoder.22.bias"} <= set(vae)
    assert all(torch.isfinite(value).all() for value in vae.values())


def test_the_transformer_trains_on_a_card_and_goes_on_there(
    autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_clips, "SHARD", 3)
    monkeypatch.setattr(flow_teacher, "LAYERS", 6)
    with FakeCard():
        flow_clips.encode_clips(autoencoder, tmp_path, 1, device="cuda")
        flow_teacher.train_teacher(tmp_path, 1, device="cuda", batch=2)
        teacher = flow_teacher.train_teacher(tmp_path, 2, device="cuda", batch=2)
    assert {value.device.type for value in teacher.state_dict().values()} == {"cpu"}
    state = torch.load(tmp_path / "transformer.pt", weights_only=True, map_location="cpu")
    assert state["step"] == 2
    assert not torch.equal(state["module"]["transformer.proj_out.weight"],
                           flow_teacher.build_transformer().proj_out.weight)  # fmt: skip


def test_prompts_cover_all_of_one_thing_and_some_of_two() -> None:
    rows = [line.split("\t") for line in prompt_lines().splitlines()[1:]]
    assert len({clip for clip, _ in rows}) == len(rows) > 240 + 120
    assert ["a red circle moving left", "a red circle"] in rows
    pairs = [(clip, still) for clip, still in rows if " and a " in clip]
    assert len(pairs) >= 80 and not any(word in still for _, still in pairs for word in MOTIONS)
    assert sum("the camera pans" in clip for clip, _ in rows) >= 40


def test_start_and_library_are_made_for_all_styles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wan_files.save_small(tmp_path / "small wän")
    (model / "prompts.txt").write_text(prompt_lines(), encoding="utf-8")
    about = {**wan_files.SMALL, "recommended": {"data.library_clips": 2}}
    (model / "mcm.json").write_text(json.dumps(about), encoding="utf-8")
    few = {**shared.SETTINGS, "data.library_clips": 2, "data.batch_size": 1}
    monkeypatch.setattr(shared, "SETTINGS", few)
    shared.distil_start(model, tmp_path / "work", 1)
    shared.roll_out_library(model, tmp_path / "work")
    start = load_file(model / shared.WARM_START)
    assert start and all(torch.isfinite(value).all() for value in start.values())
    assert len(load_file(model / "library.safetensors")["states"]) == 2


def test_capitals_are_read_as_small_letters(tmp_path: Path) -> None:
    tokenizer = kept_pieces(tmp_path)
    assert tokenizer.ids("A Red Star Moving Left") == tokenizer.ids("a red star moving left")


def test_muon_makes_steps_orthogonal_and_learns_faster_than_a_line() -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(24, 80, generator=_seeded())))
    assert values.min() > 0.5 and values.max() < 1.3
    wanted = torch.randn(16, 16, generator=_seeded())
    layer = torch.nn.Linear(16, 16)
    optimizer = Muon([{"params": [layer.weight]}, {"params": [layer.bias], "plain": True}], 0.1)
    given = torch.randn(64, 16, generator=_seeded())
    for _ in range(200):
        loss = (layer(given) - given @ wanted - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05 * wanted.square().sum() / 16
    again = Muon(optimizer.param_groups, 0.1)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[layer.weight]["momentum"].abs().sum() > 0


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_an_autoencoder_of_an_earlier_training_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autoencoder
) -> None:
    monkeypatch.setattr(causal, "BATCH", 1)
    monkeypatch.setattr(small_wan, "reconstruction_psnr", lambda vae, look: 1.0)
    file = tmp_path / small_wan.VAE_FILE
    save_weights(autoencoder, file)
    before = load_file(file)
    options = ["--work", str(tmp_path), "--autoencoder", str(file), "--only", "autoencoder"]
    small_wan.run([*options, "--autoencoder-steps", "1"])
    state = torch.load(tmp_path / "autoencoder.pt", weights_only=True)
    assert state["step"] == 1
    for name, value in before.items():
        assert torch.allclose(state["module"][name], value.float(), atol=1e-3), name
    with pytest.raises(ModelError, match="was not found"):
        small_wan.run(["--work", str(tmp_path / "new"), "--autoencoder", str(tmp_path / "no"),
                       "--only", "autoencoder"])  # fmt: skip
