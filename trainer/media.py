"""Clips on disk: mp4, webm, animated webp, gif or a folder of PNGs, written atomically.

The suffix of the path decides the format. mp4 and webm go through the ffmpeg binary of
imageio-ffmpeg, the rest through Pillow. A clip is written under a temporary name in its own folder
and renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image, PngImagePlugin

from .sheets import check_frames, contact_sheet, enlarge, grid, side_by_side

__all__ = [
    "MediaError",
    "contact_sheet",
    "enlarge",
    "grid",
    "read_clip",
    "read_metadata",
    "side_by_side",
    "to_frames",
    "write_clip",
]

COMMAND_LINE_BYTES = 8000
"""Longer metadata reaches ffmpeg through a file: Windows allows 32 kB for a whole command line."""
_PNG_NAME = "frame_{:05d}.png"
_EXIF_TAGS = {"prompt": 0x0110, "workflow": 0x010F}
"""Where ComfyUI looks in a webp: the tags Model and Make; whatever else follows below them."""


class MediaError(ValueError):
    """A clip that cannot be written or read; the message names the file and what to do."""


def to_frames(pixels: torch.Tensor) -> np.ndarray:
    """Float pixels (3, F, H, W), clamped to [-1, 1], as uint8 frames (F, H, W, 3)."""
    frames = (pixels.detach().float().clamp(-1, 1) + 1) * 127.5
    return frames.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().contiguous().numpy()


def write_clip(
    frames: np.ndarray,
    path: str | os.PathLike[str],
    fps: float,
    *,
    scale: int | None = None,
    metadata: dict[str, str] | None = None,
    quality: int | None = None,
) -> Path:
    """Write uint8 ``frames`` (F, H, W, 3) to ``path`` at ``fps``; returns the path.

    ``.mp4`` (H.264), ``.webm`` (VP9), ``.webp`` (animated, lossless unless ``quality`` 1-100 is
    given), ``.gif`` (one palette for all frames); a path without suffix, or an existing folder,
    becomes numbered PNGs. ``scale`` enlarges by a whole factor with nearest pixels. Odd sides get
    one repeated row or column in mp4 and webm. ``metadata`` is carried in each format, in the place
    ComfyUI reads for mp4, webm, webp and PNG. ``quality`` has no effect on gif and PNG.

    Raises `MediaError` for a suffix that is not known, a place that cannot be written,
    frames of the wrong kind and a video that does not hold every frame.
    """
    path = Path(path)
    writer = _writer(path)
    frames = _checked(frames, fps, scale, metadata or {})
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer(frames, temporary, fps, metadata or {}, quality)
            _replace(temporary, path)
        finally:
            _remove(temporary)
    except (OSError, av.FFmpegError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise MediaError(
            f"Cannot write '{path}': {reason}. Check that its folder may be written and has space."
        ) from error
    return path


def _checked(
    frames: np.ndarray, fps: float, scale: int | None, metadata: dict[str, str]
) -> np.ndarray:
    """``frames`` enlarged, when all that `write_clip` was given can be written."""
    if not fps > 0:
        raise MediaError(f"`fps`={fps} must be above 0.")
    if any("=" in key for key in metadata):
        raise MediaError(f"A metadata key must not contain '=': {sorted(metadata)}.")
    try:
        return enlarge(check_frames(frames), 1 if scale is None else scale)
    except ValueError as error:
        raise MediaError(str(error)) from error


def read_clip(path: str | os.PathLike[str]) -> tuple[np.ndarray, float]:
    """Uint8 frames (F, H, W, 3) and frames per second of a clip that `write_clip` can write.

    The rate of a folder of PNGs is in the first file's text, else 8. Webp and gif store a run of
    equal frames as one long frame; it is unrolled again, except where a clip is still as a whole.
    Raises `MediaError` when the file is missing, broken or of an unknown kind.
    """
    path = Path(path)
    _writer(path)
    if not path.exists():
        raise MediaError(f"'{path}' does not exist.")
    try:
        if path.is_dir():
            return _read_folder(path)
        if path.suffix.lower() in (".webp", ".gif"):
            return _read_animation(path)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            rate = float(stream.average_rate or 0)
    except (OSError, av.FFmpegError, IndexError) as error:
        raise MediaError(f"Cannot read '{path}': {error}. It is damaged or not a clip.") from error
    return np.stack(frames), rate


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that `write_clip` stored; keys in lower case (Matroska keeps no case)."""
    path = Path(path)
    if path.suffix.lower() in (".mp4", ".webm"):
        with av.open(str(path)) as container:
            return {key.lower(): value for key, value in container.metadata.items()}
    file = min(path.glob("*.png")) if path.is_dir() else path
    with Image.open(file) as image:
        if file.suffix.lower() == ".webp":
            values = list(image.getexif().values())
            raw = [v.encode("latin-1") if isinstance(v, str) else v for v in values]
            texts = [v.decode() for v in raw if isinstance(v, bytes)]
            found = dict(text.split(":", 1) for text in texts if ":" in text)
        elif file.suffix.lower() == ".gif":
            found = json.loads(image.info.get("comment", b"{}"))
        else:
            found = dict(getattr(image, "text", {}))
    return {key.lower(): value for key, value in found.items()}


def _write_video(
    frames: np.ndarray, path: Path, fps: float, metadata: dict[str, str], quality: int | None
) -> None:
    """Encode with ffmpeg, BT.709 in matrix and tags: players guess differently without tags."""
    mp4 = path.suffix.lower() == ".mp4"
    height, width = frames.shape[1:3]
    frames = np.pad(frames, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    crf = 18 if quality is None else round((100 - quality) * 0.5)
    options = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-crf", str(crf)]
    options += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    if mp4:
        options += ["-preset", "medium", "-movflags", "+faststart+use_metadata_tags"]
    else:
        options += ["-b:v", "0", "-deadline", "good", "-cpu-used", "4", "-row-mt", "1"]
    with tempfile.TemporaryDirectory() as folder:
        options += _metadata_options(metadata, Path(folder))
        encoder = imageio_ffmpeg.write_frames(
            str(path),
            (frames.shape[2], frames.shape[1]),
            fps=fps,
            codec="libx264" if mp4 else "libvpx-vp9",
            quality=None,
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=options,
        )
        encoder.send(None)
        for frame in frames:
            encoder.send(np.ascontiguousarray(frame))
        encoder.close()
    # The generator hides ffmpeg's exit status: what counts is that the file holds every frame.
    with av.open(str(path)) as container:
        written = sum(packet.size > 0 for packet in container.demux(video=0))
    if written != len(frames):
        raise OSError(f"ffmpeg wrote {written} of {len(frames)} frames")


def _metadata_options(metadata: dict[str, str], folder: Path) -> list[str]:
    texts = [f"{key}={value}" for key, value in metadata.items()]
    if sum(len(text.encode()) for text in texts) <= COMMAND_LINE_BYTES:
        return [part for text in texts for part in ("-metadata", text)]
    options: list[str] = []
    for index, text in enumerate(texts):
        file = folder / f"{index}.txt"
        file.write_text(text, encoding="utf-8", newline="")
        options += ["-/metadata", str(file)]
    return options


def _write_webp(
    frames: np.ndarray, path: Path, fps: float, metadata: dict[str, str], quality: int | None
) -> None:
    exif = Image.Exif()
    free = iter(range(min(_EXIF_TAGS.values()) - 1, 0, -1))
    for key, value in metadata.items():
        tag = _EXIF_TAGS[key] if key in _EXIF_TAGS else next(free)
        # Bytes, because Pillow turns every letter of a text that is not ASCII into "?".
        exif[tag] = f"{key}:{value}".encode()
    how = {"lossless": True, "quality": 80} if quality is None else {"quality": quality}
    _save_animation(frames, path, _durations(len(frames), fps, 1), method=4, exif=exif, **how)


def _write_gif(
    frames: np.ndarray, path: Path, fps: float, metadata: dict[str, str], quality: int | None
) -> None:
    pixels = frames.reshape(-1, 3)
    sample = pixels[:: max(1, len(pixels) // 400_000)]
    palette = Image.fromarray(sample[None]).quantize(256, Image.Quantize.MEDIANCUT)
    images = [Image.fromarray(frame).quantize(palette=palette) for frame in frames]
    comment = json.dumps(metadata).encode() if metadata else b""
    _save_animation(images, path, _durations(len(frames), fps, 10), comment=comment, disposal=1)


def _write_pngs(
    frames: np.ndarray, path: Path, fps: float, metadata: dict[str, str], quality: int | None
) -> None:
    path.mkdir()
    text = PngImagePlugin.PngInfo()
    for key, value in {**metadata, "fps": f"{fps:g}"}.items():
        text.add_itxt(key, value)
    for index, frame in enumerate(frames):
        name = path / _PNG_NAME.format(index)
        Image.fromarray(frame).save(name, pnginfo=text if index == 0 else None)


_Writer = Callable[[np.ndarray, Path, float, dict[str, str], "int | None"], None]
_WRITERS: dict[str, _Writer] = {
    ".mp4": _write_video,
    ".webm": _write_video,
    ".webp": _write_webp,
    ".gif": _write_gif,
    "": _write_pngs,
}


def _writer(path: Path) -> _Writer:
    suffix = "" if path.is_dir() else path.suffix.lower()
    if suffix not in _WRITERS:
        allowed = ", ".join(key for key in _WRITERS if key)
        raise MediaError(
            f"'{path.name}' has the suffix '{path.suffix}'; use {allowed}, or no suffix at all for "
            "a folder of PNGs."
        )
    return _WRITERS[suffix]


def _durations(count: int, fps: float, unit: int) -> list[int]:
    """Whole durations in ms, multiples of ``unit``, whose running sum follows the exact clock."""
    clock = np.round(np.arange(count + 1) * 1000 / fps / unit).astype(int) * unit
    return [max(int(d), 2 * unit) for d in np.diff(clock)]


def _save_animation(frames, path: Path, durations: list[int], **options) -> None:
    images = [f if isinstance(f, Image.Image) else Image.fromarray(f) for f in frames]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=durations, loop=0, **options
    )


def _read_animation(path: Path) -> tuple[np.ndarray, float]:
    frames, durations = [], []
    with Image.open(path) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(max(float(image.info.get("duration", 0)), 1.0))
    repeats = np.round(np.array(durations) / min(durations)).astype(int)
    return np.repeat(np.stack(frames), repeats, axis=0), 1000 * repeats.sum() / sum(durations)


def _read_folder(path: Path) -> tuple[np.ndarray, float]:
    files = sorted(path.glob("*.png"))
    if not files:
        raise MediaError(f"'{path}' holds no PNG files.")
    fps = float(read_metadata(path).get("fps", 8))
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]), fps


def _replace(temporary: Path, path: Path) -> None:
    """Rename onto ``path``. A folder is replaced only if it contains nothing but our frames."""
    if temporary.is_dir() and path.is_dir():
        strangers = [p.name for p in path.iterdir() if not p.match("frame_*.png")]
        if strangers:
            raise OSError(f"the folder holds other files ({strangers[0]}), choose a new folder")
        old = path.with_name(f".{uuid.uuid4().hex[:12]}")
        os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old)
        return
    os.replace(temporary, path)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary)
    else:
        temporary.unlink(missing_ok=True)
