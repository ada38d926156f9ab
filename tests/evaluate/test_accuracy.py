from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.mini.networks import Judge
from trainer.mini.words import COLOURS, MOTIONS, SHAPES, parse_caption

CAPTIONS = ["a red star growing", "a green square", "a blue square moving up", "a poem"]


class Knowing(Judge):
    """A judge of clips whose first value is the number of their caption: it knows the truth."""

    def __init__(self, captions: list[str]) -> None:
        super().__init__()
        self.captions = captions

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        found = [parse_caption(self.captions[int(clip.flatten()[0])]) for clip in pixels]
        sizes = {"shape": len(SHAPES), "colour": len(COLOURS), "motion": len(MOTIONS)}
        return {
            name: torch.stack([torch.eye(size)[p[name] or 0] for p in found])
            for name, size in sizes.items()
        }


def clips(numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None, None, None].expand(
        -1, 3, 2, 4, 4
    )


def shares(captions: list[str], numbers: list[int]) -> dict[str, float]:
    """Mean hits of clips that show the captions ``numbers``, by attribute."""
    hits = Knowing(captions).hits(clips(numbers), captions)
    return {name: float(np.nanmean(found)) for name, found in hits.items()}


def test_clips_that_show_their_captions_are_all_right():
    found = shares(CAPTIONS, [0, 1, 2, 3])
    assert found == {"colour": 1.0, "shape": 1.0, "motion": 1.0}


def test_each_attribute_counts_for_itself():
    captions = ["a red star growing", "a red square growing", "a blue star shrinking"]
    found = shares(captions, [0, 0, 0])
    assert found == pytest.approx({"colour": 2 / 3, "shape": 2 / 3, "motion": 2 / 3})
    found = shares(captions, [1, 1, 1])
    assert found == pytest.approx({"colour": 2 / 3, "shape": 1 / 3, "motion": 2 / 3})


def test_attributes_that_a_caption_does_not_name_are_not_counted():
    hits = Knowing(CAPTIONS).hits(clips([2, 2, 2, 2]), CAPTIONS)
    assert [str(v) for v in hits["motion"]] == ["0.0", "nan", "1.0", "nan"]
    assert [str(v) for v in hits["colour"]] == ["0.0", "0.0", "1.0", "nan"]


def test_more_clips_than_one_batch_keep_their_order():
    captions = [f"a {COLOURS[i % 6]} {SHAPES[i % 5]} {MOTIONS[i % 8]}" for i in range(70)]
    found = shares(captions, list(range(70)))
    assert found == {"colour": 1.0, "shape": 1.0, "motion": 1.0}


def test_counts_that_differ_are_named():
    with pytest.raises(ValueError, match="2 clips came with 4 captions"):
        Knowing(CAPTIONS).hits(clips([0, 1]), CAPTIONS)
