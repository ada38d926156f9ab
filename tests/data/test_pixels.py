from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from trainer.data.pixels import PixelError, cover, open_image, orientation, to_rgb

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)


def quadrants(height: int = 48, width: int = 64) -> np.ndarray:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    pixels[height // 2 :, width // 2 :] = GREY
    return pixels


def decoded(path: Path, **options: tuple[int, int, int]) -> tuple[np.ndarray, list[str]]:
    with open_image(path) as image:
        rgb, notes = to_rgb(image, **options)
        return np.asarray(rgb), notes


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_applied(tmp_path: Path, turn: int, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    image = Image.fromarray(quadrants())
    exif = Image.Exif()
    exif[0x0112] = turn
    lossless = {"lossless": True} if suffix == ".webp" else {"quality": 95, "subsampling": 0}
    image.save(path, exif=exif, **({} if suffix in (".png", ".tif") else lossless))
    image.getexif()[0x0112] = turn
    expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    found, notes = decoded(path)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (40 if suffix == ".jpg" else 0)
    assert [note for note in notes if "upright" in note] == (
        ["turned upright by its EXIF orientation"] if turn > 1 else []
    )
    with open_image(path) as opened:
        assert orientation(opened) == turn


def test_cmyk_jpeg_has_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(quadrants()).convert("CMYK").save(path, quality=98, subsampling=0)
    found, notes = decoded(path)
    assert np.abs(found[12, 16].astype(int) - RED).max() < 12
    assert np.abs(found[36, 16].astype(int) - BLUE).max() < 12
    assert notes == ["CMYK, converted to RGB"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    path = tmp_path / f"x{suffix}"
    Image.fromarray(values).save(path)
    found, notes = decoded(path)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(found, np.repeat(expected[..., None], 3, axis=2))
    assert notes == ["16 bit or float, scaled to 8 bit"]


def test_16_bit_files_whose_values_use_few_bits_are_noted(tmp_path: Path) -> None:
    values = np.linspace(0, 1023, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "x.png")
    _, notes = decoded(tmp_path / "x.png")
    assert notes[1] == "uses only 10 of its 16 bits, so it looks dark; export it as 8 bit"


def test_float_tiff_within_0_and_1_is_read_and_beyond_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    values = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    Image.fromarray(values).save(path)
    assert np.array_equal(decoded(path)[0][..., 0], np.rint(values * 255).astype(np.uint8))
    Image.fromarray(values * 3).save(path)
    with pytest.raises(PixelError, match="0 to 3"):
        decoded(path)


def test_alpha_is_composited_on_the_background(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[...] = (200, 100, 0, 255)
    pixels[:16, :, 3] = 0
    pixels[16:24, :, 3] = 128
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    found, notes = decoded(path)
    assert tuple(found[0, 0]) == (255, 255, 255)
    assert np.abs(found[20, 0].astype(int) - (227, 177, 127)).max() <= 1
    assert tuple(found[30, 0]) == (200, 100, 0)
    assert notes == ["transparent parts filled with #ffffff"]
    assert tuple(decoded(path, background=BLUE)[0][0, 0]) == BLUE


def png(kind: int, bits: int, pixels: np.ndarray, transparent: tuple[int, ...]) -> bytes:
    """A PNG with a transparent value or colour (`tRNS`), of 8 or 16 bits."""

    def chunk(name: bytes, data: bytes) -> bytes:
        tail = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + tail

    rows = pixels.astype(">u2" if bits == 16 else "u1")
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, kind, 0, 0, 0)
    return b"".join((
        b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header),
        chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)),
        chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        chunk(b"IEND", b""),
    ))  # fmt: skip


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [0, 2])
def test_the_transparent_value_of_a_png_is_filled(tmp_path: Path, bits: int, kind: int) -> None:
    key = (40000, 20000, 30000) if bits == 16 else (40, 20, 30)
    key = key if kind == 2 else key[:1]
    pixels = np.full((8, 8, len(key)), 60000 if bits == 16 else 200)
    pixels[:, :4] = key
    path = tmp_path / "x.png"
    path.write_bytes(png(kind, bits, pixels, key))
    found, notes = decoded(path, background=BLUE)
    assert tuple(found[0, 0]) == BLUE and found[0, 7].min() == found[0, 7].max() > 190
    assert "transparent parts filled with #0000ff" in notes


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_large_images_of_every_mode_are_shrunk(tmp_path: Path, mode: str, monkeypatch) -> None:
    pixels = np.zeros((90, 120), np.uint8)
    pixels[:, 60:] = 255
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(pixels.astype(np.float32) / 255)
    else:
        image = Image.fromarray(pixels).convert("RGB").convert(mode)
    path = tmp_path / "x.tif"
    image.save(path)
    monkeypatch.setattr("trainer.data.pixels.LARGE_PIXELS", 120 * 90 // 9)
    found, _ = decoded(path)
    assert found.shape == (30, 40, 3)
    assert found[:, :18].max() <= 2 and found[:, 22:].min() >= 253


def test_a_transparent_colour_survives_shrinking(tmp_path: Path, monkeypatch) -> None:
    image = Image.new("RGB", (90, 90), (40, 20, 30))
    image.paste((200, 0, 0), (45, 0, 90, 90))
    image.save(tmp_path / "x.png", transparency=(40, 20, 30))
    monkeypatch.setattr("trainer.data.pixels.LARGE_PIXELS", 900)
    found, _ = decoded(tmp_path / "x.png", background=BLUE)
    assert tuple(found[0, 0]) == BLUE and tuple(found[0, 29]) == (200, 0, 0)


def test_pillows_own_limit_is_left_to_others(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(quadrants()).save(tmp_path / "x.png")
    assert decoded(tmp_path / "x.png")[0].shape == (48, 64, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_16_bit_files_that_use_few_bits_are_noted(tmp_path: Path, bits: int) -> None:
    values = np.linspace(0, 2**bits - 1, 1024).astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "x.png")
    said = [note for note in decoded(tmp_path / "x.png")[1] if "16 bits" in note]
    wanted = f"uses only {bits} of its 16 bits, so it looks dark; export it as 8 bit"
    assert said == ([wanted] if bits <= 12 else [])


def test_opaque_alpha_is_no_note_and_full_transparency_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGBA", (32, 32), (1, 2, 3, 255)).save(path)
    found, notes = decoded(path)
    assert tuple(found[0, 0]) == (1, 2, 3) and notes == []
    Image.new("RGBA", (32, 32), (1, 2, 3, 0)).save(path)
    with pytest.raises(PixelError, match="fully transparent"):
        decoded(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    pixels = np.repeat(np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 16, 0), 16, 1)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).convert("RGB").convert(mode).save(path)
    assert np.array_equal(decoded(path)[0], np.repeat(pixels[..., None], 3, axis=2))


def test_transparent_palette_colour_is_composited(tmp_path: Path) -> None:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 16, 32))
    path = tmp_path / "x.png"
    image.save(path, transparency=0)
    found, _ = decoded(path)
    assert tuple(found[0, 0]) == BLUE and tuple(found[0, 31]) == (255, 255, 255)


def test_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "x.png"
    Image.fromarray(quadrants()).save(path, icc_profile=profile)
    assert np.abs(decoded(path)[0].astype(int) - quadrants()).max() <= 1
    # A profile whose first channel is green light and whose second is red.
    swapped = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    Image.fromarray(quadrants()).save(path, icc_profile=swapped)
    found, notes = decoded(path)
    assert np.abs(found[0, 0].astype(int) - GREEN).max() <= 2 and notes == []


def test_broken_colour_profile_is_noted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(quadrants()).save(path, icc_profile=b"no profile" * 20)
    found, notes = decoded(path)
    assert np.array_equal(found, quadrants())
    assert "colour profile" in notes[0]


def test_postscript_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    data = io.BytesIO()
    Image.fromarray(quadrants()).save(data, format="EPS")
    path.write_bytes(data.getvalue())
    with pytest.raises(PixelError, match="it is a PostScript file, which is not supported"):
        open_image(path)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (100, 30), (20, 20)])
def test_cover_keeps_the_aspect_and_covers(shape: tuple[int, int]) -> None:
    found = cover(Image.fromarray(quadrants(*shape)), 32, 40)
    height, width = found.shape[:2]
    assert (height == 32 and width >= 40) or (width == 40 and height >= 32)
    assert abs(width / height - shape[1] / shape[0]) < 0.05 * shape[1] / shape[0]
