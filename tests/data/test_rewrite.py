from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.captions import read_caption, write_captions
from trainer.data.records import DataError
from trainer.data.rewrite import Rewrite, changes


@pytest.mark.parametrize(
    ("rewrite", "before", "after"),
    [
        (Rewrite("before", "ink drawing"), "a bear", "ink drawing, a bear"),
        (Rewrite("before", "ink drawing of "), "a bear", "ink drawing of a bear"),
        (Rewrite("before", "ink drawing,"), "a bear", "ink drawing, a bear"),
        (Rewrite("before", "ink drawing"), "Ink drawing, a bear", "Ink drawing, a bear"),
        (Rewrite("after", "on white"), "a bear", "a bear, on white"),
        (Rewrite("after", " on white"), "a bear", "a bear on white"),
        (Rewrite("after", "on white"), "a bear.", "a bear. on white"),
        (Rewrite("after", "on white"), "a bear, on white", "a bear, on white"),
        (Rewrite("replace", "ink", "oil"), "pink Ink, inks", "pink oil, inks"),
        (Rewrite("replace", "bär", "bear"), "ein Bär, Bären", "ein bear, Bären"),
        (Rewrite("replace", "(old)", "new"), "a (old)bear", "a newbear"),
        (Rewrite("replace", "a\\1", r"\g<0>"), "a\\1 b", r"\g<0> b"),
        (Rewrite("replace", "ink"), "a bear, ink, pink", "a bear, pink"),
        (Rewrite("trigger", trigger="ink"), "a pink bear", "[trigger], a pink bear"),
        (Rewrite("trigger", trigger="ink"), "a bear in Ink", "a bear in Ink"),
        (Rewrite("trigger", trigger="ink"), "a bear, [Trigger]", "a bear, [Trigger]"),
        (Rewrite("trigger"), "a bear", "[trigger], a bear"),
    ],
)
def test_a_caption_is_changed_once(rewrite: Rewrite, before: str, after: str) -> None:
    assert rewrite(before) == after
    if rewrite.kind != "replace":
        assert rewrite(after) == after


def test_only_what_changes_is_listed_and_empty_captions_stay_so() -> None:
    captions = [(Path("a"), "a bear"), (Path("b"), ""), (Path("c"), "ink, a fox")]
    assert changes(captions, Rewrite("before", "ink")) == [(Path("a"), "a bear", "ink, a bear")]


@pytest.mark.parametrize("kind", ["before", "after", "replace"])
def test_nothing_to_add_or_to_look_for_is_said(kind: str) -> None:
    with pytest.raises(DataError, match="nothing to (add|look for); enter the words first"):
        Rewrite(kind, "  ")  # type: ignore[arg-type]


def test_one_bad_text_among_many_leaves_all_files_as_they_were(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    write_captions([(path, "before") for path in paths])
    with pytest.raises(DataError, match="2.png holds a NUL"):
        write_captions([(paths[0], "after"), (paths[2], "a\0b")])
    assert {read_caption(path).text for path in paths} == {"before"}
