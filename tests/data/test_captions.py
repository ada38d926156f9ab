from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from trainer.data.captions import (
    CaptionRules,
    fill_template,
    read_caption,
    write_caption,
)
from trainer.data.records import DataError
from trainer.data.sidecars import MAX_CAPTION_BYTES


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
    assert caption.problems == ()


def test_byte_order_mark_is_no_part_of_the_caption(image: Path) -> None:
    sidecar(image, b"\xef\xbb\xbfa bear")
    assert read_caption(image).text == "a bear"


@pytest.mark.parametrize(
    ("data", "text", "remark"),
    [
        (b"\xef\xbb\xbf" * 2 + "ein Bär".encode(), "ein Bär", ""),
        ("ein Bär".encode("latin-1"), "ein Bär", "read as Windows-1252; save it as UTF-8"),
        ("ein Bär".encode("utf-16"), "ein Bär", "read as UTF-16"),
        ("ein Bär".encode("utf-16-le"), "ein Bär", "read as UTF-16"),
        ("ein Bär".encode("utf-16-be"), "ein Bär", "read as UTF-16"),
    ],
)
def test_every_usual_encoding_is_read_and_remarked(
    image: Path, data: bytes, text: str, remark: str
) -> None:
    sidecar(image, data)
    caption = read_caption(image)
    assert (caption.text, caption.source) == (text, "txt")
    assert remark in " ".join(caption.problems) and bool(remark) == bool(caption.problems)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x89PNG\r\n" + bytes(3), "NUL"),
        (b"x" * (MAX_CAPTION_BYTES + 1), "larger than 64 KiB"),
    ],
)
def test_what_is_no_text_is_reported_and_the_template_speaks(
    image: Path, data: bytes, match: str
) -> None:
    sidecar(image, data)
    caption = read_caption(image, trigger="zorn")
    assert (caption.text, caption.source) == ("zorn", "template")
    assert match in caption.problems[0]


def test_caption_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").write_text("password", encoding="utf-8")
    image = tmp_path / "data" / "x.png"
    image.with_suffix(".txt").symlink_to(tmp_path / "secret")
    caption = read_caption(image)
    assert caption.text == "" and "out of this folder" in caption.problems[0]


@pytest.mark.parametrize("name", ["über.txt", "über.Txt", "über.CAPTION", "über.png.txt"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_every_spelling_of_a_caption_files_name_is_found(
    tmp_path: Path, name: str, form: str
) -> None:
    image = tmp_path / unicodedata.normalize("NFC", "über.png")
    (tmp_path / unicodedata.normalize(form, name)).write_text("found", encoding="utf-8")
    assert read_caption(image).text == "found"


TABLES_AS_WRITTEN = {
    "metadata.jsonl": '{"file_name": "in/x.png", "text": "a bear"}\n\n'
    '{"file_name": "y.png", "caption": "other"}\n',
    "captions.json": '{"x.png": "a bear", "y.png": {"caption": "other"}}',
    "metadata.json": '[{"image": "x.png", "prompt": ["a bear", "second"]}]',
    "meta_cap.json": '{"D:\\\\pictures\\\\x": {"tags": "a bear"}}',
}


@pytest.mark.parametrize("table", TABLES_AS_WRITTEN)
def test_tables_of_other_trainers_are_read(tmp_path: Path, table: str) -> None:
    (tmp_path / table).write_text(TABLES_AS_WRITTEN[table], encoding="utf-8")
    image = tmp_path / "in" / "x.png"
    image.parent.mkdir()
    caption = CaptionRules().read(image, tmp_path)
    assert (caption.text, caption.source, caption.problems) == ("a bear", "table", ())
    assert CaptionRules().read(tmp_path / "in" / "z.png", tmp_path).source == "neutral"
    sidecar(image, b"its own")
    assert CaptionRules().read(image, tmp_path).text == "its own"


def test_a_damaged_table_is_reported(image: Path) -> None:
    (image.parent / "metadata.jsonl").write_text(
        f'{{"file_name": "{image.name}", "text": "a bear"}}\n{{"file_name": ', encoding="utf-8"
    )
    caption = read_caption(image)
    assert caption.text == "a bear"
    assert "metadata.jsonl is damaged" in caption.problems[0]


@pytest.mark.parametrize("text", ["5", "null", "[1, 2]", '[{"file_name": "/", "text": "x"}]', "{"])
def test_a_table_of_another_shape_costs_no_picture(image: Path, text: str) -> None:
    (image.parent / "captions.json").write_text(text, encoding="utf-8")
    assert read_caption(image, trigger="zorn").text == "zorn"


def test_a_table_behind_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").write_text('{"x.png": "password"}', encoding="utf-8")
    (tmp_path / "data" / "captions.json").symlink_to(tmp_path / "secret")
    caption = CaptionRules().read(tmp_path / "data" / "x.png", tmp_path / "data")
    assert caption.text == "" and "out of this folder" in caption.problems[0]


@pytest.mark.parametrize("token", ["[trigger]", "[Trigger]", "[TRIGGER]", "{trigger}"])
def test_every_spelling_of_the_trigger_token_is_replaced(image: Path, token: str) -> None:
    sidecar(image, f"{token}, a bear".encode())
    assert read_caption(image, trigger="zorn").text == "zorn, a bear"
    assert fill_template(f"a {token} painting", "zorn") == "a zorn painting"


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
    assert "ein Bär.txt and ein Bär.caption exist; ein Bär.txt is used" in caption.problems[0]


def test_too_long_caption_is_reported_with_its_length(image: Path) -> None:
    sidecar(image, b"one two three four")

    def count(text: str) -> int:
        return len(text.split())

    assert read_caption(image, count_tokens=count, max_tokens=4).problems == ()
    caption = read_caption(image, count_tokens=count, max_tokens=3)
    assert caption.problems == ("too long: 4 tokens, but the model reads only 3",)
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


@pytest.mark.parametrize(("text", "match"), [("a\0b", "NUL"), ("\ud800", "not valid text")])
def test_unwritable_text_leaves_the_old_caption(image: Path, text: str, match: str) -> None:
    sidecar(image, b"old")
    with pytest.raises(DataError, match=match):
        write_caption(image, text)
    assert read_caption(image).text == "old"
