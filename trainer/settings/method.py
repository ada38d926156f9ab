"""The recipe: trajectory points, motion consistency, and the style discriminator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from .base import ConfigError, Part

AUGMENTATIONS = ("color", "translation", "cutout")
Representation = Literal[
    "raw", "diff", "low_frequency", "high_frequency", "local_correlation", "global_correlation",
    "learned", "learned_deep",
]  # fmt: skip


def check_guidance(least: float, most: float) -> None:
    """Raise ConfigError for a range of guidance that is none."""
    if least > most:
        raise ConfigError(
            f"`trajectory.guidance_min`={least} is above `trajectory.guidance_max`={most}; lower "
            "the first or raise the second."
        )


class TrajectoryConfig(Part):
    """Which points of the teacher's trajectory a step trains on."""

    ddim_timesteps: int | None = Field(
        default=None,
        ge=8,
        le=250,
        description="Timesteps of the base model's (teacher's) sampler. More timesteps make each "
        "teacher step smaller. Not set: the base model's own, 50 for UNets, 48 for Wan.",
    )
    guidance_min: float | None = Field(
        default=None,
        ge=0.0,
        le=30.0,
        description="Lowest teacher guidance w to draw (a CFG scale of w + 1). Only used with "
        "`motion.target` consistency; stored trajectories use `data.library_guidance`. Not set: "
        "the base model's own, 5 for UNets, 4 for Wan.",
    )
    guidance_max: float | None = Field(
        default=None,
        ge=0.0,
        le=30.0,
        description="Highest teacher guidance w to draw. The mini model recommends 1 to 3. Not "
        "set: the base model's own, 15 for UNets, 4 for Wan.",
    )
    real_probability: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="Share of training points on the trajectory of the teacher or of a video; the "
        "others start from the student's own predictions (mixed trajectory distillation). 0 does "
        "not work: training needs some teacher points.",
    )
    replay_probability: float = Field(
        default=0.8,
        ge=0.0,
        le=1.0,
        description="Share of the student's own points that reuse a stored earlier prediction "
        "instead of making a new one. High values prevent washed-out clips at 4 and 8 steps.",
    )
    real_min_timestep: int = Field(
        default=800,
        ge=0,
        le=999,
        description="Lowest timestep of points on the teacher's trajectory. Points below it show "
        "the base model's look, which few-step sampling in a style never meets. Only used with "
        "`motion.target` endpoint.",
    )
    snr_power: float = Field(
        default=0.75,
        ge=0.0,
        le=1.0,
        description="Weight of a training point: (alpha_t / sigma_t) ** this power. An error of "
        "the predicted noise reaches the clip multiplied by sigma_t / alpha_t: with 0 (the paper) "
        "the first sampling step far outweighs the later ones, with 1 all count the same. For "
        "models that predict a velocity, such as Wan, it is (1 / sigma_t) ** this power.",
    )
    few_step_bias: float = Field(
        default=0.7,
        ge=0.0,
        le=1.0,
        description="Share of points drawn at exactly the timesteps that sampling in 1, 2, 4 and "
        "8 steps uses.",
    )

    @model_validator(mode="after")
    def _guidance_is_a_range(self) -> TrajectoryConfig:
        if self.guidance_min is not None and self.guidance_max is not None:
            check_guidance(self.guidance_min, self.guidance_max)
        return self


class MotionConfig(Part):
    """The loss on motion, and the losses that keep colour and movement."""

    target: Literal["endpoint", "consistency"] = Field(
        default="endpoint",
        description="What motion is compared with. endpoint: the final clip of the teacher's "
        "stored trajectory, which never changes. consistency (the paper): the student's own "
        "prediction one teacher step later, which changes with the student. Videos have no stored "
        "trajectory and always use consistency.",
    )
    representation: Representation = Field(
        default="diff",
        description="What the motion loss compares: raw latents (plain LCM), frame "
        "differences, frequency bands, correlations of frames, or a learned head (the"
        " paper).",
    )
    loss: Literal["huber", "l2"] = Field(
        default="huber",
        description="Distance measure between prediction and target.",
    )
    huber_c: float = Field(
        default=0.05,
        ge=1e-6,
        le=10.0,
        description="Error at which the Huber loss turns from quadratic to linear, in latent "
        "units.",
    )
    weight: float = Field(default=1.0, ge=0.0, le=100.0, description="Weight of the motion loss.")
    energy_weight: float = Field(
        default=0.5,
        ge=0.0,
        le=10.0,
        description="Weight of the motion energy loss: where a clip moves, whatever its colours. "
        "Raise it if clips stand still. 0 turns it off.",
    )
    anchor_weight: float = Field(
        default=0.0,
        ge=0.0,
        le=10.0,
        description="Weight that pulls the blurred prediction towards the motion target. 0.05 "
        "helps if colours of the prompt are lost, but also keeps the teacher's look, watermarks "
        "included. 0 turns it off.",
    )
    self_anchor_weight: float = Field(
        default=0.1,
        ge=0.0,
        le=10.0,
        description="Weight that keeps replayed predictions close to their stored version, after "
        "2x2 pooling. Raise it if clips wash out at 4 and 8 steps. 0 turns it off.",
    )
    self_anchor_max_timestep: int = Field(
        default=880,
        ge=0,
        le=999,
        description="Above this timestep, replayed predictions are not kept close to their stored "
        "version.",
    )
    head_lr: float = Field(
        default=1e-4, ge=1e-8, le=1.0, description="Learning rate of the learned motion head."
    )


class AdversarialConfig(Part):
    """The frame discriminator, which teaches the look of the style images."""

    weight_mode: Literal["gradient_ratio", "fixed"] = Field(
        default="gradient_ratio",
        description="gradient_ratio scales the discriminator's gradient to `adversarial.ratio` "
        "times that of the motion loss; fixed uses `adversarial.weight` unchanged (the paper).",
    )
    weight: float = Field(
        default=1.0,
        ge=0.0,
        le=100.0,
        description="Weight of the discriminator's loss, multiplied with the gradient ratio if "
        "that is used. 0 turns it off.",
    )
    ratio: float = Field(
        default=4.0,
        ge=0.0,
        le=20.0,
        description="Gradient of the discriminator's loss divided by that of the motion loss. "
        "Raise it for more style, lower it for more motion.",
    )
    loss: Literal["hinge", "bce", "wgan"] = Field(default="hinge", description="GAN loss.")
    features: str = Field(
        default="auto",
        min_length=1,
        description="Frozen feature network that the discriminator uses: a name, the folder of a "
        "DINOv2 or CLIP vision model, a CLIP vision file, or auto to match the base model.",
    )
    clip: str = Field(
        default="auto",
        min_length=1,
        description="CLIP model for the caption loss: a folder, a file from ComfyUI's clip_vision "
        "with its text encoder beside it, auto to look in the local Hugging Face cache, or none. "
        "The mini model needs none.",
    )
    mismatched_captions: bool = Field(
        default=True,
        description="Also shows the discriminator style images with wrong captions, as fakes. "
        "Clips then follow prompts better.",
    )
    caption_weight: float = Field(
        default=0.6,
        ge=0.0,
        le=10.0,
        description="Weight of the caption loss: frames should show what the prompt says, "
        "measured by `adversarial.clip`. Raise it if colours or objects of the prompt are lost. 0 "
        "turns it off.",
    )
    content_weight: float = Field(
        default=0.8,
        ge=0.0,
        le=100.0,
        description="Weight of the content loss: a frame should have the same content at the same "
        "location as the motion target's frame, compared in deep feature maps. Raise it if "
        "objects lose their shape, lower it if the style does not come through. 0 turns it off.",
    )
    statistics_weight: float = Field(
        default=2.0,
        ge=0.0,
        le=100.0,
        description="Weight of the statistics loss: the distribution of shallow feature maps, per "
        "location and caption, and their mean, should match the style images. Raise it if the "
        "style does not come through or a watermark stays, lower it if objects lose their shape. "
        "0 turns it off.",
    )
    r1_weight: float = Field(
        default=0.0,
        ge=0.0,
        le=1000.0,
        description="Weight of the R1 penalty on real features; try 1 if the discriminator "
        "becomes too strong.",
    )
    augment: str = Field(
        default="color,translation,cutout",
        description="Differentiable augmentation, comma-separated: color, translation, cutout. "
        "Empty: none. Leave out color if exact hues are part of the style.",
    )
    lr: float = Field(
        default=2e-4, ge=1e-8, le=1.0, description="Learning rate of the discriminator's heads."
    )

    @field_validator("augment")
    @classmethod
    def _known_augmentations(cls, text: str) -> str:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in names if name not in AUGMENTATIONS]:
            raise ValueError(
                f"`adversarial.augment`={text!r}: {', '.join(unknown)} is not known; use a "
                f"comma-separated list of {', '.join(AUGMENTATIONS)}, or leave it empty."
            )
        return ",".join(names)


class Recipe(Part):
    """The method's own numbers: weights, powers, probabilities and targets."""

    trajectory: TrajectoryConfig = Field(
        default_factory=TrajectoryConfig, description="Trajectory points"
    )
    motion: MotionConfig = Field(default_factory=MotionConfig, description="Motion consistency")
    adversarial: AdversarialConfig = Field(
        default_factory=AdversarialConfig, description="Style discriminator"
    )
