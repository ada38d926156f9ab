"""The metadata holds every promised key, as strings, and the thumbnail stays small."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.lora.metadata import (
    THUMBNAIL_BYTES,
    LoraCard,
    build_metadata,
    thumbnail_data_uri,
    with_hashes,
)
from trainer.lora.pairs import LoraError, LoraPair

PROMISED = {
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "modelscope/lora",
    "modelspec.implementation": "diffusers",
    "modelspec.title": "Ink",
    "modelspec.resolution": "256x192",
    "modelspec.date": "2024-05-06T07:08:09+00:00",
    "modelspec.author": "Ada",
    "modelspec.license": "CC-BY-NC-4.0",
    "modelspec.usage_hint": "4 steps, sampler lcm, CFG 1, 16 frames; trigger: inkstyle",
    "modelspec.trigger_phrase": "inkstyle",
    "ss_network_dim": "2",
    "ss_network_alpha": "4",
    "ss_steps": "300",
    "ss_seed": "7",
    "ss_learning_rate": "5e-06",
    "ss_base_model_version": "ModelScope 1.7b",
    "mcm.version": "1",
    "mcm.family": "modelscope",
    "mcm.base_model": "ModelScope 1.7b",
    "mcm.base_hash": "ab" * 32,
    "mcm.base_license": "CC-BY-NC-4.0",
    "mcm.steps": "4",
    "mcm.steps_allowed": "1,2,4,8",
    "mcm.strength": "1.0",
    "mcm.guidance_scale": "1.0",
    "mcm.sampler": "lcm",
    "mcm.timestep_scaling": "4.0",
    "mcm.original_steps": "50",
    "mcm.frames": "16",
    "mcm.width": "256",
    "mcm.height": "192",
    "mcm.fps": "8",
    "mcm.trigger": "inkstyle",
}


def card(**changes: object) -> LoraCard:
    fields: dict = {
        "title": "Ink",
        "family": "modelscope",
        "base_model": "ModelScope 1.7b",
        "base_hash": "ab" * 32,
        "base_license": "CC-BY-NC-4.0",
        "frames": 16,
        "width": 256,
        "height": 192,
        "fps": 8,
        "trigger": "inkstyle",
        "author": "Ada",
        "train_steps": 300,
        "seed": 7,
        "learning_rate": 5e-6,
        "date": "2024-05-06T07:08:09+00:00",
    }
    return LoraCard(**{**fields, **changes})


def pair(rank: int = 2, alpha: float = 4.0) -> LoraPair:
    return LoraPair(torch.ones(rank, 3), torch.ones(3, rank), alpha)


def test_every_promised_key_is_there_as_a_string() -> None:
    tags = {"ink": {"inkstyle": 12, "ein Fuß": 1}}
    found = build_metadata(
        card(tag_frequency=tags, thumbnail="data:image/jpeg;base64,"), {"a": pair()}
    )
    assert {key: found.get(key) for key in PROMISED} == PROMISED
    assert found["modelspec.thumbnail"] == "data:image/jpeg;base64,"
    assert json.loads(found["ss_tag_frequency"]) == tags
    assert all(isinstance(value, str) and value for value in found.values())


def test_empty_entries_are_left_out_and_own_licence_wins() -> None:
    found = build_metadata(card(trigger="", author="", license="CC0-1.0"), {"a": pair()})
    assert "modelspec.trigger_phrase" not in found
    assert "modelspec.thumbnail" not in found
    assert "mcm.trigger" not in found
    assert "trigger" not in found["modelspec.usage_hint"]
    assert found["modelspec.license"] == "CC0-1.0"
    assert found["mcm.base_license"] == "CC-BY-NC-4.0"


def test_mixed_ranks_are_called_dynamic() -> None:
    found = build_metadata(card(), {"a": pair(2), "b": pair(4)})
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("Dynamic", "4")


def test_bad_steps_and_a_bad_thumbnail_are_refused() -> None:
    with pytest.raises(LoraError, match="`steps`=5; allowed are 1, 2, 4, 8"):
        build_metadata(card(steps=5), {"a": pair()})
    with pytest.raises(LoraError, match="must be a data URI"):
        build_metadata(card(thumbnail="poster.jpg"), {"a": pair()})


def test_hash_does_not_depend_on_metadata_or_key_order() -> None:
    tensors = {"b": torch.arange(4.0), "a": torch.ones(2, dtype=torch.float16)}
    one = with_hashes({}, tensors)
    two = with_hashes({"x": "y"}, dict(sorted(tensors.items())))
    assert one["sshs_model_hash"] == two["sshs_model_hash"]
    assert one["modelspec.hash_sha256"] == "0x" + one["sshs_model_hash"]
    changed = with_hashes({}, {**tensors, "b": torch.arange(1.0, 5.0)})
    assert changed["sshs_model_hash"] != one["sshs_model_hash"]


def opened(uri: str) -> tuple[Image.Image, int]:
    head, _, body = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    raw = base64.b64decode(body)
    return Image.open(BytesIO(raw)), len(raw)


def test_thumbnail_is_a_small_jpeg_from_any_source(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 600, 3), dtype=np.uint8)
    picture, size = opened(thumbnail_data_uri(noise))
    assert (picture.format, picture.size, picture.mode) == ("JPEG", (256, 128), "RGB")
    assert size <= THUMBNAIL_BYTES
    alpha = Image.new("RGBA", (40, 30), (255, 0, 0, 128))
    alpha.save(tmp_path / "a.png")
    assert opened(thumbnail_data_uri(tmp_path / "a.png"))[0].size == (40, 30)
    assert opened(thumbnail_data_uri(alpha))[0].mode == "RGB"


def test_tags_of_long_captions_never_outgrow_a_header() -> None:
    """2600 captions of 1760 letters, as captioning models write them: 4.5 MB of tags."""
    from trainer.lora.metadata import TAG_BYTES, TAG_LETTERS, capped_tags

    tags = {f"number {i} " + "long words " * 160: 1 for i in range(2600)} | {"common": 9}
    found = capped_tags({"style": tags})["style"]
    assert next(iter(found)) == "common" and found["common"] == 9
    assert max(len(tag) for tag in found) <= TAG_LETTERS + 3
    assert len(json.dumps(found)) < 1.1 * TAG_BYTES
    assert capped_tags({"style": {"a": 2, "b": 1}}) == {"style": {"a": 2, "b": 1}}
