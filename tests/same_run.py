"""Whether a run on a pretended card is that of the CPU."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from trainer.runs.events import read_events
from trainer.runs.folder import Run


def assert_same_run(on_card: Run, on_cpu: Run) -> None:
    """The same losses, previews and LoRA, but for the rounding of a card's fused optimizer."""
    for name in ("step", "preview"):
        ours, theirs = (read_events(run.events_path, name) for run in (on_card, on_cpu))
        assert ours
        for a, b in zip(ours, theirs, strict=True):
            numbers = {k: v for k, v in b.items() if isinstance(v, float) and k != "time"}
            assert numbers == pytest.approx({k: a[k] for k in numbers}, rel=1e-3, abs=1e-5)
    ours, theirs = (load_file(run.export_path) for run in (on_card, on_cpu))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=2e-3, atol=2e-5)
