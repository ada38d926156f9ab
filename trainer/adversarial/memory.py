"""What a loss on frames remembers of the frames before."""

from __future__ import annotations

from torch import Tensor


class FrameMemory:
    """Tensors by name in ``kept``. They are replaced and never changed in place, so that a state is
    a copy of the names alone, and cheap to go back to.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.kept)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.kept = dict(state)
