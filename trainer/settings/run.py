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
        description="Base model: mini (comes with the trainer), a diffusers model folder, or a "
        "Stable Diffusion 1.5 checkpoint for AnimateDiff, or a transformer file of Wan.",
    )
    motion_module: UserPath | None = Field(
        default=None,
        description="AnimateDiff's motion module, file or MotionAdapter folder, for a Stable "
        "Diffusion 1.5 as `model`.",
    )
    vae: UserPath | None = Field(
        default=None,
        description="VAE file or folder in place of the base model's own, for checkpoints without "
        "one. Not set for Wan: the one in ComfyUI's models/vae beside it.",
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
    images: UserPath | None = Field(
        default=None, description="Folder of style images, with captions beside them."
    )
    videos: UserPath | None = Field(
        default=None,
        description="Folder of motion clips. Not set: motion comes from the teacher's own library.",
    )
    prompts: UserPath | None = Field(
        default=None,
        description="UTF-8 text file of prompts for the library and previews, one a line.",
    )
    run: UserPath = Field(
        default=Path("runs/run"),
        description="Run folder: every state, sample and result goes there.",
    )
    trigger: str = Field(
        default="",
        description="Unusual word that switches the style on, e.g. wsnth. It replaces [trigger] in "
        "captions. Empty: the style is always on.",
    )
    prompt_template: str = Field(
        default="[trigger]",
        description="Caption of images that have none.",
    )
    steps: int = Field(default=300, ge=1, le=10_000_000, description="Training steps of the run.")
    minutes: float | None = Field(
        default=None,
        ge=0.01,
        le=100_000.0,
        description="Ends the run after so many minutes, or at its last step if that comes first. "
        "Not set: no limit.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="Seed of everything random; the same seed repeats a run.",
    )
    start_from: str = Field(
        default="auto",
        min_length=1,
        description="Where the LoRA begins: auto, the base model's own few-step LoRA "
        "(warm_start.safetensors in its folder) if it has this rank, which saves training time; "
        "none; or a LoRA file of ours or an official MCM folder, of any rank. A rank above "
        "`lora.rank` is kept.",
    )
    preset: Literal["recipe", "paper", "lcm"] = Field(
        default="recipe",
        description="Defaults to start from: recipe (works best here), paper (as published), lcm "
        "(plain baseline).",
    )
    memory: Literal["fast", "lean", "tight"] = Field(
        default="fast",
        description="How graphics memory is saved: fast keeps all that a step computes; lean "
        "computes part of it twice, about a third slower; tight also keeps the optimizer in main "
        "memory, up to a second a step more.",
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
        }

    @property
    def aims_at_ends(self) -> bool:
        """Whether motion is compared with the ends of the teacher's stored trajectories."""
        return self.recipe.motion.target == "endpoint" and self.videos is None

    @property
    def library_stride(self) -> int:
        """The library's teacher visits every Nth timestep of the trajectory; this is N."""
        if not self.aims_at_ends:
            return 1
        return max(1, self.recipe.trajectory.ddim_timesteps // self.data.library_steps)

    @model_validator(mode="after")
    def _frames_fit(self) -> TrainConfig:
        if self.data.frames is not None and self.data.frames_per_clip > self.data.frames:
            raise ValueError(
                f"`data.frames_per_clip`={self.data.frames_per_clip} is more than `data.frames`="
                f"{self.data.frames}; lower the first or raise the second."
            )
        return self
