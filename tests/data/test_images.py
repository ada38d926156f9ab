from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.config import ConfigError, load_config
from trainer.data.images import DataError, ImageFolder, ImageRecord, ImageSet, load_image
from trainer.data.images import scan_images as scan

BLANK = "looks blank: a single colour"


def save(path: Path, colour: object = (200, 40, 90), size: tuple[int, int] = (80, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)  # type: ignore[arg-type]
    return path


def record_of(folder: ImageFolder, name: str) -> ImageRecord:
    return next(r for r in folder.records if r.path.relative_to(folder.root).as_posix() == name)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size without having the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def noise_jpeg(path: Path, size: tuple[int, int] = (128, 96)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path.read_bytes()


def test_every_file_is_accounted_for_with_its_reason(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    jpeg = noise_jpeg(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello", encoding="utf-8")
    (tmp_path / "bomb.png").write_bytes(png_header(30000, 30000))
    (tmp_path / "large.png").write_bytes(png_header(20001, 20000))
    (tmp_path / "hollow.png").write_bytes(png_header(100, 100))
    save(tmp_path / "tiny.png", size=(63, 200))
    (tmp_path / "photo.HEIC").write_bytes(b"x")
    (tmp_path / "notes.md").write_text("x", encoding="utf-8")
    (tmp_path / "lonely.txt").write_text("x", encoding="utf-8")
    (tmp_path / "good.txt").write_text("a bear", encoding="utf-8")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    save(tmp_path / ".thumbs" / "x.png")
    found = scan(tmp_path, min_side=64)
    table = {r.path.name: (r.status, r.reason) for r in found.records}
    expected = {
        "good.png": ("used", ""),
        "whole.jpg": ("used", ""),
        "cut.jpg": ("refused", "cut off"),
        "zero.png": ("refused", "0 bytes"),
        "text.png": ("refused", "not an image"),
        "bomb.png": ("refused", "bomb"),
        "large.png": ("refused", "bomb"),
        "hollow.png": ("refused", "cut off"),
        "tiny.png": ("refused", "63x200 px is too small: the smallest side allowed is 64 px"),
        "photo.HEIC": ("refused", "export it as PNG"),
        "notes.md": ("ignored", "not an image"),
        "lonely.txt": ("ignored", "not an image of that name"),
        ".DS_Store": ("ignored", "hidden file"),
        ".thumbs": ("ignored", "hidden folder"),
    }
    assert table.keys() == expected.keys()
    for name, (status, part) in expected.items():
        assert table[name][0] == status and part in table[name][1], (name, table[name])
    assert (len(found.used), len(found.refused), len(found.ignored)) == (2, 8, 4)


@pytest.mark.parametrize(
    ("name", "data", "status", "said"),
    [
        ("a.png", b"\0\0\0\x18ftypheic" + bytes(9), "refused", "it is a HEIC image"),
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(9), "refused", "it is a HEIC image"),
        ("a.jxl", b"\xff\x0a" + bytes(9), "refused", "it is a JPEG XL image"),
        ("a.jpg", b"<!DOCTYPE html>log in", "refused", "it is a web page"),
        ("a.png", b"\0\0\0\x18ftypisom" + bytes(9), "refused", "it is a video"),
        ("a.webp", b"version https://git-lfs.github.com", "refused", "a git-lfs pointer"),
        ("a.png", b"<svg xmlns=", "refused", "it is an SVG drawing"),
        ("photo", b"\x89PNG\r\n", "ignored", "content is a PNG; rename it to end in .png"),
        ("a.jpg_large", b"\xff\xd8\xff\xe0", "ignored", "its content is a JPEG"),
        ("a.tmp", b"RIFF\0\0\0\0WEBPVP8 ", "ignored", "content is a WebP"),
        ("a.md", b"hello", "ignored", "not an image"),
    ],
)
def test_files_are_known_by_their_content(
    tmp_path: Path, name: str, data: bytes, status: str, said: str
) -> None:
    save(tmp_path / "sub" / "good.png")
    (tmp_path / name).write_bytes(data)
    record = record_of(scan(tmp_path), name)
    assert record.status == status and said in record.reason


def test_an_image_under_a_wrong_name_is_used_and_noted(tmp_path: Path) -> None:
    data = noise_jpeg(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").rename(tmp_path / "x.HEIC")
    (tmp_path / "y.png").write_bytes(data)
    wrong, silent = scan(tmp_path).used
    assert wrong.notes == ["named .HEIC, but it is a JPEG"]
    assert silent.notes == ["same file as x.HEIC"]
    assert load_image(wrong, 16, 16).std() > 1


def test_a_large_scan_is_shrunk_not_refused(tmp_path: Path) -> None:
    pixels = np.zeros((7100, 7100, 3), np.uint8)
    pixels[:, 3550:] = (250, 120, 30)
    Image.fromarray(pixels).save(tmp_path / "scan.jpg", quality=90)
    record = scan(tmp_path).used[0]
    assert (record.width, record.height) == (7100, 7100)
    assert record.notes == ["50 megapixels: it is scaled down, which takes time"]
    found = load_image(record, 32, 32).astype(int)
    assert np.abs(found[:, :12]).max() <= 8 and np.abs(found[:, 20:] - (250, 120, 30)).max() <= 8


def test_transparent_parts_take_the_colour_of_choice_everywhere(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, 32:] = (250, 250, 250, 255)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = scan(tmp_path, background="#204060")
    assert "transparent parts filled with #204060" in found.used[0].notes
    assert tuple(load_image(found.used[0], 64, 64)[0, 0]) == (0x20, 0x40, 0x60)
    batch = ImageSet(found, 64, 64).batch([0])[0]
    assert ((batch[0, :, 0, 0] + 1) * 127.5).round().int().tolist() == [0x20, 0x40, 0x60]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("#AbCdEf", "#abcdef"), ("black", "#000000"), ("rgba(12.6, 0, 255.0, 1)", "#0c00ff")],
)
def test_a_colour_is_kept_in_one_form(given: str, kept: str) -> None:
    assert load_config(overrides={"data.background": given}).data.background == kept


def test_what_is_no_colour_is_said() -> None:
    with pytest.raises(ConfigError, match="'greenish' is not a colour; use #rrggbb"):
        load_config(overrides={"data.background": "greenish"})


def test_blank_and_nearly_black_images_are_noted(tmp_path: Path) -> None:
    save(tmp_path / "blank.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(np.kron(noise[:8, :8] // 32, np.ones((8, 8, 1), np.uint8))).save(
        tmp_path / "dark.png"
    )
    Image.fromarray(noise).save(tmp_path / "good.png")
    assert {r.path.stem: r.notes for r in scan(tmp_path).used} == {
        "blank": [BLANK],
        "dark": ["is nearly black"],
        "good": [],
    }


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tiff"])
def test_formats_are_read(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"x{suffix.upper()}")
    record = scan(tmp_path).used[0]
    assert (record.width, record.height) == (80, 64)
    pixels = load_image(record, 16, 16)
    assert np.abs(pixels.astype(int) - (200, 40, 90)).max() <= 4


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_of_an_animation_the_first_frame_is_used_and_noted(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], duration=100)
    record = scan(tmp_path).used[0]
    assert record.notes == ["only the first of 3 frames is used", BLANK]
    assert np.abs(load_image(record, 8, 8).astype(int) - (255, 0, 0)).max() <= 6


def test_size_is_the_upright_one_also_of_a_nearly_square_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (101, 100)).save(tmp_path / "x.jpg", exif=exif)
    record = scan(tmp_path).used[0]
    assert (record.width, record.height) == (100, 101)
    assert record.notes == ["turned upright by its EXIF orientation", BLANK]


def test_natural_order_and_names_with_umlauts_and_blanks(tmp_path: Path) -> None:
    names = ["10.png", "2.png", "Über den Wolken 3.png", "a b/1.png", "Zebra.png"]
    for number, name in enumerate(names):
        save(tmp_path / name, (number, 0, 0))
    found = [r.path.relative_to(tmp_path).as_posix() for r in scan(tmp_path).used]
    assert found == ["2.png", "10.png", "a b/1.png", "Zebra.png", "Über den Wolken 3.png"]


def test_repeat_folders_weigh_and_their_names_are_no_captions(tmp_path: Path) -> None:
    for place, name in enumerate(["10_bear/a", "10_bear/x/b", "10_bear/3_in/c", "0_off/d", "e"]):
        save(tmp_path / f"{name}.png", (place, 0, 0))
    found = scan(tmp_path, trigger="zorn")
    repeats = {r.path.stem: r.repeats for r in found.used}
    assert repeats == {"a": 10, "b": 10, "c": 3, "e": 1}
    assert "0 repeats" in record_of(found, "0_off/d.png").reason
    assert {r.caption for r in found.used} == {"zorn"}
    assert any("'bear' is not used as a caption" in note for note in found.notes)


def test_a_year_taken_for_repeats_is_pointed_out(tmp_path: Path) -> None:
    save(tmp_path / "2024_holiday" / "a.png")
    assert "rename the folder" in scan(tmp_path).notes[0]


def test_captions_and_their_problems_are_in_the_records(tmp_path: Path) -> None:
    for place, name in enumerate(["a", "bom", "empty", "latin", "long", "none"]):
        save(tmp_path / f"{name}.png", (place, 0, 0))
    (tmp_path / "a.caption").write_text("[trigger] bear", encoding="utf-8")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfein B\xc3\xa4r")
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("ein Bär".encode("latin-1"))
    (tmp_path / "long.txt").write_text("one two three", encoding="utf-8")
    found = scan(
        tmp_path,
        trigger="zorn",
        prompt_template="in {trigger} style",
        count_tokens=lambda text: len(text.split()) - 1,
        max_tokens=1,
    )
    seen = {r.path.stem: (r.caption, r.caption_source) for r in found.used}
    assert seen == {
        "a": ("zorn bear", "caption"),
        "bom": ("ein Bär", "txt"),
        "empty": ("in zorn style", "template"),
        "latin": ("ein Bär", "txt"),
        "long": ("one two three", "txt"),
        "none": ("in zorn style", "template"),
    }
    assert "read as Windows-1252" in record_of(found, "latin.png").notes[1]
    assert record_of(found, "empty.png").notes[1] == "caption: empty.txt is empty and not used"
    assert "too long: 2 tokens" in record_of(found, "long.png").notes[1]
    assert record_of(found, "a.png").notes == record_of(found, "bom.png").notes == [BLANK]


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    outside, data = tmp_path / "outside", tmp_path / "data"
    save(outside / "secret.png")
    save(data / "sub" / "a.png")
    (data / "file.png").symlink_to(outside / "secret.png")
    (data / "folder").symlink_to(outside, target_is_directory=True)
    (data / "gone.png").symlink_to(data / "nowhere.png")
    (data / "loop").symlink_to(data, target_is_directory=True)
    (data / "inside.png").symlink_to(data / "sub" / "a.png")
    found = scan(data)
    status = {r.path.relative_to(data).as_posix(): r.status for r in found.records}
    assert status == {
        "file.png": "refused",
        "folder": "refused",
        "gone.png": "refused",
        "inside.png": "used",
        "loop": "ignored",
        "sub/a.png": "used",
    }
    assert "out of this folder" in record_of(found, "folder").reason
    assert scan(data / "sub").used[0].path == data / "sub" / "a.png"


def test_exact_doubles_are_noted(tmp_path: Path) -> None:
    data = save(tmp_path / "a.png").read_bytes()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.png").write_bytes(data)
    first, second = scan(tmp_path).used
    assert first.notes == [BLANK] and second.notes == [BLANK, "same file as a.png"]
    assert first.sha256 == second.sha256 and len(first.sha256) == 64


def test_a_report_of_thousands_with_long_captions_can_be_read() -> None:
    caption = "a wide green valley " * 90
    records = [
        ImageRecord(path=Path(f"/set/{number:05}.png"), status="used", caption=caption)
        for number in range(2600)
    ]
    records += [ImageRecord(path=Path(f"/set/{'long ' * 40}.png"), status="refused", reason="bad")]
    records += [ImageRecord(path=Path("/set/z.png"), status="used", notes=["is nearly black"])]
    report = ImageFolder(Path("/set"), records).report()
    lines = report.splitlines()
    assert len(lines) < 210 and "... and 2400 more that are used, without notes" in lines
    assert max(len(line) for line in lines) < 300
    assert "is nearly black" in report and "refused" in report and "(1800 letters)" in report


def test_report_lists_files_prompts_and_reasons(tmp_path: Path) -> None:
    save(tmp_path / "3_bär" / "x y.png")
    (tmp_path / "3_bär" / "x y.txt").write_text("a bear", encoding="utf-8")
    (tmp_path / "zero.png").write_bytes(b"")
    report = scan(tmp_path).report()
    assert "1 used (1 with a caption, 0 without), 1 refused, 0 ignored" in report
    assert "note: '3_bär': each file is used 3 times" in report
    row = f'used     80x64   x3       3_bär/x y.png  "a bear" [{BLANK}]'
    assert row in report.splitlines()
    assert "refused  -       -        zero.png" in report


def test_a_log_names_what_cannot_be_used_and_only_counts_the_rest() -> None:
    records = [ImageRecord(path=Path(f"/set/{n}.png"), status="used", caption="x") for n in "abc"]
    records += [
        ImageRecord(path=Path(f"/set/bad {n}.png"), status="refused", reason="too small")
        for n in range(30)
    ]
    lines = ImageFolder(Path("/set"), records, ["a note"]).brief().splitlines()
    assert lines[0].endswith("3 used (0 with a caption, 3 without), 30 refused, 0 ignored")
    assert lines[1:3] == ["note: a note", "refused: bad 0.png: too small"]
    assert len(lines) == 23 and lines[-1] == "... and 10 more that are refused"


def test_unusable_folders_raise_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; check the spelling"):
        scan(tmp_path / "missing")
    path = tmp_path / "zero.png"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is a file; choose the folder"):
        scan(path)
    with pytest.raises(DataError, match="1 refused, 0 ignored(.|\n)*zero.png .*0 bytes"):
        scan(tmp_path)


def ramp(path: Path, size: tuple[int, int] = (96, 64)) -> Path:
    """Red grows from left to right, green from top to bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8)).save(path)
    return path


def test_centre_crop_is_the_middle_of_the_resized_image(tmp_path: Path) -> None:
    image = Image.open(ramp(tmp_path / "x.png"))
    resized = np.asarray(image.resize((48, 32), Image.Resampling.LANCZOS))
    pixels = load_image(scan(tmp_path).used[0], 32, 32)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, resized[:, 8:40])
    pixels[0] = 0  # the caller owns it


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_random_crops_follow_the_generator_and_reach_both_ends(tmp_path: Path, kind: str) -> None:
    image = Image.open(ramp(tmp_path / "x.png"))
    resized = np.asarray(image.resize((48, 32), Image.Resampling.LANCZOS))
    windows = {resized[:, left : left + 32].tobytes(): left for left in range(17)}
    record = scan(tmp_path).used[0]

    def lefts() -> list[int]:
        made = torch.Generator().manual_seed(3) if kind == "torch" else np.random.default_rng(3)
        draws = (load_image(record, 32, 32, crop="random", generator=made) for _ in range(100))
        return [windows[draw.tobytes()] for draw in draws]

    found = lefts()
    assert found == lefts()
    assert min(found) == 0 and max(found) == 16
    with pytest.raises(ValueError, match="needs a `generator`"):
        load_image(record, 32, 32, crop="random")


def levels(tmp_path: Path, count: int) -> ImageFolder:
    for level in range(count):
        save(tmp_path / f"{level}.png", (level, 0, 255), (64, 64))
        (tmp_path / f"{level}.txt").write_text(f"level {level}", encoding="utf-8")
    return scan(tmp_path)


def test_batch_has_the_pixels_and_captions_of_its_indices(tmp_path: Path) -> None:
    images = ImageSet(levels(tmp_path, 4), 16, 24)
    pixels, captions = images.batch([2, 0, 2])
    assert pixels.shape == (3, 3, 16, 24) and pixels.dtype == torch.float32
    assert captions == ["level 2", "level 0", "level 2"]
    assert torch.equal(pixels[:, 0, 0, 0], torch.tensor([2.0, 0.0, 2.0]) / 127.5 - 1)
    assert pixels.amin() == -1 and pixels.amax() == 1


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    limit = 3 * 32 * 32 * 3 / 2**20
    images = ImageSet(levels(tmp_path, 8), 32, 32, cache_mib=limit)
    for index in [0, 1, 2, 3, 0, 4, 5, 6, 7, 0]:
        pixels, _ = images.batch([index])
        assert pixels[0, 0, 0, 0] == index / np.float32(127.5) - 1
        assert 0 < images.cache_bytes <= limit * 2**20
    uncached = ImageSet(images.folder, 32, 32, cache_mib=0)
    assert uncached.batch([3])[1] == ["level 3"] and uncached.cache_bytes == 0


def test_cached_images_are_not_read_again(tmp_path: Path) -> None:
    images = ImageSet(levels(tmp_path, 2), 32, 32)
    before, _ = images.batch([0, 1])
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert torch.equal(images.batch([0, 1])[0], before)


def test_draw_is_weighted_by_repeats_and_repeatable(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (1, 0, 0))
    save(tmp_path / "9_often" / "b.png", (2, 0, 0))
    images = ImageSet(scan(tmp_path), 16, 16)
    drawn = images.draw(2000, np.random.default_rng(0))
    assert drawn == images.draw(2000, np.random.default_rng(0))
    often = next(i for i, record in enumerate(images.records) if record.repeats == 9)
    assert abs(drawn.count(often) / 2000 - 0.9) < 0.03


def test_image_lost_after_the_scan_is_replaced_and_a_lost_folder_ends_it(tmp_path: Path) -> None:
    images = ImageSet(levels(tmp_path, 3), 16, 16)
    (tmp_path / "1.png").unlink()
    assert images.batch([0, 1])[1] == ["level 0", "level 2"]
    assert "1.png" in images.dropped[tmp_path / "1.png"]
    assert set(images.draw(100, np.random.default_rng(0))) == {0, 2}
    fresh = ImageSet(images.folder, 16, 16)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="No image of(.|\n)*0.png"):
        fresh.batch([0])
    with pytest.raises(DataError, match="No image of"):
        fresh.draw(1, np.random.default_rng(0))


def test_halves_share_no_image_and_keep_doubles_together(tmp_path: Path) -> None:
    folder = levels(tmp_path, 9)
    (tmp_path / "double.png").write_bytes((tmp_path / "4.png").read_bytes())
    folder = scan(tmp_path)
    train, held_out = folder.halves(5)
    shas = [{record.sha256 for record in half.used} for half in (train, held_out)]
    assert not shas[0] & shas[1] and len(shas[0] | shas[1]) == 9
    assert (len(shas[0]), len(shas[1])) == (5, 4)
    assert len(train.used) + len(held_out.used) == 10
    assert folder.halves(5) == (train, held_out)
    assert any(folder.halves(seed) != (train, held_out) for seed in range(5))


def test_halves_need_two_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2"):
        levels(tmp_path, 1).halves(0)
