from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from minimaker.looks import STYLES
from minimaker.world import random_scene
from trainer.media import MediaError, read_clip, read_metadata, to_frames, write_clip

FPS = 8
VIDEO = (".mp4", ".webm")
SUFFIXES = (*VIDEO, ".webp", ".gif", "")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    scene = random_scene(np.random.default_rng(5), shape="star", colour="red", motion="moving left")
    return STYLES["poster"](scene)


def mean_error(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_reads_back_frame_by_frame(tmp_path, clip, suffix):
    path = write_clip(clip, tmp_path / f"clip{suffix}", FPS, scale=3)
    frames, fps = read_clip(path)
    expected = clip.repeat(3, axis=1).repeat(3, axis=2)
    assert fps == pytest.approx(FPS, rel=0.02)
    assert mean_error(frames, expected) < {".mp4": 3, ".webm": 4, ".gif": 3}.get(suffix, 1e-9)
    swapped = mean_error(frames[::-1], expected)
    assert swapped > 5 * max(mean_error(frames, expected), 0.5), "the frames are in their order"


@pytest.mark.parametrize("suffix", VIDEO)
def test_video_keeps_colours_exactly_enough(tmp_path, suffix):
    flat = np.full((4, 64, 64, 3), (236, 58, 52), np.uint8)
    frames, _ = read_clip(write_clip(flat, tmp_path / f"flat{suffix}", FPS))
    assert np.abs(frames.astype(int) - flat).max() <= 4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_travels_with_the_clip(tmp_path, clip, suffix):
    workflow = json.dumps({"nodes": ["a = b; #1", 'quo"te', "ünï\ncode"]})
    texts = {"workflow": workflow, "prompt": "{}", "note": "two lines:\nümlaut \\ = 'x'; 动画"}
    path = write_clip(clip, tmp_path / f"clip{suffix}", FPS, metadata=texts)
    found = read_metadata(path)
    assert {key: found[key] for key in texts} == texts


def test_a_workflow_longer_than_a_command_line_fits_into_mp4(tmp_path, clip):
    workflow = json.dumps({"text": "x" * 300_000})
    path = write_clip(clip, tmp_path / "clip.mp4", FPS, metadata={"workflow": workflow})
    assert read_metadata(path)["workflow"] == workflow
    assert len(read_clip(path)[0]) == len(clip)


def test_odd_sides_are_padded_in_video_and_kept_in_webp(tmp_path, clip):
    odd = clip[:, :45, :51]
    frames, _ = read_clip(write_clip(odd, tmp_path / "odd.mp4", FPS))
    assert frames.shape == (8, 46, 52, 3)
    assert mean_error(frames[:, :45, :51], odd) < 4
    frames, _ = read_clip(write_clip(odd, tmp_path / "odd.webp", FPS))
    np.testing.assert_array_equal(frames, odd)


@pytest.mark.parametrize("suffix", (".webp", ".gif"))
def test_a_pause_inside_an_animation_keeps_its_length(tmp_path, clip, suffix):
    paused = clip[[0, 1, 1, 1, 2, 3]]
    frames, fps = read_clip(write_clip(paused, tmp_path / f"pause{suffix}", 10))
    assert len(frames) == 6 and fps == pytest.approx(10)
    assert mean_error(frames, paused) < 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_paths_with_spaces_and_other_scripts_work(tmp_path, clip, suffix):
    path = tmp_path / "my clips Ångström 动画" / f"a red ★ %d 'growing'{suffix}"
    assert write_clip(clip, path, FPS) == path
    assert len(read_clip(path)[0]) == 8
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing temporary is left"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writing_again_replaces_the_clip(tmp_path, clip, suffix):
    path = write_clip(clip, tmp_path / f"clip{suffix}", FPS)
    write_clip(clip[:3, ::2, ::2], path, FPS)
    frames, _ = read_clip(path)
    assert frames.shape == (3, 32, 32, 3)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_with_other_files_is_never_replaced(tmp_path, clip):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(MediaError, match=r"notes\.txt.*new folder"):
        write_clip(clip, tmp_path, FPS)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_unknown_suffix_is_refused_with_the_allowed_ones(tmp_path, clip):
    with pytest.raises(MediaError, match=r"'\.avi'; use \.mp4, \.webm, \.webp, \.gif, or no suff"):
        write_clip(clip, tmp_path / "clip.avi", FPS)
    with pytest.raises(MediaError, match=r"use \.mp4"):
        read_clip(tmp_path / "clip.avi")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_place_that_cannot_be_written_is_named(tmp_path, clip, suffix):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(MediaError, match=r"Cannot write .*file.*may be written"):
        write_clip(clip, tmp_path / "file" / f"clip{suffix}", FPS)


def test_frames_that_are_no_uint8_clip_are_refused(tmp_path, clip):
    with pytest.raises(MediaError, match=r"uint8 \(frames, height, width, 3\).*got float32"):
        write_clip(clip.astype(np.float32), tmp_path / "a.mp4", FPS)
    with pytest.raises(MediaError, match="at least one frame"):
        write_clip(clip[:0], tmp_path / "a.mp4", FPS)
    with pytest.raises(MediaError, match="`fps`=0"):
        write_clip(clip, tmp_path / "a.mp4", 0)
    with pytest.raises(MediaError, match="`scale`=0"):
        write_clip(clip, tmp_path / "a.mp4", FPS, scale=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", (*VIDEO, ".webp", ".gif"))
def test_a_broken_or_missing_file_is_refused(tmp_path, suffix):
    broken = tmp_path / f"broken{suffix}"
    with pytest.raises(MediaError, match="does not exist"):
        read_clip(broken)
    broken.write_bytes(b"no clip at all")
    with pytest.raises(MediaError, match="Cannot read"):
        read_clip(broken)


def test_float_pixels_become_frames_and_are_clamped():
    pixels = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0]).expand(3, 2, 4, 5)
    frames = to_frames(pixels)
    assert frames.shape == (2, 4, 5, 3) and frames.dtype == np.uint8
    assert frames[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
