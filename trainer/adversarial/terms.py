"""The losses on frames that remember earlier ones, for a checkpoint to keep."""

from __future__ import annotations

from dataclasses import dataclass, field

from .content import ContentLoss
from .statistics import StatisticsLoss


@dataclass(frozen=True)
class FrameTerms:
    content: ContentLoss = field(default_factory=ContentLoss)
    statistics: StatisticsLoss = field(default_factory=StatisticsLoss)
