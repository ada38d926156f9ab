"""The header of a LoRA is input like any other: right values are read, all others named."""

from __future__ import annotations

import pytest

from trainer.lora.metadata import LoraCard, build_metadata
from trainer.lora.pairs import LoraError
from trainer.lora.recommended import Recommended, read_recommended

CARD = LoraCard(
    title="Stil ä",
    family="modelscope",
    base_model="mini",
    base_hash="0",
    base_license="none",
    frames=8,
    width=64,
    height=48,
    fps=7,
    steps=2,
    timestep_scaling=5.0,
    sigma_data=0.75,
    original_steps=40,
    prediction_type="v_prediction",
    trigger="wsnth ü",
)


def test_what_an_export_writes_is_read_back():
    metadata = build_metadata(CARD, {})
    found = read_recommended(metadata, "a.safetensors")
    for name in ("steps", "sigma_data", "timestep_scaling", "original_steps", "frames", "width",
                 "height", "fps", "trigger", "prediction_type", "steps_allowed"):  # fmt: skip
        assert getattr(found, name) == getattr(CARD, name), name
    assert metadata["modelspec.prediction_type"] == "v"
    assert found.sampling == {"timestep_scaling": 5.0, "sigma_data": 0.75, "original_steps": 40}


def test_a_silent_header_means_what_the_official_loras_are():
    assert read_recommended({"format": "pt"}, "a") == Recommended()
    assert Recommended().prediction_type == "epsilon" and Recommended().sigma_data == 0.5


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("steps", "four"),
        ("steps", "0"),
        ("steps", "4.5"),
        ("steps", "51"),  # more than the levels it knows
        ("steps", "9" * 400),
        ("steps_allowed", "1,2,viele"),
        ("guidance_scale", "nan"),
        ("guidance_scale", "-1"),
        ("strength", "0"),
        ("strength", "inf"),
        ("strength", "-1"),
        ("timestep_scaling", "0"),
        ("timestep_scaling", ""),
        ("sigma_data", "-0.5"),
        ("original_steps", "0"),
        ("original_steps", "1001"),
        ("frames", "-8"),
        ("width", "1e9"),
        ("height", "../x"),
        ("fps", "0"),
        ("sampler", "euler"),
        ("prediction_type", "sample"),
        ("version", "one"),
        ("trigger", "x" * 1001),
    ],
)
def test_a_value_that_cannot_be_used_is_named(key, text):
    with pytest.raises(LoraError, match=rf"`mcm\.{key}`=.* in the metadata of 'a ü.safetensors'"):
        read_recommended({f"mcm.{key}": text}, "a ü.safetensors")


def test_a_file_of_a_newer_version_says_so():
    with pytest.raises(LoraError, match="newer version of this pack .*Update"):
        read_recommended({"mcm.version": "2"}, "a")
