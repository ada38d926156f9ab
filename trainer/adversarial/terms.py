"""The losses on frames that remember earlier ones, for a checkpoint to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from torch import Tensor

from .common import CommonLoss
from .content import ContentLoss
from .statistics import StatisticsLoss


@dataclass(frozen=True)
class FrameTerms:
    content: ContentLoss = field(default_factory=ContentLoss)
    statistics: StatisticsLoss = field(default_factory=StatisticsLoss)
    common: CommonLoss = field(default_factory=CommonLoss)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What each has seen, by its name."""
        return {part.name: getattr(self, part.name).state_dict() for part in fields(self)}

    def load(self, tensors: Mapping[str, dict[str, Tensor]]) -> None:
        """Go on from `tensors`; what they lack begins anew."""
        for part in fields(self):
            getattr(self, part.name).load_state_dict(tensors.get(part.name, {}))
