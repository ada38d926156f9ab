"""`TrainConfig`: the whole configuration of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ..paths import BUNDLED
from .around import (
    CheckpointConfig,
    DataConfig,
    HardwareConfig,
    LoraConfig,
    OptimConfig,
    PreviewConfig,
)
from .base import Part, UserPath
from .method import Recipe


class TrainConfig(Part):
    """The whole configuration of one run."""

    model: str = Field(
        default=BUNDLED,
        min_length=1,
        description="Base model: mini (included), a diffusers model folder, or a Stable Diffusion "
        "1.5 checkpoint for AnimateDiff, or a transformer file of Wan.",
    )
    motion_module: UserPath | None = Field(
        default=None,
        description="AnimateDiff motion module (a file or a MotionAdapter folder), needed if "
        "`model` is Stable Diffusion 1.5.",
    )
    vae: UserPath | None = Field(
        default=None,
        description="VAE file or folder, for checkpoints without one; it replaces the base "
        "model's own. Not set for Wan: the one in ComfyUI's models/vae beside it.",
    )
    text_encoder: UserPath | None = Field(
        default=None,
        description="Text encoder file for a Wan as a single file. Not set: the one in ComfyUI's "
        "models/text_encoders beside it.",
    )
    tiny_vae: UserPath | None = Field(
        default=None,
        description="Tiny VAE file (taew2_1 or lighttaew2_1) for Wan: saves much memory and time. "
        "Not set: the one in ComfyUI's models/vae_approx beside it, if there is one.",
    )
    other_expert: UserPath | None = Field(
        default=None,
        description="The other file of a Wan 2.2 14B, whose two networks share the noise levels: "
        "the high-noise one if `model` is the low-noise one. Not set: the one beside it.",
    )
    images: UserPath | None = Field(
        default=None, description="Folder of style images, with their captions."
    )
    videos: UserPath | None = Field(
        default=None,
        description="Folder of videos to learn motion from. Not set: motion is learned from the "
        "base model's example clips.",
    )
    prompts: UserPath | None = Field(
        default=None,
        description="UTF-8 text file of prompts for example clips and previews, one per line.",
    )
    run: UserPath = Field(
        default=Path("runs/run"),
        description="Run folder for all states, samples and results.",
    )
    trigger: str = Field(
        default="",
        description="Unusual word that switches the style on, e.g. wsnth. It replaces [trigger] "
        "in captions. Empty: the style is always on.",
    )
    prompt_template: str = Field(
        default="[trigger]",
        description="Caption for images without one.",
    )
    steps: int = Field(
        default=300, ge=1, le=10_000_000, description="Length of the run in training steps."
    )
    minutes: float | None = Field(
        default=None,
        ge=0.01,
        le=100_000.0,
        description="The run ends after this many minutes, or at its last step if that comes "
        "first. Not set: no limit.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="Seed for all random numbers; the same seed repeats a run.",
    )
    start_from: str = Field(
        default="auto",
        min_length=1,
        description="LoRA to start from. auto: the base model's own few-step LoRA "
        "(warm_start.safetensors in its folder) if its rank matches, which saves training time. "
        "none: start from zero. Or the path of a LoRA from this trainer, an official MCM folder "
        "or, for Wan, a step LoRA of others, of any rank; a rank above `lora.rank` is kept.",
    )
    preset: Literal["recipe", "paper", "lcm"] = Field(
        default="recipe",
        description="Set of defaults: recipe (works best in our tests), paper (as published), lcm "
        "(plain baseline).",
    )
    memory: Literal["fast", "lean", "tight"] = Field(
        default="fast",
        description="How to save graphics memory. fast: nothing is saved. lean: gradient "
        "checkpointing, about a third slower. tight: also keeps the optimizer in main memory, up "
        "to a second more per training step.",
    )
    data: DataConfig = Field(default_factory=DataConfig, description="Clips and images")
    recipe: Recipe = Field(default_factory=Recipe, description="Recipe")
    lora: LoraConfig = Field(default_factory=LoraConfig, description="LoRA")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="Optimizer")
    hardware: HardwareConfig = Field(default_factory=HardwareConfig, description="Hardware")
    preview: PreviewConfig = Field(default_factory=PreviewConfig, description="Previews")
    checkpoint: CheckpointConfig = Field(
        default_factory=CheckpointConfig, description="Checkpoints"
    )

    @property
    def companions(self) -> dict[str, Path | None]:
        """The files beside the base model's own, by setting."""
        return {
            "motion_module": self.motion_module,
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tiny_vae": self.tiny_vae,
            "other_expert": self.other_expert,
        }

    @property
    def aims_at_ends(self) -> bool:
        """Whether motion is compared with the ends of the teacher's stored trajectories."""
        return self.recipe.motion.target == "endpoint" and self.videos is None

    @model_validator(mode="after")
    def _frames_fit(self) -> TrainConfig:
        if self.data.frames is not None and self.data.frames_per_clip > self.data.frames:
            raise ValueError(
                f"`data.frames_per_clip`={self.data.frames_per_clip} is more than `data.frames`="
                f"{self.data.frames}; lower the first or raise the second."
            )
        return self
