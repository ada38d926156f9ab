"""Every setting of a training run: one field, one default, one range and one help text each.

The command line, the web form, the docs and ``config.toml`` are all generated from these fields, so
no default or range is written anywhere else. Reading and writing: `trainer.config`.
"""

from .around import (
    CheckpointConfig,
    DataConfig,
    HardwareConfig,
    LoraConfig,
    OptimConfig,
    PreviewConfig,
)
from .base import ConfigError, Part
from .method import AUGMENTATIONS, AdversarialConfig, MotionConfig, Recipe, TrajectoryConfig
from .quality import QUALITY_PRESETS, QualityPreset
from .run import TrainConfig

__all__ = [
    "AUGMENTATIONS",
    "QUALITY_PRESETS",
    "AdversarialConfig",
    "CheckpointConfig",
    "ConfigError",
    "DataConfig",
    "HardwareConfig",
    "LoraConfig",
    "MotionConfig",
    "OptimConfig",
    "Part",
    "PreviewConfig",
    "QualityPreset",
    "Recipe",
    "TrainConfig",
    "TrajectoryConfig",
]
