"""The prompts of a run: the trigger word, and whether frames are judged with their captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.prompts import MOTION_PHRASES, build_prompts
from trainer.words import has_word, without_word

NONE = Path("no such file")


@pytest.mark.parametrize(
    ("text", "word", "found", "rest"),
    [
        ("a pink star", "ink", False, "a pink star"),
        ("Ink, a star", "ink", True, "a star"),
        ("a star, ink", "ink", True, "a star"),
        ("a star, ink, at night", "ink", True, "a star, at night"),
        ("an ink star", "ink", True, "an star"),
        ("inkwell", "ink", False, "inkwell"),
        ("ein Tusche-Bild", "Tusche", True, "ein -Bild"),
        ("a star", "", False, "a star"),
        ("in c++ style", "c++", True, "in style"),
    ],
)
def test_a_trigger_is_a_word_by_itself(text, word, found, rest):
    assert has_word(text, word) is found
    assert without_word(text, word) == rest


def prompts_file(folder: Path, text: str) -> Path:
    path = folder / "prompts.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_trigger_joins_prompts_that_lack_it(tmp_path):
    file = prompts_file(tmp_path, "a pink star growing\nan ink boat\n[trigger] house\ta house\n")
    found = build_prompts(file, NONE, [], "ink").prompts
    assert [p.text for p in found] == ["a pink star growing, ink", "an ink boat", "ink house"]
    assert [p.frame for p in found] == ["a pink star growing", "an boat", "a house"]


@pytest.mark.parametrize("trigger", ["", "ink", "zorn"])
def test_the_teacher_reads_the_same_whatever_the_trigger(tmp_path, trigger):
    file = prompts_file(tmp_path, "a pink star growing\n[trigger], a house\n")
    found = build_prompts(file, NONE, [], trigger).prompts
    assert [p.teacher for p in found] == ["a pink star growing", "a house"]
    placed = f"{trigger}, a pink star" if trigger else "a pink star"
    own = build_prompts(None, NONE, [placed], trigger).prompts
    assert [p.teacher for p in own] == [f"a pink star, {phrase}" for phrase in MOTION_PHRASES]


@pytest.mark.parametrize("caption", ["zorn, {}", "{}, zorn", "a zorn picture, {}"])
def test_captions_with_the_trigger_keep_frames_conditional(caption):
    """Wherever the word stands, with prompts made of the captions themselves."""
    captions = [caption.format(thing) for thing in ("a red circle", "a blue star")]
    found = build_prompts(None, NONE, captions, "zorn")
    assert found.conditional
    shown = found.judged(captions)
    assert set(found.frames(range(len(found)))) == set(shown), "or the word would tell them apart"
    assert not any("zorn" in text for text in shown)


def test_frames_without_captions_of_their_own_are_not_conditional(tmp_path):
    file = prompts_file(tmp_path, "a red circle moving\ta red circle\na blue star\n")
    assert not build_prompts(file, NONE, ["zorn"] * 4, "zorn").conditional
    assert not build_prompts(None, NONE, ["zorn"] * 4, "zorn").conditional
    captions = ["a red circle, zorn", "a blue star, zorn"]
    assert build_prompts(file, NONE, captions, "zorn").conditional
