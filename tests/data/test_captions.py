from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainer.data.captions import (
    MAX_CAPTION_BYTES,
    CaptionRules,
    fill_template,
    read_caption,
    write_caption,
)
from trainer.data.records import DataError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "ein Bär.png"


def sidecar(image: Path, data: bytes, suffix: str = ".txt") -> Path:
    path = image.with_suffix(suffix)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
def test_sidecar_text_is_the_caption(image: Path, suffix: str) -> None:
    sidecar(image, "ein Bär, 熊\n".encode(), suffix)
    caption = read_caption(image)
    assert caption.text == "ein Bär, 熊"
    assert caption.source == suffix.lower().lstrip(".")
    assert caption.problems == () and caption.error is None


def test_byte_order_mark_is_no_part_of_the_caption(image: Path) -> None:
    sidecar(image, b"\xef\xbb\xbfa bear")
    assert read_caption(image).text == "a bear"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("ein Bär".encode("latin-1"), r"not UTF-8 \(byte 6\)"),
        ("a bear".encode("utf-16"), "not UTF-8"),
        ("a bear".encode("utf-16-le"), "NUL"),
        (b"x" * (MAX_CAPTION_BYTES + 1), "larger than 64 KiB"),
    ],
)
def test_undecodable_caption_is_an_error_and_never_guessed(
    image: Path, data: bytes, match: str
) -> None:
    sidecar(image, data)
    caption = read_caption(image, trigger="zorn")
    assert caption.text == ""
    assert re.search(match, str(caption.error))


def test_caption_link_out_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").write_text("password", encoding="utf-8")
    image = tmp_path / "data" / "x.png"
    image.with_suffix(".txt").symlink_to(tmp_path / "secret")
    caption = read_caption(image)
    assert caption.text == "" and "leaves the folder" in str(caption.error)


def test_trigger_token_is_replaced_everywhere(image: Path) -> None:
    sidecar(image, b"[trigger] bear, in the style of [trigger]")
    assert read_caption(image, trigger="zorn").text == "zorn bear, in the style of zorn"


@pytest.mark.parametrize(
    ("written", "seen"), [("[trigger], a bear", "a bear"), ("a, [trigger], b", "a, b")]
)
def test_token_without_trigger_leaves_no_commas_and_is_reported(
    image: Path, written: str, seen: str
) -> None:
    sidecar(image, written.encode())
    caption = read_caption(image)
    assert caption.text == seen
    assert "no trigger is set" in caption.problems[0]


def test_line_breaks_become_blanks(image: Path) -> None:
    sidecar(image, b"  a bear\r\n\r\n in  snow\t")
    assert read_caption(image).text == "a bear in snow"


@pytest.mark.parametrize(
    ("template", "trigger", "text", "source"),
    [
        ("{trigger}", "zorn", "zorn", "template"),
        ("a painting, {trigger} style", "zorn", "a painting, zorn style", "template"),
        ("a painting", "", "a painting", "template"),
        ("{trigger}", "", "", "neutral"),
        ("a painting, {trigger} style", "", "", "neutral"),
    ],
)
def test_without_a_caption_the_template_speaks(
    image: Path, template: str, trigger: str, text: str, source: str
) -> None:
    caption = read_caption(image, trigger=trigger, prompt_template=template)
    assert (caption.text, caption.source, caption.problems) == (text, source, ())
    assert fill_template(template, trigger) == text


def test_empty_caption_is_reported_and_counts_as_missing(image: Path) -> None:
    sidecar(image, b"\xef\xbb\xbf \n")
    caption = read_caption(image, trigger="zorn")
    assert (caption.text, caption.source) == ("zorn", "template")
    assert "is empty" in caption.problems[0]


def test_two_sidecars_are_reported_and_txt_wins(image: Path) -> None:
    sidecar(image, b"one", ".txt")
    sidecar(image, b"two", ".caption")
    caption = read_caption(image)
    assert caption.text == "one"
    assert "both" in caption.problems[0]


def test_too_long_caption_is_reported_with_its_length(image: Path) -> None:
    sidecar(image, b"one two three four")

    def count(text: str) -> int:
        return len(text.split())

    assert read_caption(image, count_tokens=count, max_tokens=4).problems == ()
    caption = read_caption(image, count_tokens=count, max_tokens=3)
    assert caption.problems == ("too long: 4 tokens, only 3 of them are read",)
    assert caption.text == "one two three four"


def test_rules_refuse_unknown_fields_and_half_a_limit() -> None:
    with pytest.raises(DataError, match=r"\{name\}"):
        CaptionRules(prompt_template="a {name}")
    with pytest.raises(DataError, match="belong together"):
        CaptionRules(max_tokens=77)


def test_written_caption_is_read_back(image: Path) -> None:
    path = write_caption(image, " ein Bär\n")
    assert path == image.with_suffix(".txt")
    assert path.read_bytes() == "ein Bär\n".encode()
    assert read_caption(image).text == "ein Bär"
    assert list(image.parent.iterdir()) == [path]


def test_an_edit_goes_to_the_sidecar_that_is_read(image: Path) -> None:
    old = sidecar(image, b"old", ".caption")
    assert write_caption(image, "new") == old
    caption = read_caption(image)
    assert caption.text == "new" and caption.problems == ()


@pytest.mark.parametrize(("text", "match"), [("a\0b", "NUL"), ("\ud800", "no valid text")])
def test_unwritable_text_leaves_the_old_caption(image: Path, text: str, match: str) -> None:
    sidecar(image, b"old")
    with pytest.raises(DataError, match=match):
        write_caption(image, text)
    assert read_caption(image).text == "old"
