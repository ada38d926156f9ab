"""The two networks that look at the drawn world, untrained or with cells set by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minimaker import scene_networks, scene_tracks
from minimaker.clips import save_weights
from minimaker.scene_clips import (
    SceneClips,
    cached_decoded,
    cell_labels,
    dense_batch,
    dense_loss,
    render_scenes,
)
from minimaker.scene_networks import judge_accuracy, train_judge, train_reader
from minimaker.scene_tracks import cached_tracks, simulated_tracks
from minimaker.scenes import caption_scene
from trainer.mini import reading
from trainer.mini.reading import (
    build_reader,
    build_scene_judge,
    caption_cost,
    load_reader,
    load_scene_judge,
)
from trainer.mini.sentences import COLOURS, SHAPES
from trainer.mini.tracks import (
    SHIFTS,
    colour_tracks,
    colour_weights,
    ground_profile,
    on_ground,
    turned_profile,
)
from trainer.models.tiny_vae import TinyVae

PAIR = "a red circle moving left and a blue star growing"
SURE = 8.0


def _pixels(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _logits(labels: torch.Tensor) -> torch.Tensor:
    """Cells (..., 12, 16, 16) of a network that is sure of ``labels`` (..., 16, 16)."""
    kind = labels.long() - 1
    parts = [2.0 * (labels > 0)[..., None] - 1]
    for index, words in ((kind // len(COLOURS), SHAPES), (kind % len(COLOURS), COLOURS)):
        parts.append(torch.nn.functional.one_hot(index.clamp(min=0), len(words)))
    return SURE * torch.cat(parts, dim=-1).movedim(-1, -3).float()


def _scene_logits(text: str, seed: int = 0, frames: int = 17) -> torch.Tensor:
    scene = caption_scene(text, np.random.default_rng(seed), frames)
    return _logits(torch.from_numpy(cell_labels(scene)))


def test_the_reader_has_the_promised_maps():
    reader = build_reader()
    maps = reader.stages(_pixels(2, 3, 128, 128))
    sizes = zip(reader.channels, (32, 16, 8, 4), strict=True)
    assert [tuple(m.shape) for m in maps] == [(2, width, side, side) for width, side in sizes]
    assert reader.dense(_pixels(2, 3, 128, 128)).shape == (2, 12, 16, 16)
    assert sum(p.numel() for p in reader.parameters()) <= 400_000


def test_frames_of_a_batch_do_not_touch_each_other_and_all_get_gradients():
    reader, pixels = build_reader().train(), _pixels(3, 3, 128, 128).requires_grad_()
    cost = reader.score(pixels, ["a red star", "a blue cross and a white star", "a green circle"])
    alone = reader.score(pixels[1:2], ["a blue cross and a white star"])
    assert torch.allclose(cost[1:2], alone, atol=1e-4)
    cost.sum().backward()
    assert pixels.grad is not None and (pixels.grad.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        "a red star and a blue circle",
        "a red circle and a green star",
        "a white circle and a blue star",
        "a red circle and a blue cross",
    ],
)
def test_a_true_caption_costs_least(wrong):
    cells = _scene_logits("a red circle and a blue star", frames=1)
    told = caption_cost(cells.repeat(3, 1, 1, 1), ["a red circle and a blue star", wrong, "fog"])
    assert told[0] < 0.05 and told[1] > 10 * told[0] + 0.5 and told[2] == 0
    assert caption_cost(cells, ["a blue star"]) < 0.05


def test_what_is_not_there_costs_its_presence():
    nothing = _logits(torch.zeros(1, 16, 16, dtype=torch.uint8))
    nothing[:, 1] = nothing[:, 6] = SURE  # every cell would be a red circle, were it anything
    assert caption_cost(nothing, ["a red circle"]) > 2


def test_a_frame_is_read_as_its_captions_cost_asks():
    reader = build_reader()
    pixels, text = _pixels(1, 3, 128, 128) * 0.1, ["a red star"]
    before = float(reader.score(pixels, text).detach())
    for _ in range(6):
        pixels = pixels.detach().requires_grad_()
        reader.score(pixels, text).sum().backward()
        assert pixels.grad is not None
        pixels = pixels - 0.05 * pixels.grad.sign()
    assert float(reader.score(pixels, text).detach()) < before


@pytest.mark.parametrize("look", ["score", "hits"])
def test_one_caption_a_picture_is_asked_for(look):
    with pytest.raises(ValueError, match="2 (frames|clips) came with 1 .*give one per"):
        if look == "score":
            build_reader().score(_pixels(2, 3, 128, 128), ["a red star"])
        else:
            build_scene_judge().hits(_pixels(2, 3, 1, 128, 128), ["a red star"])


@pytest.mark.parametrize("frames", [1, 2, 5, 17])
def test_the_judges_features_have_the_promised_shapes(frames):
    judge, clips = build_scene_judge().eval(), _pixels(2, 3, frames, 128, 128)
    assert judge.read(clips).shape == (2, frames, 12, 16, 16)
    assert judge.video_features(clips).shape == (2, 64)
    assert judge.frame_features(clips[:, :, 0]).shape == (2, 64)
    assert sum(p.numel() for p in judge.parameters()) <= 500_000
    alone = judge.video_features(clips[1:])
    assert torch.allclose(judge.video_features(clips)[1:], alone, atol=1e-4)


def test_tracks_follow_each_colour_alone():
    scene = caption_scene(PAIR, np.random.default_rng(3))
    labels = torch.from_numpy(cell_labels(scene))
    tracks = colour_tracks(colour_weights(_logits(labels)[None]))[0]
    for track in scene.tracks:
        seen = tracks[COLOURS.index(track.thing.colour)]
        middle = scene.on_screen(track)[4:-4]  # whole in the frame
        assert np.abs(seen[4:-4, :2].numpy() - middle).max() < 0.04
        assert seen[:, 3].all()
    assert not tracks[COLOURS.index("green")].any()
    growth = tracks[COLOURS.index("blue"), :, 2]
    assert growth[-1] - growth[0] > 1


def test_a_pan_is_taken_off_a_track():
    steps = torch.arange(9.0)
    still = torch.stack((0.7 - 0.02 * steps, 0 * steps + 0.4, 0 * steps + 2, 0 * steps + 1), dim=1)
    moved = on_ground(still[None], torch.tensor([[0.02, 0.0]]))
    assert moved[..., :3].abs().max() < 1e-5
    assert on_ground(still[None], torch.zeros(1, 2))[..., 0].abs().max() > 0.3


@pytest.mark.parametrize(("across", "down"), [(2, 0), (-3, 0), (0, 2), (0, -3), (0, 0)])
def test_the_ground_agrees_where_the_camera_has_gone(across, down):
    ground = torch.nn.functional.avg_pool2d(_pixels(1, 3, 512, 512), 8, 2, 3)
    frames = [ground.roll((-down * f, -across * f), (2, 3))[:, :, 60:188, 60:188] for f in range(7)]
    clip = torch.stack(frames, dim=2)
    nothing = torch.full((1, 7, 12, 16, 16), -SURE)
    profiles = ground_profile(clip, nothing)
    profile = profiles[0]
    ways = 2 * len(SHIFTS)
    differ = profile[ways : 2 * ways].unflatten(0, (2, -1))
    axis = 1 if down else 0
    assert SHIFTS[int(differ[axis].argmin())] == -(across + down)
    if across or down:
        assert SHIFTS[int(profile[:ways].unflatten(0, (2, -1))[axis].argmax())] == -(across + down)
    for number, mirrored in enumerate((clip.flip(4), clip.flip(3))):
        turned = turned_profile(profiles, torch.tensor([True]), number)
        assert torch.allclose(turned, ground_profile(mirrored, nothing), atol=1e-3)


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> tuple[reading.SceneJudge, SceneClips]:
    """A judge whose cells are set by hand, and whose small networks have learnt a little."""
    work = tmp_path_factory.mktemp("heads")
    clips = render_scenes(5, 36, ["random"])
    truth = _logits(clips.cells)
    judge = build_scene_judge().eval()

    def few(pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, :, 8, ::16, ::16].flatten(1)

    known = few(clips.pixels())

    def read(pixels: torch.Tensor) -> torch.Tensor:
        return truth[torch.cdist(few(pixels), known).argmin(1)]

    judge.read = read  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_tracks, "render_scenes", lambda *_: clips)
        patch.setattr(scene_tracks, "CHUNK", len(clips))
        patch.setattr(scene_networks, "HEAD_STEPS", 250)
        seen = cached_tracks(work / "tracks.safetensors", judge, 5, len(clips), ["random"])
        scene_networks._train_heads(judge, seen, simulated_tracks(6, 500), work, 1)
    return judge.eval(), clips


def test_two_things_are_read_apart_and_the_pan_is_told(taught):
    judge, clips = taught
    hits = judge.hits(clips.pixels(), clips.captions)
    two = np.array([" and " in text for text in clips.captions])
    assert (hits["colour"] == 1).all() and (hits["shape"] == 1).all()
    assert (hits["both"][two] == 1).all() and np.isnan(hits["both"][~two]).all()
    assert np.nanmean(hits["motion"]) > 0.85 and hits["camera"].mean() > 0.85


def test_wrong_captions_are_seen(taught):
    judge, clips = taught
    row = next(i for i, text in enumerate(clips.captions) if " and " in text)
    first, second = reading.parse_sentence(clips.captions[row])[0]
    said = {
        "swapped": f"a {second.colour} {first.shape} and a {first.colour} {second.shape}",
        "half": f"a {first.colour} {first.shape} and a {second.colour} {first.shape}",
        "nothing": "a cat",
    }
    pixels = clips.pixels(slice(row, row + 1)).expand(3, -1, -1, -1, -1)
    hits = judge.hits(pixels, list(said.values()))
    assert hits["colour"][:2].tolist() == [1, 1] and hits["shape"][:2].tolist() == [0, 0.5]
    assert hits["both"][:2].tolist() == [0, 0] and np.isnan(hits["motion"][:2]).all()
    assert all(np.isnan(values[2]) for values in hits.values())
    absent = next(c for c in COLOURS if c not in (first.colour, second.colour))
    pair = f"a {first.colour} {first.shape} growing and a {absent} {second.shape} growing"
    hits = judge.hits(pixels[:1], [pair])
    assert hits["colour"] == 0.5 and hits["shape"] == 0.5 and hits["both"] == 0


def test_simulated_tracks_are_what_a_sure_network_sees():
    drawn = simulated_tracks(2, 40)
    assert drawn.tracks.shape[1:] == (17, 4) and torch.isfinite(drawn.tracks).all()
    scene = caption_scene("a red circle moving left", np.random.default_rng(3))
    seen = colour_tracks(colour_weights(_logits(torch.from_numpy(cell_labels(scene)))[None]))[0, 0]
    disc = torch.from_numpy(scene_tracks._disc(scene, scene.tracks[0])).float()
    assert (seen[:, :2] - disc[:, :2]).abs().max() < 0.03
    assert (seen[:, 2] - disc[:, 2]).abs().max() < 0.6


def test_a_step_of_training_is_taken_from_cells_that_fit_the_frame():
    clips = render_scenes(1, 6, ["public", "random"], 2)
    generator = torch.Generator().manual_seed(4)
    pixels, cells = dense_batch(clips, torch.arange(6), generator)
    assert pixels.shape == (6, 3, 1, 128, 128) and cells.shape == (6, 16, 16)
    assert dense_loss(_logits(cells), cells)[1] == {"presence": 1, "shape": 1, "colour": 1}
    assert dense_loss(_logits(cells).roll(3, 1), cells)[0] > 1


@pytest.mark.parametrize("name", ["reader", "judge"])
def test_training_resumes_to_the_same_weights_with_and_without_an_autoencoder(
    name, tmp_path, monkeypatch
):
    small = {"RENDERED": 12, "DECODED": 2, "KEPT": 2, "BATCH": 4, "WATCHED": 2, "SIMULATED": 20}
    for constant, value in {**small, "HEAD_STEPS": 2}.items():
        monkeypatch.setattr(scene_networks, constant, value)
    torch.manual_seed(0)
    vae = TinyVae((8, 8, 8, 8), 8).eval()
    train = train_reader if name == "reader" else train_judge
    straight = train(tmp_path, vae, 3)
    saved = train(tmp_path, vae, 3)  # nothing left to do: read back from the folder
    for key, value in straight.state_dict().items():
        assert torch.equal(value, saved.state_dict()[key]), key
    stages = {file.stem for file in tmp_path.glob("*.pt")}
    assert {name, f"{name}_decoded"} <= stages and (tmp_path / f"{name}.jsonl").is_file()


def test_decoded_clips_are_kept_in_a_file(tmp_path):
    torch.manual_seed(0)
    vae, file = TinyVae((8, 8, 8, 8), 8).eval(), tmp_path / "clips.safetensors"
    first = cached_decoded(file, vae, 1, 2, ["random"], 3)
    again = cached_decoded(file, vae, 9, 2, ["random"], 3)
    assert first.frames.shape == (2, 3, 128, 128, 3) and torch.equal(first.frames, again.frames)
    assert first.captions == again.captions == render_scenes(1, 2, ["random"]).captions


def test_accuracy_has_a_share_for_each_word():
    found = judge_accuracy(build_scene_judge().eval(), ["random"], 4, seed=1)
    assert set(found) == set(reading.READ)
    assert all(0 <= value <= 1 for value in found.values() if not np.isnan(value))


@pytest.mark.parametrize(
    ("build", "load", "file"),
    [
        (build_reader, load_reader, reading.READER_FILE),
        (build_scene_judge, load_scene_judge, reading.JUDGE_FILE),
    ],
)
def test_weights_are_stored_and_missing_ones_say_what_to_run(build, load, file, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{file} are missing. Run `python -m"):
        load(tmp_path)
    net = build(7).eval()
    save_weights(net, tmp_path / file)
    loaded, pixels = load(tmp_path), _pixels(1, 3, 128, 128)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert torch.allclose(loaded.dense(pixels), net.dense(pixels), atol=2e-2)
