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
        default=None, ge=2, le=128, description="Frames of a clip. Not set: the model's own number."
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
        description="Frames a second of clips and previews. Not set: the model's own.",
    )
    batch_size: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Clips in a step. Lower it when memory runs out and raise "
        "`optim.accumulation` instead.",
    )
    frames_per_clip: int = Field(
        default=2,
        ge=1,
        le=32,
        description="Frames of each clip that are decoded and shown to the discriminator. More "
        "costs memory.",
    )
    crop: Literal["center", "random"] = Field(
        default="center",
        description="How style images are cut to the clip's shape; random varies small folders.",
    )
    min_side: int = Field(
        default=32,
        ge=8,
        le=2048,
        description="Images with a shorter side than this, in pixels, are refused and listed.",
    )
    background: Colour = Field(
        default="#ffffff",
        description="Colour for transparent parts of style images: #rrggbb, or a name.",
    )
    library_clips: int = Field(
        default=128,
        ge=1,
        le=100_000,
        description="Clips in the teacher's trajectory library. Made once and shared by all "
        "styles; more clips follow more prompts, at one full teacher sampling each.",
    )
    library_steps: int = Field(
        default=25,
        ge=1,
        le=250,
        description="Steps in which the library's teacher samples, half as many take half the "
        "time. At least this many are taken, at most `trajectory.ddim_timesteps`. Counts with "
        "`motion.target` endpoint; consistency needs every timestep.",
    )
    library_guidance: float = Field(
        default=8.0,
        ge=0.0,
        le=30.0,
        description="Guidance w of the library's teacher (LCM form; a CFG scale of w + 1).",
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
        description="LoRA rank, and its alpha. More rank holds more style, memory and file size "
        "with it.",
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
        description="adamw8bit saves memory, and needs an NVIDIA card and bitsandbytes.",
    )
    offload: bool = Field(
        default=False,
        description="Keeps AdamW's moments and the averaged LoRA in main memory. Saves three "
        "quarters of what the LoRA takes beside its weights, and adds up to a second a step.",
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
        description="Largest norm of the student's gradient. 0 turns clipping off.",
    )
    warmup_steps: int = Field(default=10, ge=0, le=100_000, description="Steps of linear warm-up.")
    schedule: Literal["constant", "cosine"] = Field(
        default="cosine",
        description="Learning rate after the warm-up; cosine falls to zero where the run "
        "ends, by `steps` or `minutes`.",
    )
    ema_decay: float = Field(
        default=0.95,
        ge=0.0,
        le=0.99999,
        description="Decay of the averaged LoRA that is exported. 0 exports the last one.",
    )
    accumulation: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Batches a step. Raise it for a larger batch in the same memory.",
    )

    @model_validator(mode="after")
    def _one_way_to_save(self) -> OptimConfig:
        if self.offload and self.optimizer == "adamw8bit":
            raise ValueError(
                "`optim.offload`=true goes with `optim.optimizer`='adamw' only, got 'adamw8bit', "
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
            "channels_last",
            "compile",
        }
    )

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="auto takes the NVIDIA card, then Apple's, then the CPU."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto takes bf16 where the device has it and fp32 elsewhere."
    )
    decode_precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Arithmetic of the frames decoded for the discriminator. auto takes bf16 on "
        "cards and processors with instructions for it.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Computes activations twice instead of keeping them. Halves the memory of a "
        "step or better, and makes it about a third slower.",
    )
    offload_idle: bool = Field(
        default=True,
        description="Text encoder and autoencoder wait in main memory while they are not needed. "
        "Saves about 1 GiB of graphics memory.",
    )
    channels_last: bool = Field(
        default=False,
        description="Keeps images with their channels last, the order that tensor cores read. "
        "May be faster on NVIDIA cards.",
    )
    compile: bool = Field(
        default=False,
        description="Compiles the UNet's blocks with torch.compile. The first steps of the first "
        "run take minutes; long runs on NVIDIA cards may get faster.",
    )


class PreviewConfig(Part):
    """Clips that are sampled while training."""

    expert: ClassVar = frozenset({"teacher_steps"})

    every: int = Field(
        default=100, ge=0, le=1_000_000, description="Steps from one preview to the next. 0: never."
    )
    prompts: tuple[str, ...] = Field(
        default=(),
        description="Prompts of the previews. Empty: chosen from the captions or the prompts file.",
    )
    steps: tuple[Annotated[int, Field(ge=1, le=50)], ...] = Field(
        default=(1, 2, 4, 8),
        min_length=1,
        description="Sampling steps that are shown side by side, each from 1 to 50.",
    )
    teacher_steps: int = Field(
        default=50, ge=1, le=250, description="Sampling steps of the teacher's clip beside them."
    )
    count: int = Field(default=2, ge=1, le=16, description="Prompts in a preview.")


class CheckpointConfig(Part):
    """Complete states to resume from."""

    every: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="Steps from one checkpoint to the next. One is also saved at a stop.",
    )
    keep: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Newest checkpoints that are kept; older ones are deleted.",
    )
