from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.videos import (
    DataError,
    VideoFolder,
    VideoRecord,
    VideoSet,
    load_clip,
    scan_videos,
)

VideoWriter = Callable[..., Path]


def level(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    """A picture whose grey says its number, brighter than any black bar."""
    return np.full((height, width, 3), 40 + 8 * number, np.uint8)


def numbers(clip: np.ndarray) -> list[int]:
    return [round((float(frame.mean()) - 40) / 8) for frame in clip]


def record_of(folder: VideoFolder, name: str) -> VideoRecord:
    return next(r for r in folder.records if r.path.name == name)


@pytest.fixture
def steady(tmp_path: Path, write_video: VideoWriter) -> VideoRecord:
    """24 frames at 12 fps."""
    write_video(tmp_path / "steady.mp4", [level(n) for n in range(24)], fps=12)
    return scan_videos(tmp_path, frames=4, fps=8).used[0]


def test_record_says_what_the_file_is(steady: VideoRecord) -> None:
    assert (steady.width, steady.height, steady.frames) == (64, 64, 24)
    assert steady.seconds == pytest.approx(23 / 12, abs=2e-3)
    assert steady.fps == pytest.approx(12, abs=0.02)
    assert steady.box is None and steady.notes == [] and len(steady.sha256) == 64


@pytest.mark.parametrize(
    ("start", "fps", "expected"),
    [
        (0.0, 12, [0, 1, 2, 3]),
        (0.0, 4, [0, 3, 6, 9]),
        (0.25, 6, [3, 5, 7, 9]),
        (10 / 12, 24, [10, 10, 11, 11]),
        (20 / 12, 12, [20, 21, 22, 23]),
    ],
)
def test_clip_samples_by_time_at_any_rate(
    steady: VideoRecord, start: float, fps: float, expected: list[int]
) -> None:
    clip = load_clip(steady, start, 4, fps, 32, 48)
    assert clip.shape == (4, 32, 48, 3) and clip.dtype == np.uint8
    assert numbers(clip) == expected


def test_clip_outside_the_video_is_refused_with_the_allowed_range(steady: VideoRecord) -> None:
    with pytest.raises(DataError, match=r"allowed: 0 to 1\.54"):
        load_clip(steady, 1.6, 4, 8, 32, 32)
    with pytest.raises(DataError, match="allowed: 0 to"):
        load_clip(steady, -0.1, 4, 8, 32, 32)
    with pytest.raises(DataError, match="too short"):
        load_clip(steady, 0.0, 40, 8, 32, 32)
    with pytest.raises(DataError, match="`fps`=0"):
        load_clip(steady, 0.0, 4, 0, 32, 32)


def test_variable_frame_rate_clip_keeps_its_speed(tmp_path: Path, write_video: VideoWriter) -> None:
    times = [0.0, 0.1, 0.2, 1.0, 1.1, 1.2, 1.3]
    write_video(tmp_path / "x.mp4", [level(n) for n in range(7)], times=times)
    record = scan_videos(tmp_path, frames=6, fps=5).used[0]
    assert numbers(load_clip(record, 0.01, 6, 5, 32, 32)) == [0, 2, 2, 3, 3, 3]
    assert numbers(load_clip(record, 0.29, 6, 5, 32, 32)) == [2, 2, 3, 3, 4, 6]


@pytest.mark.parametrize(
    ("padding", "box"),
    [(((16, 16), (0, 0)), (0, 17, 96, 79)), (((0, 0), (20, 20)), (21, 0, 75, 96))],
)
def test_black_bars_are_cut_off(
    tmp_path: Path,
    write_video: VideoWriter,
    padding: tuple[tuple[int, int], tuple[int, int]],
    box: tuple[int, int, int, int],
) -> None:
    height, width = (96 - sum(pair) for pair in padding)
    pictures = [np.pad(level(n + 8, height, width), (*padding, (0, 0))) for n in range(8)]
    write_video(tmp_path / "x.mp4", pictures)
    record = scan_videos(tmp_path, frames=4, fps=8, min_side=50).used[0]
    assert record.box is not None
    assert np.abs(np.subtract(record.box, box)).max() <= 1
    assert "black bars were cut off" in record.notes[0]
    clip = load_clip(record, 0.0, 4, 8, 48, 48)
    assert [number - 8 for number in numbers(clip)] == [0, 1, 2, 3]
    assert clip.min() > 90
    with pytest.raises(DataError, match="smallest side allowed is 70 px"):
        scan_videos(tmp_path, frames=4, fps=8, min_side=70)


def test_moving_object_on_black_is_not_cropped(tmp_path: Path, write_video: VideoWriter) -> None:
    pictures = [np.zeros((64, 64, 3), np.uint8) for _ in range(8)]
    for number, picture in enumerate(pictures):
        picture[24:40, 4 + 5 * number : 20 + 5 * number] = 220
    write_video(tmp_path / "x.mp4", pictures)
    assert scan_videos(tmp_path, frames=4, fps=8).used[0].box is None


def test_every_file_is_accounted_for(tmp_path: Path, write_video: VideoWriter) -> None:
    folder = tmp_path / "Größe 1"
    good = write_video(folder / "3_sub" / "gut ü.mp4", [level(n) for n in range(12)])
    good.with_suffix(".txt").write_text("[trigger], ein Bär", encoding="utf-8")
    (folder / "cut.mp4").write_bytes(good.read_bytes()[:1500])
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("hello\n" * 99, encoding="utf-8")
    write_video(folder / "short.mp4", [level(n) for n in range(3)])
    write_video(folder / "latin.mp4", [level(n) for n in range(12)])
    (folder / "latin.txt").write_bytes("Bär".encode("latin-1"))
    Image.new("RGB", (64, 64)).save(folder / "still.png")
    found = scan_videos(folder, frames=8, fps=8, trigger="zorn")
    table = {record.path.name: (record.status, record.reason) for record in found.records}
    expected = {
        "gut ü.mp4": ("used", ""),
        "cut.mp4": ("refused", "truncated"),
        "zero.mp4": ("refused", "0 bytes"),
        "text.mp4": ("refused", "not a video"),
        "short.mp4": ("refused", "too short: 3 frames in 0.25 s, a clip of 8 frames at 8 fps"),
        "latin.mp4": ("used", ""),
        "still.png": ("ignored", "not a video"),
    }
    assert table.keys() == expected.keys()
    for name, (status, part) in expected.items():
        assert table[name][0] == status and part in table[name][1], (name, table[name])
    record = record_of(found, "gut ü.mp4")
    assert (record.caption, record.repeats) == ("zorn, ein Bär", 3)
    report = found.report()
    assert "2 used (2 with a caption, 0 without), 4 refused, 1 ignored" in report
    assert '64x64 1.4s@8  x3       3_sub/gut ü.mp4  "zorn, ein Bär"' in report


def test_video_of_exactly_one_clip_is_long_enough(tmp_path: Path, write_video: VideoWriter) -> None:
    write_video(tmp_path / "x.mp4", [level(n) for n in range(8)])
    record = scan_videos(tmp_path, frames=8, fps=8).used[0]
    assert numbers(load_clip(record, 0.0, 8, 8, 16, 16)) == list(range(8))
    with pytest.raises(DataError, match="too short"):
        scan_videos(tmp_path, frames=9, fps=8)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_are_videos(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(level(3 * n)) for n in range(6)]
    frames[0].save(
        tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], duration=100, loop=0
    )
    record = scan_videos(tmp_path, frames=4, fps=10).used[0]
    clip = load_clip(record, 0.2, 4, 10, 32, 32)
    assert [number // 3 for number in numbers(clip + 2)] == [2, 3, 4, 5]


def test_unusable_folder_raises_with_the_report(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello\n" * 99, encoding="utf-8")
    with pytest.raises(DataError, match="No usable videos(.|\n)*text.mp4 .*not a video"):
        scan_videos(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        scan_videos(tmp_path / "missing")


@pytest.fixture
def three(tmp_path: Path, write_video: VideoWriter) -> VideoFolder:
    """Videos of 12 frames with the levels 0, 9 and 18, each a still."""
    for name, start in (("a", 0), ("b", 9), ("c", 18)):
        write_video(tmp_path / f"{name}.mp4", [level(start)] * 12)
        (tmp_path / f"{name}.txt").write_text(name, encoding="utf-8")
    return scan_videos(tmp_path, frames=4, fps=8)


def test_batch_pairs_clips_with_captions(three: VideoFolder) -> None:
    clips, captions = VideoSet(three, 4, 8, 32, 48).batch(6, np.random.default_rng(0))
    assert clips.shape == (6, 3, 4, 32, 48) and clips.dtype == torch.float32
    grey = ((clips + 1) * 127.5).mean(dim=(1, 2, 3, 4))
    assert set(captions) == {"a", "b", "c"}
    expected = torch.tensor([40.0 + {"a": 0, "b": 72, "c": 144}[name] for name in captions])
    assert torch.allclose(grey, expected, atol=2.5)


def test_axes_of_a_batch_are_time_height_width(tmp_path: Path, write_video: VideoWriter) -> None:
    pictures = [level(2 * n) for n in range(4)]
    for picture in pictures:
        picture[32:, :, 0] = 230
        picture[:, 32:, 2] = 10
    write_video(tmp_path / "x.mp4", pictures)
    videos = VideoSet(scan_videos(tmp_path, frames=4, fps=8), 4, 8, 32, 32)
    clip = ((videos.batch(1, np.random.default_rng(0))[0][0] + 1) * 127.5).numpy()
    assert np.abs(clip[0, :, 24:, 8] - 230).max() < 30
    assert np.abs(clip[2, :, 8, 24:] - 10).max() < 30
    assert np.all(np.diff(clip[1, :, 4, 4]) > 10)


def test_draws_follow_the_generator_and_move_in_time(steady: VideoRecord) -> None:
    videos = VideoSet(scan_videos(steady.path.parent, frames=4, fps=8), 4, 8, 16, 16)
    first, _ = videos.batch(4, np.random.default_rng(1))
    again, _ = videos.batch(4, np.random.default_rng(1))
    assert torch.equal(first, again)
    assert len({float(clip[0, 0, 0, 0]) for clip in first}) > 1


def test_repeats_weigh_the_draw(tmp_path: Path, write_video: VideoWriter) -> None:
    write_video(tmp_path / "a.mp4", [level(0)] * 2)
    write_video(tmp_path / "9_often" / "b.mp4", [level(9)] * 2)
    videos = VideoSet(scan_videos(tmp_path, frames=1, fps=8), 1, 8, 8, 8)
    clips, _ = videos.batch(80, np.random.default_rng(0))
    often = (clips[:, 0, 0, 0, 0] > -0.3).float().mean()
    assert abs(float(often) - 0.9) < 0.1


def test_unreadable_file_is_dropped_and_the_run_goes_on(three: VideoFolder) -> None:
    videos = VideoSet(three, 4, 8, 16, 16)
    three.used[0].path.unlink()
    three.used[1].path.write_bytes(b"\0" * 100)
    _, captions = videos.batch(8, np.random.default_rng(0))
    assert captions == ["c"] * 8
    assert {path.name for path in videos.dropped} == {"a.mp4", "b.mp4"}
    assert all(path.name in reason for path, reason in videos.dropped.items())
    three.used[2].path.unlink()
    with pytest.raises(DataError, match="No video of(.|\n)*a.mp4(.|\n)*c.mp4"):
        videos.batch(1, np.random.default_rng(0))


def test_decode_failure_in_the_middle_drops_the_file(
    tmp_path: Path, write_video: VideoWriter
) -> None:
    noise = list(np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8))
    path = write_video(tmp_path / "a.mp4", noise, gop=6)
    write_video(tmp_path / "b.mp4", [level(3)] * 24)
    folder = scan_videos(tmp_path, frames=20, fps=8)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 - 3000 : len(data) // 2 + 3000] = bytes(6000)
    path.write_bytes(data)
    videos = VideoSet(folder, 20, 8, 16, 16)
    clips, _ = videos.batch(4, np.random.default_rng(0))
    assert set(videos.dropped) == {path}
    assert torch.allclose((clips + 1) * 127.5, torch.tensor(64.0), atol=2.5)


def test_clips_avoid_shot_cuts(tmp_path: Path, write_video: VideoWriter) -> None:
    write_video(tmp_path / "x.mp4", [level(0)] * 16 + [level(20)] * 16)
    videos = VideoSet(scan_videos(tmp_path, frames=4, fps=8), 4, 8, 16, 16)
    clips, _ = videos.batch(24, np.random.default_rng(0))
    spans = clips.amax(dim=(1, 2, 3, 4)) - clips.amin(dim=(1, 2, 3, 4))
    assert float(spans.max()) < 0.1
    assert {bool(clip.mean() > 0) for clip in clips} == {True, False}
    assert videos.cut_notes == {}


def test_video_of_nothing_but_cuts_is_used_and_noted(
    tmp_path: Path, write_video: VideoWriter
) -> None:
    path = write_video(tmp_path / "x.mp4", [level(20 * (n // 6 % 2)) for n in range(24)])
    videos = VideoSet(scan_videos(tmp_path, frames=8, fps=8), 8, 8, 16, 16)
    assert videos.batch(2, np.random.default_rng(0))[0].shape == (2, 3, 8, 16, 16)
    assert "a cut in" in videos.cut_notes[path] and videos.dropped == {}


def test_set_of_longer_clips_than_scanned_for_says_so(three: VideoFolder) -> None:
    with pytest.raises(DataError, match="shorter than 40 frames"):
        VideoSet(three, 40, 8, 16, 16).batch(1, np.random.default_rng(0))
