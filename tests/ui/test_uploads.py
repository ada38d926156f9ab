"""Uploads: every file is kept or listed, and a caption stays with its image."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.images import scan_images


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


def png(seed: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


def text_of(seed: int) -> bytes:
    return f"caption {seed}".encode()


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    """A zip with exactly these names, also those that `zipfile` would change."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, content)
    return path


def without_mark(path: Path) -> Path:
    """The zip with names in UTF-8 that are not marked so, as macOS writes them."""
    data = bytearray(path.read_bytes())
    for head, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(head)
        while start >= 0:
            data[start + at : start + at + 2] = b"\0\0"
            start = data.find(head, start + 4)
    path.write_bytes(bytes(data))
    return path


def captions_by_image(folder: Path) -> dict[bytes, str]:
    """The caption of every image by its content: names may change, contents do not."""
    return {
        record.path.read_bytes(): record.caption for record in scan_images(folder, min_side=8).used
    }


LONG = "artist_a_wide_green_valley_with_a_small_wooden_house_and_a_long_river_"


@pytest.mark.parametrize(
    "names",
    [
        [f"{LONG}{number}" for number in range(4)],
        ["photos (1)", "photos 1", "photos-1", "photos--1"],
        ["\U0001f3a8\U0001f3a8", "\U0001f338\U0001f338", "\U0001f319\U0001f319"],
        ["Shot 12:30", "Shot 12-30", "Shot 12 30"],
        ["set\\aaaa", "set\\bbbb", "other\\aaaa"],
        ["set (1)/aaaa", "set 1/aaaa", "set-1/aaaa"],
        ["zweite Übung", "zweite U\u0308bung 2"],
    ],
)
@pytest.mark.parametrize("captioned", [(0, 1, 2, 3), (1,), ()])
@pytest.mark.parametrize("suffix", [".txt", ".TXT", ".caption", ".png.txt"])
def test_names_that_become_equal_are_numbered_with_their_captions(
    tmp_path, uploads, names, captioned, suffix
):
    from ui.uploads import receive

    entries, expected = {}, {}
    for number, name in enumerate(names):
        entries[f"{name}.png"] = png(number)
        expected[png(number)] = ""
        if number in captioned:
            entries[f"{name}{suffix}"] = text_of(number)
            expected[png(number)] = f"caption {number}"
    got = receive([zipped(tmp_path / "x.zip", entries)], "set", uploads)
    assert captions_by_image(got.folder) == expected
    assert got.left_out == [] and got.files == len(entries) and got.images == len(names)


def test_names_without_the_mark_of_utf_8_are_read_as_they_were_written(tmp_path, uploads):
    from ui.uploads import receive

    entries = {"Übungen/grün.png": png(1), "Übungen/grün.txt": b"green"}
    got = receive([without_mark(zipped(tmp_path / "mac.zip", entries))], "mac", uploads)
    files = {path.relative_to(got.folder).as_posix() for path in got.folder.rglob("*.*")}
    assert files == {"Übungen/grün.png", "Übungen/grün.txt"}


def test_equal_names_from_several_archives_and_as_loose_files_stay_apart(tmp_path, uploads):
    from ui.uploads import receive

    files = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        entries = {"set/same.png": png(number), "set/same.txt": text_of(number)}
        files.append(zipped(tmp_path / f"{number}.zip", entries))
        for name, content in (("same.png", png(number + 3)), ("same.txt", text_of(number + 3))):
            files.append(tmp_path / str(number) / name)
            files[-1].write_bytes(content)
    got = receive(files, "x", uploads)
    assert captions_by_image(got.folder) == {png(n): f"caption {n}" for n in range(6)}


def test_one_caption_of_two_images_is_copied_and_a_second_caption_is_listed(tmp_path, uploads):
    from ui.uploads import receive

    entries = {
        "pictures.png": png(1), "pictures.jpg": png(2, "JPEG"), "pictures.txt": b"both",
        "drawings.png": png(3), "drawings.txt": b"one", "drawings.caption": b"two",
    }  # fmt: skip
    got = receive([zipped(tmp_path / "x.zip", entries)], "x", uploads)
    assert captions_by_image(got.folder) == {
        png(1): "both", png(2, "JPEG"): "both", png(3): "one",
    }  # fmt: skip
    assert "pictures.txt: the caption of 2 images; each got a copy" in got.notes
    assert got.left_out == [
        "drawings.caption: a second caption of drawings.png; drawings.txt is used"
    ]


def test_everything_that_is_left_out_is_listed_with_its_reason(tmp_path, uploads):
    from ui.uploads import receive

    entries = {
        "good one.png": png(1), "read me.md": b"hello", "__MACOSX/x.png": b"x", ".hidden.png": b"x",
        "a letter.pdf": b"%PDF-1.7", "from phone.HEIC": b"\0\0\0\x18ftypheic" + bytes(9),
        "no suffix": png(2), "saved.jpg_large": png(3, "JPEG"), "lonely one.txt": b"a caption",
    }  # fmt: skip
    got = receive([zipped(tmp_path / "x.zip", entries)], "x", uploads)
    assert sorted(got.left_out) == [
        ".hidden.png: a hidden file",
        "a letter.pdf: not an image or a caption (it is a PDF)",
        "read me.md: not an image or a caption",
        "x.png: a hidden file",
    ]
    assert set(captions_by_image(got.folder)) == {png(1), png(2), png(3, "JPEG")}
    assert "lonely one.txt: saved, but there is no image of that name yet" in got.notes
    assert "no suffix: its content is a PNG, so it was saved as .png" in got.notes
    (phone,) = scan_images(got.folder, min_side=8).refused
    assert "it is a HEIC image" in phone.reason


@pytest.mark.parametrize(
    "table, text",
    [
        ("metadata.jsonl", '{"file_name": "photo (1).png", "text": "first"}\n'
         '{"file_name": "photo 1.png", "text": "second"}\n'),
        ("captions.json", json.dumps({"photo (1)": "first", "photo 1.png": {"caption": "second"}})),
    ],
)  # fmt: skip
def test_captions_of_a_table_follow_images_whose_names_change(tmp_path, uploads, table, text):
    from ui.uploads import receive

    entries = {
        "set/photo (1).png": png(1),
        "set/photo 1.png": png(2),
        f"set/{table}": text.encode(),
    }
    got = receive([zipped(tmp_path / "x.zip", entries)], "x", uploads)
    assert captions_by_image(got.folder) == {png(1): "first", png(2): "second"}
    assert f"{table}: 2 captions from it were written beside the images" in got.notes


def test_a_set_grows_shrinks_and_goes(tmp_path, uploads):
    from ui.places import PlaceError
    from ui.uploads import delete_set, receive, remove_image

    def loose(folder: str, **files: bytes) -> list[Path]:
        (tmp_path / folder).mkdir()
        for name, content in files.items():
            (tmp_path / folder / name.replace("_", ".")).write_bytes(content)
        return sorted((tmp_path / folder).iterdir())

    made = receive(loose("1", a_png=png(1), b_png=png(2), c_txt=b"waits"), "set", uploads).folder
    receive(loose("2", a_png=png(3), a_txt=b"third"), "", uploads, into=made)
    assert captions_by_image(made) == {png(1): "", png(2): "", png(3): "third"}
    got = receive(loose("3", b_txt=b"second", c_png=png(4)), "", uploads, into=made)
    assert (
        captions_by_image(made)[png(2)] == "second" and captions_by_image(made)[png(4)] == "waits"
    )
    assert got.folder == made and got.files == 2
    with pytest.raises(PlaceError, match="'b' already has a caption, which was kept"):
        receive(loose("4", b_txt=b"other"), "", uploads, into=made)
    assert captions_by_image(made)[png(2)] == "second"

    remove_image(made / "b.png", uploads)
    assert sorted(path.name for path in made.iterdir()) == [
        "a-2.png", "a-2.txt", "a.png", "c.png", "c.txt",
    ]  # fmt: skip
    delete_set(made, uploads)
    assert list(uploads.iterdir()) == []


def test_a_shared_caption_stays_with_the_image_that_is_left(uploads):
    from ui.uploads import remove_image

    folder = uploads / "set"
    folder.mkdir(parents=True)
    for name in ("x.png", "x.jpg", "x.txt"):
        (folder / name).write_bytes(b"1")
    remove_image(folder / "x.png", uploads)
    assert sorted(path.name for path in folder.iterdir()) == ["x.jpg", "x.txt"]
    remove_image(folder / "x.jpg", uploads)
    assert list(folder.iterdir()) == []


def test_only_sets_of_the_page_are_changed(tmp_path, uploads):
    from ui.places import PlaceError
    from ui.uploads import delete_set, receive, remove_image

    own = tmp_path / "my pictures"
    own.mkdir()
    (own / "x.png").write_bytes(png(1))
    uploads.mkdir()
    (uploads / "link").symlink_to(own)
    for folder in (own, uploads, uploads / "link", tmp_path):
        with pytest.raises(PlaceError, match="Make an editable copy"):
            delete_set(folder, uploads)
        with pytest.raises(PlaceError, match="Make an editable copy"):
            receive([own / "x.png"], "", uploads, into=folder)
    with pytest.raises(PlaceError, match="Make an editable copy"):
        remove_image(own / "x.png", uploads)
    assert (own / "x.png").read_bytes() == png(1)


def test_a_damaged_zip_leaves_the_set_as_it_was(tmp_path, uploads):
    from ui.places import PlaceError
    from ui.uploads import receive

    first = zipped(tmp_path / "1.zip", {"aaaaaaaa.png": png(1)})
    made = receive([first], "set", uploads).folder
    broken = zipped(tmp_path / "2.zip", {"bbbbbbbb.png": png(2), "cccccccc.png": png(3)})
    data = bytearray(broken.read_bytes())
    data[data.rindex(png(3)) + 50] ^= 255
    broken.write_bytes(bytes(data))
    with pytest.raises(PlaceError, match="2.zip' cannot be unpacked"):
        receive([broken], "", uploads, into=made)
    assert [path.name for path in made.iterdir()] == ["aaaaaaaa.png"]
    assert [path.name for path in uploads.iterdir()] == ["set"]
