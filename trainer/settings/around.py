"""The settings around the method: data, LoRA, optimizer, hardware, previews, checkpoints."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from .base import Colour, Part, UserPath


class DataConfig(Part):
    """What the clips and style images look like, and the teacher's trajectory library."""

    expert: ClassVar = frozenset(
        {"frames_per_clip", "min_side", "library_steps", "library_guidance"}
    )

    frames: int | None = Field(
        default=None,
        ge=2,
        le=128,
        description="Length of a clip in frames. Not set: the model's own.",
    )
    height: int | None = Field(
        default=None,
        ge=32,
        le=2048,
        multiple_of=8,
        description="Clip height in pixels, a multiple of 8. Not set: the model's own. Lower it "
        "to save memory.",
    )
    width: int | None = Field(
        default=None,
        ge=32,
        le=2048,
        multiple_of=8,
        description="Clip width in pixels, a multiple of 8. Not set: the model's own. Lower it to"
        " save memory.",
    )
    fps: int | None = Field(
        default=None,
        ge=1,
        le=60,
        description="Frame rate of clips and previews, in frames per second. Not set: the model's "
        "own.",
    )
    batch_size: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Clips computed at once. If memory runs out, lower it and raise "
        "`optim.accumulation` instead.",
    )
    frames_per_clip: int = Field(
        default=2,
        ge=1,
        le=32,
        description="Frames of each clip that the discriminator sees. More needs more memory.",
    )
    crop: Literal["center", "random"] = Field(
        default="center",
        description="How style images are cropped to the clip's shape; random adds variety to "
        "small folders.",
    )
    min_side: int = Field(
        default=32,
        ge=8,
        le=2048,
        description="Smallest side allowed for style images, in pixels. Smaller images are "
        "refused and listed.",
    )
    background: Colour = Field(
        default="#ffffff",
        description="Colour that replaces transparent parts of style images: #rrggbb, or a name.",
    )
    library_clips: int = Field(
        default=128,
        ge=1,
        le=100_000,
        description="Number of example clips that the base model (teacher) makes, the trajectory "
        "library. They are made once and used for all styles. More clips cover more prompts; each "
        "takes one full sampling.",
    )
    library_steps: int | None = Field(
        default=None,
        ge=1,
        le=250,
        description="Sampling steps for each example clip; half as many take half the time. The "
        "true number is at least this, at most `trajectory.ddim_timesteps`. Only used with "
        "`motion.target` endpoint; consistency needs every timestep. Not set: the base model's "
        "own, 25 for UNets, 24 for Wan.",
    )
    library_guidance: float | None = Field(
        default=None,
        ge=0.0,
        le=30.0,
        description="Guidance w for the example clips (LCM's form: a CFG scale of w + 1). Not set: "
        "the base model's own, 8 for UNets, 4 for Wan.",
    )
    cache: UserPath | None = Field(
        default=None,
        description="Folder for cached latents and libraries. Not set: the trainer's own.",
    )


class LoraConfig(Part):
    """The adapter that is trained."""

    rank: int = Field(
        default=16,
        ge=1,
        le=512,
        description="LoRA rank; alpha is the same. A higher rank can learn more of a style, but "
        "needs more memory and makes a larger file.",
    )


class OptimConfig(Part):
    """The student's optimizer."""

    expert: ClassVar = frozenset(
        {
            "optimizer",
            "offload",
            "weight_decay",
            "grad_clip",
            "warmup_steps",
            "schedule",
            "ema_decay",
        }
    )

    optimizer: Literal["adamw", "adamw8bit"] = Field(
        default="adamw",
        description="adamw8bit saves memory. It needs an NVIDIA card and the package bitsandbytes.",
    )
    offload: bool = Field(
        default=False,
        description="Keeps AdamW's moments and the averaged LoRA in main memory. Saves three "
        "quarters of what training the LoRA needs beyond its weights, and adds up to a second per "
        "step.",
    )
    lr: float = Field(
        default=1e-4,
        ge=1e-8,
        le=1.0,
        description="Peak learning rate of the LoRA. Halve it when losses jump or turn to NaN. The "
        "mini model recommends 2e-3.",
    )
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0, description="Decoupled weight decay.")
    grad_clip: float = Field(
        default=1.0,
        ge=0.0,
        le=1000.0,
        description="Gradients with a larger norm are clipped to this. 0 turns clipping off.",
    )
    warmup_steps: int = Field(default=10, ge=0, le=100_000, description="Steps of linear warm-up.")
    schedule: Literal["constant", "cosine"] = Field(
        default="cosine",
        description="Learning rate after the warm-up. cosine falls to zero at the end of the run, "
        "set by `steps` or `minutes`.",
    )
    ema_decay: float = Field(
        default=0.95,
        ge=0.0,
        le=0.99999,
        description="Decay of the moving average of the LoRA, which is what gets exported. 0 "
        "exports the last step without averaging.",
    )
    accumulation: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Batches whose gradients are added up in a training step. Raise it for a "
        "larger effective batch in the same memory.",
    )

    @model_validator(mode="after")
    def _one_way_to_save(self) -> OptimConfig:
        if self.offload and self.optimizer == "adamw8bit":
            raise ValueError(
                "`optim.offload`=true works with `optim.optimizer`='adamw' only, got 'adamw8bit', "
                "whose state must stay on the card; choose one of the two."
            )
        return self


class HardwareConfig(Part):
    """Where and how precisely a run computes."""

    expert: ClassVar = frozenset(
        {
            "precision",
            "decode_precision",
            "gradient_checkpointing",
            "offload_idle",
            "blocks_to_swap",
            "channels_last",
            "compile",
        }
    )

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="auto prefers an NVIDIA card, then an Apple one, then the CPU."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto uses bf16 if the device supports it, otherwise fp32."
    )
    decode_precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Precision for decoding frames for the discriminator. auto uses bf16 on cards "
        "and CPUs that support it.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recomputes activations instead of storing them. Halves the memory of a "
        "training step or better, and makes it about a third slower.",
    )
    offload_idle: bool = Field(
        default=True,
        description="Moves the text encoder and autoencoder to main memory while they are not "
        "needed. Saves about 1 GiB of graphics memory.",
    )
    blocks_to_swap: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Blocks of the base model that wait in main memory and are copied to the card "
        "just before their use, for models larger than the card. Needs gradient checkpointing and "
        "as much free main memory; on a card only. 0: none.",
    )
    channels_last: bool = Field(
        default=False,
        description="Stores images in channels-last order, which tensor cores prefer. May be "
        "faster on NVIDIA cards.",
    )
    compile: bool = Field(
        default=False,
        description="Compiles the base model's blocks with torch.compile. The first steps take "
        "minutes; long runs on NVIDIA cards may get faster.",
    )

    @model_validator(mode="after")
    def _swapping_recomputes(self) -> HardwareConfig:
        if not self.blocks_to_swap:
            return self
        if not self.gradient_checkpointing:
            raise ValueError(
                f"`hardware.blocks_to_swap`={self.blocks_to_swap} needs "
                "`hardware.gradient_checkpointing`=true: a block's weights must be fetched again "
                "for its gradient. Set `memory` to lean or tight."
            )
        if self.compile:
            raise ValueError(
                f"`hardware.blocks_to_swap`={self.blocks_to_swap} does not work with "
                "`hardware.compile`=true, which compiles weights that stay in their place; turn "
                "one of the two off."
            )
        return self


class PreviewConfig(Part):
    """Clips that are sampled while training."""

    expert: ClassVar = frozenset({"teacher_steps"})

    every: int = Field(
        default=100,
        ge=0,
        le=1_000_000,
        description="Training steps between previews. 0: no previews.",
    )
    prompts: tuple[str, ...] = Field(
        default=(),
        description="Prompts for the previews. Empty: taken from the captions or the prompts file.",
    )
    steps: tuple[Annotated[int, Field(ge=1, le=50)], ...] = Field(
        default=(1, 2, 4, 8),
        min_length=1,
        description="Numbers of sampling steps to show side by side, each from 1 to 50.",
    )
    teacher_steps: int = Field(
        default=50, ge=1, le=250, description="Sampling steps of the base model's clip beside them."
    )
    count: int = Field(default=2, ge=1, le=16, description="Prompts per preview.")


class CheckpointConfig(Part):
    """Complete states to resume from."""

    every: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="Training steps between checkpoints. Stopping also saves one.",
    )
    keep: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Number of checkpoints to keep; older ones are deleted.",
    )
