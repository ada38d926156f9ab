"""From an image file of any kind to upright 8-bit RGB pixels."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageColor, UnidentifiedImageError

MAX_PIXELS = 400_000_000
"""An image of 20 000 x 20 000 px takes 1.6 GB while it is read. A JPEG may have more: it is scaled
down.
"""
MAX_JPEG_PIXELS = 64 * MAX_PIXELS
LARGE_PIXELS = 50_000_000
"""Larger images are reported and scaled down to this, JPEGs while they are read."""
_PILLOWS_LIMIT = threading.Lock()
WHITE = (255, 255, 255)
# Only these decoders run: Pillow would hand an EPS named .png to ghostscript.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION_TAG = 0x0112
_TURNS: dict[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC, _AVIF = "a HEIC image, as phones make them", "an AVIF image"
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), _HEIC),
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
}
_MAGIC = (
    (b"\x89PNG", "a PNG"),
    (b"\xff\xd8\xff", "a JPEG"),
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\x00", "a TIFF"),
    (b"MM\x00*", "a TIFF"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"8BPS", "a Photoshop file"),
    (b"gimp xcf", "a GIMP file"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "a PostScript file"),
    (b"PK\x03\x04", "a zip archive (or a Krita or Office file)"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"\x1aE\xdf\xa3", "a video"),
)
_MARKUP = (
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an SVG drawing or another XML file"),
    (b"<svg", "an SVG drawing"),
    (b"version https://git-lfs", "a git-lfs pointer, not the picture itself"),
)
READABLE = {
    "a PNG": ".png", "a JPEG": ".jpg", "a GIF": ".gif", "a BMP": ".bmp", "a TIFF": ".tif",
    "a WebP": ".webp", _AVIF: ".avif",
}  # fmt: skip
"""Results of `content_of` for supported images, with the suffix they should have."""
STARTS = 512
_METADATA_ERRORS = (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error)


class PixelError(ValueError):
    """An image that Pillow can open but that cannot be converted well to 8-bit RGB."""


def open_image(path: Path) -> Image.Image:
    """Open the header of an image file; pixels are read later. Close it, or use it in `with`.

    Raises PixelError if it is not an image (with what it is, if known), or has more than
    `MAX_PIXELS` pixels; OSError from the system and from Pillow.
    """
    Image.init()  # registers the decoders; builds of Pillow differ in what they have
    try:
        with _own_limit():
            image = Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        what = content_of(path)
        raise PixelError(
            f"it is {what}, which is not supported; export it as PNG or JPEG"
            if what
            else "it is not an image, or of a kind that is not supported; export it as PNG or JPEG"
        ) from error
    width, height = image.size
    if width * height > (MAX_JPEG_PIXELS if image.format == "JPEG" else MAX_PIXELS):
        image.close()
        raise PixelError(
            f"{width}x{height} px is too large (a decompression bomb?); scale it down to at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels"
        )
    return image


@contextmanager
def _own_limit() -> Iterator[None]:
    """Pillow limits image sizes by a process-wide number, which other code relies on."""
    with _PILLOWS_LIMIT:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def rgb_of(colour: str) -> tuple[int, int, int]:
    """(R, G, B) in 0..255 of "#rrggbb", "rgb(...)" or a name such as "black".

    Raises ValueError for text that is not a colour.
    """
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return red, green, blue


def content_of(path: Path) -> str:
    """What the first bytes of a file say it is ("a HEIC image"), or "" where they say nothing."""
    with path.open("rb") as file:
        return content_of_bytes(file.read(STARTS))


def content_of_bytes(start: bytes) -> str:
    """`content_of` a file that begins with ``start`` (`STARTS` bytes of it are enough)."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "a WebP"
    if start[4:8] == b"ftyp":
        brands = start[8:12], start[16:20]
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "a video")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((what for magic, what in _MAGIC if start.startswith(magic)), "") or next(
        (what for magic, what in _MARKUP if text.startswith(magic)), ""
    )


def read_smaller(image: Image.Image, height: int, width: int) -> None:
    """Let a large JPEG be decoded at a fraction of its size, no smaller than `height` x `width`."""
    if image.format == "JPEG" and image.width * image.height > LARGE_PIXELS:
        side = max(height, width)
        image.draft("RGB", (side, side))


def to_rgb(
    image: Image.Image, background: tuple[int, int, int] = WHITE
) -> tuple[Image.Image, list[str]]:
    """Upright 8-bit sRGB pixels of an opened image, and notes on what was changed.

    EXIF orientation is applied, an embedded colour profile is converted to sRGB, alpha is
    composited on `background` (R, G, B in 0..255), 16-bit and float grey is scaled to 8 bit. Of an
    animation the current frame is taken.

    Raises PixelError for a fully transparent image, and for integers or floats of unknown range;
    OSError, ValueError, SyntaxError from Pillow, if the pixels are broken or cut off.
    """
    notes: list[str] = []
    image = _shrunk(_upright(image, notes))
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _grey_to_8_bit(image, notes)
    if image.mode == "CMYK":
        return _in_srgb(image, profile, [*notes, "CMYK, converted to RGB"])
    if image.has_transparency_data:
        image = _filled(image, background, notes)
    return _in_srgb(image, profile, notes)


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    before = orientation(image)
    image.load()  # turns a TIFF upright, and only that
    if before in _TURNS:
        notes.append("turned upright by its EXIF orientation")
    if before is None:
        notes.append("its EXIF data is broken, so its orientation is unknown")
    after = orientation(image)
    return image.transpose(_TURNS[after]) if after in _TURNS else image


def _shrunk(image: Image.Image) -> Image.Image:
    """A large image at `LARGE_PIXELS`, before anything makes more copies of it."""
    scale = (LARGE_PIXELS / (image.width * image.height)) ** 0.5
    if scale >= 1:
        return image
    # Palette indices, or a colour that means transparent, cannot be averaged.
    if image.has_transparency_data and not image.mode.startswith("I"):
        image = image.convert("RGBA")
    elif image.mode in ("1", "P"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    return image.resize(size, Image.Resampling.BOX)


def _filled(image: Image.Image, background: tuple[int, int, int], notes: list[str]) -> Image.Image:
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # of a PNG with 16 bits, which Pillow reads as 8
        image.info["transparency"] = tuple(value >> 8 for value in key)
    image = image.convert("RGBA")
    lowest, highest = image.getchannel("A").getextrema()
    if highest == 0:
        raise PixelError("it is fully transparent; there is nothing to learn from")
    if lowest == 255:  # type: ignore[operator]
        return image.convert("RGB")
    notes.append("transparent parts filled with #{:02x}{:02x}{:02x}".format(*background))
    below = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(below, image).convert("RGB")


def cover(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Resize with the aspect kept until `height` x `width` px is just covered: uint8 (h, w, 3)."""
    scale = max(height / image.height, width / image.width)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 to 8 (1 if there is none); None if the EXIF data is broken."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _METADATA_ERRORS:
        return None


def _grey_to_8_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    """16-bit or float grey as "L", or as "LA" where one value stands for transparent."""
    values = np.asarray(image).astype(np.float64)
    lowest, highest = float(values.min()), float(values.max())
    full = 1.0 if image.mode == "F" else 65535.0
    if not (lowest >= 0 and highest <= full):
        raise PixelError(
            f"its values run from {lowest:g} to {highest:g}, not from 0 to {full:g}; export it as "
            "8 bit"
        )
    notes.append("16 bit or float, scaled to 8 bit")
    # From 13 bits on it may just be a dark picture.
    bits = int(highest).bit_length()
    if image.mode != "F" and bits <= 12:
        notes.append(f"uses only {bits} of its 16 bits, so it looks dark; export it as 8 bit")
    grey = Image.fromarray(np.rint(values * (255 / full)).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _in_srgb(
    image: Image.Image, profile: bytes | None, notes: list[str]
) -> tuple[Image.Image, list[str]]:
    if not profile:
        return image.convert("RGB"), notes
    if image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        turned = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB"), [
            *notes,
            "its colour profile is broken or does not fit, so it was ignored",
        ]
    return turned if turned is not None else image, notes
