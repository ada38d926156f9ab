"""The test before a long run measures on a clip or two and leaves nothing behind."""

from __future__ import annotations

from trainer.config import load_config
from trainer.distill.preflight import CLIPS, STAGES, preflight
from trainer.mini.words import style_folder


def test_it_makes_two_clips_of_a_large_library_tells_its_stages_and_keeps_nothing(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    config = load_config(overrides={
        "images": str(style_folder("ink")), "run": str(tmp_path / "r"), "data.cache": str(cache),
        "data.library_clips": 5000, "data.batch_size": 2, "data.frames_per_clip": 1,
        "trajectory.ddim_timesteps": 8, "preview.steps": (1,), "preview.teacher_steps": 1,
        "preview.count": 1, "hardware.device": "cpu"})  # fmt: skip
    said: list[str] = []
    report = preflight(config, said.append)
    assert [line for line in said if not line.startswith("[1/")] == [
        f"[2/{STAGES}] A first training step",
        f"[3/{STAGES}] A second training step, timed",
        f"[4/{STAGES}] One preview",
        f"[{STAGES}/{STAGES}] Done",
    ]
    assert any(line.endswith(f"{CLIPS} of {CLIPS}") for line in said)
    assert report.library_seconds > 0
    stored = 2 * 8 * 4 * 8 * 8 * 2  # the end and a state of 8 frames, in fp16; the noise is drawn
    assert report.library_bytes == 5000 * stored
    assert f"{report.library_bytes / 2**20:.0f} MiB more, once" in report.text()
    assert "Example clips" in report.text() and report.to_json()["library_seconds"] > 0
    assert list(cache.iterdir()) == [] and not (tmp_path / "r").exists()


def test_the_peak_is_the_peak_and_not_what_is_left_at_the_end():
    import torch

    from trainer.distill.preflight import _forget_peak, _peak_gib

    device = torch.device("cpu")
    _forget_peak(device)
    before = _peak_gib(device)
    torch.ones(100 << 20).sum()  # 0.4 GiB, freed at once
    assert _peak_gib(device) - before > 0.3
    _forget_peak(device)
    assert _peak_gib(device) - before < 0.2
