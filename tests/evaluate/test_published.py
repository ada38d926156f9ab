"""Networks that a user brings: a real VideoMAE and a real CLIP, of a few layers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    VideoMAEConfig,
    VideoMAEImageProcessor,
    VideoMAEModel,
)

from minimaker.looks import public_video
from minimaker.text import build_tokenizer, save_tokenizer
from minimaker.truth import PROMPTS, true_clips
from trainer.cli.main import main
from trainer.evaluate.networks import Measuring, feature_network
from trainer.evaluate.published import with_clip, with_videomae
from trainer.evaluate.truth import as_pixels, draw_prompts
from trainer.media import write_clip

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def videomae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "videomae"
    torch.manual_seed(0)
    config = VideoMAEConfig(image_size=32, patch_size=8, num_frames=16, **SMALL)
    VideoMAEModel(config).save_pretrained(folder)
    VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, resample=2
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "clip"
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(
        folder
    )
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def network() -> Measuring:
    return feature_network("efficientnet-lite0", None)


@pytest.fixture(scope="module")
def clips():
    return as_pixels(true_clips(draw_prompts(6, 0, PROMPTS), public_video, 0))


def test_videomae_sees_what_its_own_processor_shows_it(videomae, network, clips):
    found = with_videomae(network, videomae)
    ours = found.features(clips)[1]
    processor = VideoMAEImageProcessor.from_pretrained(videomae)
    model = VideoMAEModel.from_pretrained(videomae).eval()
    spread = np.linspace(0, clips.shape[2] - 1, 16).round().astype(int)
    for number, sample in enumerate(clips):
        frames = (sample[:, spread].permute(1, 2, 3, 0) * 127.5 + 127.5).round().byte().numpy()
        inputs = processor(list(frames), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            theirs = model(inputs).last_hidden_state.mean(1)[0].numpy()
        assert np.abs(ours[number] - theirs).max() < 0.02 * np.abs(theirs).max()
    assert found.also[0][0] == "videomae" and len(found.also[0][1]) == 64
    assert (found.features(clips)[0] == network.features(clips)[0]).all(), "frames as before"


def test_clipsim_is_the_mean_cosine_of_prompt_and_frames(clip, network, clips):
    prompts = draw_prompts(6, 0, PROMPTS)
    found = with_clip(network, clip)
    similar = found.similarity(clips, prompts)
    assert similar.shape == (6,) and (np.abs(similar) <= 1).all()
    still = clips[:, :, :1].expand_as(clips)
    alone = np.stack([found.similarity(clips[:, :, k : k + 1], prompts) for k in range(8)])
    np.testing.assert_allclose(similar, alone.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.similarity(still, prompts), alone[0], atol=1e-5)
    assert not np.allclose(found.similarity(clips, prompts[::-1]), similar)
    assert [name for name, _ in with_clip(with_clip(network, clip), clip).also] == ["clip"] * 2


def test_a_folder_of_something_else_is_refused(videomae, clip, network, tmp_path):
    with pytest.raises(ValueError, match="type 'clip'; 'videomae' is needed"):
        with_videomae(network, clip)
    broken = tmp_path / "broken"
    shutil.copytree(videomae, broken)
    (broken / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [1]}')
    with pytest.raises(ValueError, match="preprocessor_config.json' cannot be used"):
        with_videomae(network, broken)
    with pytest.raises(ValueError, match="is not a model folder"):
        with_clip(network, tmp_path)
    (tmp_path / "config.json").write_bytes((videomae / "config.json").read_bytes())
    with pytest.raises(ValueError, match="cannot be loaded"):
        with_videomae(network, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04not weights")
    with pytest.raises(ValueError, match="cannot be loaded"):
        with_videomae(network, tmp_path)


def test_evaluate_prints_and_writes_all_networks(
    videomae, clip, untrained_folder, tmp_path, capsys
):
    prompts = draw_prompts(3, 0, PROMPTS)
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    videos = tmp_path / "meine Vidéos"
    videos.mkdir()
    for number, frames in enumerate(true_clips(prompts, public_video, 1)):
        write_clip(frames, videos / f"{number}.mp4", 8)
    arguments = ["evaluate", "--model", str(untrained_folder), "--count", "3", "--steps", "1"]
    arguments += ["--teacher-steps", "2", "--features", "efficientnet-lite0"]
    arguments += ["--prompts", str(tmp_path / "prompts.txt"), "--videos", str(videos)]
    arguments += ["--videomae", str(videomae), "--clip", str(clip)]
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    shown = capsys.readouterr().out
    assert "clipsim" in shown and "fd_video" in shown
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    names = [n["name"] for n in found["meta"]["also_features"]]
    assert names == ["videomae", "clip"] and found["meta"]["videos"] == "meine Vidéos"
    for network in found["meta"]["also_features"]:
        assert f"{network['name']} sha256 {network['sha256'][:12]}" in shown
    for row in found["rows"]:
        assert row["clipsim_ci"][0] <= row["clipsim"] <= row["clipsim_ci"][1]
        assert row["fd_video"] > 0
