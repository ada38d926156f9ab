"""What is measured: stand-in models, style images, equal draws, and one distiller a variant.

Every variant takes the same step on the same draws, LoRA weights and loss functions; they differ in
how the step is organised (:data:`VARIANTS`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import repository  # noqa: F401
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from reference_step import ReferenceDistiller
from torch import Tensor

from minimaker.assemble import prompt_lines
from minimaker.looks import STYLES, write_style_folder
from minimaker.teacher import SCHEDULER
from minimaker.text import WIDTH, build_text_encoder, build_tokenizer, save_tokenizer
from trainer.config import TrainConfig, fields, load_config, with_overrides
from trainer.distill.batch import Session, make_batch
from trainer.distill.distiller import Distiller, sizes_of
from trainer.distill.draws import TRAJECTORY, Sizes, StepDraws, draw_step
from trainer.distill.loop import make_accelerator
from trainer.distill.session import REPLAY_CAPACITY, build_session
from trainer.lora.adapter import lora_parameters
from trainer.motion.sources import EncodedVideos, Replay
from trainer.runs.guards import NanGuard

COMPARABLE = {
    "adversarial.weight_mode": "fixed",
    "adversarial.content_weight": 0.0,
    "adversarial.statistics_weight": 0.0,
    "motion.target": "consistency",
    "trajectory.snr_power": 0.0,
}
"""What makes a step equal the reference's; all variants but ``recipe`` have it."""
IMAGE_SIDE = 64
REPLAYS = 8
TRAJECTORY_STEPS = 10
"""Teacher steps of the library. A step costs the same whatever their number, a rollout does not."""


@dataclass(frozen=True)
class StandIn:
    """Widths of a model with random weights; ``unet`` and ``vae`` are channels a level."""

    unet: tuple[int, ...]
    attention: int
    vae: tuple[int, ...]
    frames: int
    size: int


STAND_INS = {
    # TFLOP of 16 frames at 128 px: UNet .0512, encoding .0452, decoding two frames .0132. The real
    # ModelScope at 256 px has 4.89, 4.36 and 1.24: the same proportions within 3 %.
    "stand-in": StandIn((64, 128, 256, 256), 16, (24, 56, 104, 104), 16, 128),
    "tiny": StandIn((16, 32), 8, (8, 8, 8, 16), 8, 32),
}


@dataclass(frozen=True)
class Setting:
    """One configuration to measure; JSON can hold it, so that another process can rebuild it.

    ``workspace`` holds the images, the stand-in and the cached library; ``size`` is in pixels.
    """

    workspace: str
    model: str
    frames: int
    size: int
    batch: int
    repeats: int
    images: int
    device: str
    precision: str
    more: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @property
    def image_folder(self) -> Path:
        return Path(self.workspace) / f"images-{self.images}"

    @property
    def model_folder(self) -> str:
        stand_in = self.model in STAND_INS
        return str(Path(self.workspace) / self.model) if stand_in else self.model

    def config(self, checkpointing: bool = False) -> TrainConfig:
        """The recipe's defaults, as far as the reference has them too."""
        features = {"adversarial.features": "mini"} if self.model in STAND_INS else {}
        return load_config(
            overrides={
                "model": self.model_folder,
                "images": self.image_folder,
                "start_from": "none",
                "data.cache": Path(self.workspace) / "cache",
                "data.frames": self.frames,
                "data.height": self.size,
                "data.width": self.size,
                "data.batch_size": self.batch,
                "data.library_clips": 2,
                "trajectory.ddim_timesteps": TRAJECTORY_STEPS,
                **COMPARABLE,
                "hardware.device": self.device,
                "hardware.precision": self.precision,
                "hardware.gradient_checkpointing": checkpointing,
                **features,
                **dict(self.more),
            }
        )

    def prepare(self) -> Setting:
        """Write the images and the stand-in where they are missing."""
        if not self.image_folder.is_dir():
            look = STYLES["poster"]
            write_style_folder(self.image_folder, look, self.images, IMAGE_SIDE, seed=5)
        if self.model in STAND_INS and not Path(self.model_folder).is_dir():
            write_stand_in(Path(self.model_folder), STAND_INS[self.model])
        return self


def write_stand_in(folder: Path, shape: StandIn) -> None:
    """A ModelScope folder with random weights: real UNet and AutoencoderKL classes, small."""
    torch.manual_seed(0)
    levels = len(shape.unet)
    unet = UNet3DConditionModel(
        sample_size=32,
        down_block_types=("CrossAttnDownBlock3D",) * (levels - 1) + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * (levels - 1),
        block_out_channels=shape.unet,
        cross_attention_dim=WIDTH,
        attention_head_dim=shape.attention,
        norm_num_groups=min(16, shape.unet[0] // 2),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=shape.vae,
        layers_per_block=2,
        norm_num_groups=8,
    )
    tokenizer = build_tokenizer()
    text_encoder = build_text_encoder(tokenizer)
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        part.save_pretrained(folder / name)
    save_tokenizer(tokenizer, folder / "tokenizer")
    DDIMScheduler.from_config(SCHEDULER).save_pretrained(folder / "scheduler")
    about = {"name": folder.name, "frames": shape.frames, "height": shape.size, "width": shape.size}
    (folder / "mcm.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    (folder / "prompts.txt").write_text(prompt_lines(), encoding="utf-8")


@dataclass(frozen=True)
class Kind:
    """How a variant organises the step.

    ``reference``: in the reference code's shape. ``library``: real points from the teacher's stored
    rollouts, else from videos encoded once. ``recipe``: as an artist's run draws its points (most
    own predictions replayed) and weighs its gradients.
    """

    reference: bool = False
    library: bool = False
    checkpointing: bool = False
    recipe: bool = False


VARIANTS = {
    "reference": Kind(reference=True),
    "ours": Kind(),
    "library": Kind(library=True),
    "checkpointing": Kind(checkpointing=True),
    "library_checkpointing": Kind(library=True, checkpointing=True),
    "recipe": Kind(library=True, recipe=True),
}


@dataclass(frozen=True)
class Variant:
    """A distiller and the draws of its rounds: one batch each, or two where a batch is odd."""

    name: str
    distiller: Distiller
    rounds: list[list[StepDraws]]

    def run(self, number: int) -> list[dict[str, Tensor]]:
        """Gradients and losses of one round, from cleared gradients; no optimizer step."""
        s = self.distiller.session
        for optimizer in (s.optimizer, s.discriminator_optimizer):
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
        draws = self.rounds[number % len(self.rounds)]
        share = 1 / len(draws)
        session, logs = self.distiller.session, []
        for each in draws:
            batch = make_batch(session, each, number)
            outcome = self.distiller.gradients(batch, session.memory, share)
            session.memory = outcome.memory
            logs.append(outcome.logs)
        return logs


def build_variant(name: str, setting: Setting, shared: dict[str, Session] | None = None) -> Variant:
    """Variant ``name``; ``shared`` keeps sessions that several variants can use one after another.

    The reference has a session of its own: it is told to keep no text.
    """
    kind = VARIANTS[name]
    key = "reference" if kind.reference else f"checkpointing={kind.checkpointing}"
    shared = {} if shared is None else shared
    if key not in shared:
        shared[key] = new_session(setting, kind.checkpointing)
    session = _with_replay(shared[key])
    clips = pixel_clips(len(session.motions), setting)
    if not kind.library:
        session = replace(session, motions=_encoded(session, clips))
    if kind.recipe:
        usual = {record.name: record.default for record in fields() if record.name in COMPARABLE}
        config = with_overrides(session.config, usual)
        session = replace(session, parts=replace(session.parts, config=config))
    rounds = balanced_draws(session, setting.repeats, replay=kind.recipe)
    if kind.reference:
        return Variant(name, ReferenceDistiller(session, NanGuard(), clips), rounds)
    return Variant(name, Distiller(session, NanGuard()), rounds)


def new_session(setting: Setting, checkpointing: bool = False) -> Session:
    """A session whose student differs from its teacher, in the same way each time."""
    config = setting.config(checkpointing)
    session = build_session(config, make_accelerator(config), lambda _: None, lambda *_: None)
    generator = torch.Generator().manual_seed(3)
    for parameter in lora_parameters(session.model.network):
        change = 0.01 * torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(change.to(parameter))
    return session


def _with_replay(session: Session) -> Session:
    """The session with the same stored predictions each time."""
    replay = Replay(REPLAY_CAPACITY, session.sources.latent_shape)
    generator = torch.Generator().manual_seed(4)
    stored = torch.randn(REPLAYS, *session.sources.latent_shape, generator=generator)
    rows = torch.arange(REPLAYS)
    replay.add(stored, rows % len(session.prompts), rows % len(session.motions))
    return replace(session, replay=replay)


def pixel_clips(count: int, setting: Setting) -> Tensor:
    """Smooth noise as ``count`` videos (N, 3, F, H, W) in [-1, 1], on the CPU."""
    generator = torch.Generator().manual_seed(6)
    coarse = torch.randn(count, 3, 4, 8, 8, generator=generator)
    size = (setting.frames, setting.size, setting.size)
    clips = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")
    return clips.clamp(-1, 1)


@torch.no_grad()
def _encoded(session: Session, clips: Tensor) -> EncodedVideos:
    """The videos encoded once, in fp32 so that only the organisation of the step differs."""
    model = session.model
    latents = [model.encode_clips(clip[None].to(model.device)).cpu() for clip in clips]
    rows = torch.arange(len(clips)) % len(session.prompts)
    return EncodedVideos(torch.cat(latents), rows, model.noise)


def balanced_draws(session: Session, rounds: int, replay: bool) -> list[list[StepDraws]]:
    """Draws in which each round has exactly half of its points on a trajectory.

    So every round costs what the average step costs. An odd batch takes two steps a round.
    """
    share = session.config.recipe.trajectory.replay_probability if replay else 0.0
    config = with_overrides(session.config, {"trajectory.replay_probability": share})
    batch = config.data.batch_size
    wanted = sorted({batch // 2, batch - batch // 2})
    sizes = replace(sizes_of(session), replays=REPLAYS)
    found = [_steps_with(config, sizes, count, rounds) for count in wanted]
    return [list(steps) for steps in zip(*found, strict=True)]


def _steps_with(config: TrainConfig, sizes: Sizes, count: int, rounds: int) -> Sequence[StepDraws]:
    def matching() -> Iterator[StepDraws]:
        for step in range(1000 * rounds):
            draws = draw_step(config, sizes, step)
            if int((draws.source == TRAJECTORY).sum()) == count:
                yield draws

    steps = [draws for draws, _ in zip(matching(), range(rounds), strict=False)]
    if len(steps) < rounds:
        raise ValueError(
            "`trajectory.real_probability`="
            f"{config.recipe.trajectory.real_probability} hardly ever gives "
            f"{count} trajectory points in a batch of {config.data.batch_size}; leave it at 0.5."
        )
    return steps
