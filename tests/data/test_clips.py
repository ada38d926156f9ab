from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from trainer.data.clips import nearest_frames, probe
from trainer.data.records import DataError

VideoWriter = Callable[..., Path]


def level(number: int) -> np.ndarray:
    """A picture whose grey says its number; see `numbers`."""
    return np.full((64, 64, 3), 8 + 8 * number, np.uint8)


def numbers(pictures: list[np.ndarray]) -> list[int]:
    return [round((float(picture.mean()) - 8) / 8) for picture in pictures]


def nearest(frame_times: np.ndarray, times: np.ndarray) -> list[int]:
    return [int(np.argmin(np.abs(frame_times - time))) for time in times]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi", ".ts"])
@pytest.mark.parametrize("start", [0.0, 0.21, 0.5, 0.99])
def test_frames_are_the_nearest_ones_after_an_exact_seek(
    tmp_path: Path, write_video: VideoWriter, suffix: str, start: float
) -> None:
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    pictures = [level(n) for n in range(30)]
    path = write_video(tmp_path / f"x{suffix}", pictures, fps=25, gop=7, codec=codec)
    assert probe(path).seconds == pytest.approx(29 / 25, abs=2e-3)
    times = start + np.arange(3) / 12
    assert numbers(nearest_frames(path, times)) == nearest(np.arange(30) / 25, times)


def test_variable_frame_rate_keeps_its_speed(tmp_path: Path, write_video: VideoWriter) -> None:
    steps = [0.04, 0.2, 0.04, 0.04, 0.36, 0.12, 0.04, 0.5, 0.04, 0.08] * 2
    frame_times = np.concatenate([[0], np.cumsum(steps)])
    path = write_video(tmp_path / "x.mp4", [level(n) for n in range(21)], times=frame_times)
    assert probe(path).seconds == pytest.approx(frame_times[-1], abs=1e-3)
    times = 0.013 + np.arange(22) / 8
    found = numbers(nearest_frames(path, times))
    assert found == nearest(frame_times, times)
    assert len(set(found)) < len(found)  # frames that are shown long come twice


def test_several_times_in_one_frame_repeat_it(tmp_path: Path, write_video: VideoWriter) -> None:
    path = write_video(tmp_path / "x.mp4", [level(n) for n in range(4)], fps=2)
    assert numbers(nearest_frames(path, np.arange(7) / 4)) == [0, 0, 1, 1, 2, 2, 3]


def test_seeking_gives_the_same_pixels_as_reading_on(
    tmp_path: Path, write_video: VideoWriter
) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(20)]
    path = write_video(tmp_path / "x.mp4", noise, fps=10, gop=5)
    with av.open(str(path)) as container:
        reference = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for number in (0, 4, 5, 13, 19):
        assert np.array_equal(nearest_frames(path, np.array([number / 10]))[0], reference[number])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_metadata_is_applied(
    tmp_path: Path, write_video: VideoWriter, degrees: int
) -> None:
    corners = np.zeros((48, 64, 3), np.uint8)
    corners[:24, :32], corners[:24, 32:] = (200, 30, 30), (30, 200, 30)
    corners[24:, :32], corners[24:, 32:] = (30, 30, 200), (90, 90, 90)
    plain = write_video(tmp_path / "plain.mp4", [corners] * 4)
    turned, upright = tmp_path / "turned.mp4", tmp_path / "upright.mp4"
    _ffmpeg("-display_rotation", str(degrees), "-i", str(plain), "-c", "copy", str(turned))
    _ffmpeg("-i", str(turned), "-crf", "4", str(upright))  # ffmpeg turns when it encodes
    found, expected = (nearest_frames(path, np.zeros(1))[0] for path in (turned, upright))
    assert found.shape == expected.shape == ((64, 48, 3) if degrees != 180 else (48, 64, 3))
    assert np.abs(found[8, 8].astype(int) - expected[8, 8]).max() < 12
    assert np.abs(found[-8, 8].astype(int) - expected[-8, 8]).max() < 12
    described = probe(turned)
    assert (described.height, described.width) == found.shape[:2]
    assert any("turned upright" in note for note in described.notes)


def _ffmpeg(*arguments: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_follow_their_durations(tmp_path: Path, suffix: str) -> None:
    durations = [100, 400, 50, 250, 100]
    frames = [Image.fromarray(level(3 * n)) for n in range(5)]
    path = tmp_path / f"x{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options
    )
    described = probe(path)
    assert (described.frames, described.width, described.height) == (5, 64, 64)
    assert described.seconds == pytest.approx(0.8)
    times = np.array([0.0, 0.2, 0.4, 0.52, 0.56, 0.8])
    expected = nearest(np.array([0, 0.1, 0.5, 0.55, 0.8]), times)
    assert [number // 3 for number in numbers(nearest_frames(path, times))] == expected


def test_title_in_another_encoding_is_no_reason_to_refuse(
    tmp_path: Path, write_video: VideoWriter
) -> None:
    plain = write_video(tmp_path / "plain.mp4", [level(n) for n in range(4)])
    path = tmp_path / "x.mp4"
    _ffmpeg("-i", str(plain), "-c", "copy", "-metadata", "title=B__renfilm", str(path))
    data = path.read_bytes()
    assert b"B__renfilm" in data
    path.write_bytes(data.replace(b"B__renfilm", "Bäärenfilm".encode("latin-1")))
    assert numbers(nearest_frames(path, np.array([0.25]))) == [2]
    assert probe(path).frames == 4


def test_probe_counts_frames_and_seconds(tmp_path: Path, write_video: VideoWriter) -> None:
    described = probe(write_video(tmp_path / "x.mp4", [level(n) for n in range(13)], fps=12.5))
    assert (described.frames, described.width, described.height) == (13, 64, 64)
    assert described.seconds == pytest.approx(12 / 12.5, abs=2e-3)
    assert described.pixel_aspect == 1 and described.notes == ()


def test_pixel_aspect_is_read(tmp_path: Path, write_video: VideoWriter) -> None:
    plain = write_video(tmp_path / "plain.mp4", [level(n) for n in range(4)])
    _ffmpeg("-i", str(plain), "-vf", "setsar=16/11", str(tmp_path / "wide.mp4"))
    assert probe(tmp_path / "wide.mp4").pixel_aspect == pytest.approx(16 / 11)


def broken_files(folder: Path, write_video: VideoWriter) -> dict[str, str]:
    """Broken files in `folder`, and what must be said about each."""
    noise = list(np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8))
    data = write_video(folder / "whole.mp4", noise).read_bytes()
    (folder / "end_missing.mp4").write_bytes(data[: len(data) // 2])
    options = {"movflags": "+faststart"}
    data = write_video(folder / "whole.mp4", noise, container_options=options).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    (folder / "half_streamed.mp4").write_bytes(data[: len(data) * 6 // 10])
    (folder / "text.mp4").write_text("this is no video\n" * 50, encoding="utf-8")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nwhole.mp4\n#EXT-X-ENDLIST\n"
    (folder / "playlist.mp4").write_text(playlist, encoding="utf-8")
    (folder / "whole.mp4").unlink()
    write_video(folder / "b_frames.avi", noise)
    Image.fromarray(noise[0]).save(folder / "still.gif")
    _ffmpeg("-f", "lavfi", "-i", "sine=duration=1", str(folder / "sound.mp4"))
    with av.open(str(folder / "hollow.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        container.start_encoding()
    return {
        "end_missing.mp4": "truncated",
        "half_streamed.mp4": "truncated",
        "text.mp4": "not a video",
        "playlist.mp4": "not a video",
        "still.gif": "still image",
        "sound.mp4": "no video stream, only audio",
        "b_frames.avi": "AVI keeps no time stamps",
        "hollow.mp4": "none of its frames|no streams",
    }


def test_broken_files_are_told_apart(tmp_path: Path, write_video: VideoWriter) -> None:
    for name, reason in broken_files(tmp_path, write_video).items():
        with pytest.raises(DataError, match=reason):
            probe(tmp_path / name)


def test_file_that_ends_before_the_clip_is_an_error(
    tmp_path: Path, write_video: VideoWriter
) -> None:
    path = write_video(tmp_path / "x.mp4", [level(n) for n in range(8)])
    with pytest.raises(DataError, match="last frame is at 0.8"):
        nearest_frames(path, np.array([0.5, 1.0, 1.5]))


def test_damaged_middle_is_an_error_only_there(tmp_path: Path, write_video: VideoWriter) -> None:
    noise = list(np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8))
    path = write_video(tmp_path / "x.mp4", noise, gop=6)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - 3000 : middle + 3000] = bytes(6000)
    path.write_bytes(data)
    assert len(nearest_frames(path, np.arange(4) / 8)) == 4
    with pytest.raises(DataError, match=r"x\.mp4"):
        nearest_frames(path, np.arange(24) / 8)
