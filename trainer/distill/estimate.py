"""How much memory a run will take, without a card: the real step on shapes alone.

The networks are moved to PyTorch's "meta" device, where tensors have no contents, and one step is
taken there under a `MemoryMeter`. What is counted is what the real step allocates, because it is
the real step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..adversarial.augment import draw_augment
from ..adversarial.content import deeper_half
from ..config import TrainConfig, with_overrides
from ..families import VideoModel, load_model
from ..settings.cards import CARDS
from .batch import Batch, OwnPoints, RealPoints, StyleBatch, to_device
from .meter import MemoryMeter, fused_attention, module_bytes, storage_bytes
from .optimizers import state_bytes
from .precision import decoder_dtype
from .session import Session, build_decoder, build_student, trained_parts
from .step import gradients

GIB = 1 << 30
META = torch.device("meta")
CONTEXT = GIB // 2
"""What CUDA itself, its libraries and their workspaces take on a card (0.4 to 0.6 GiB)."""
TOKENS = 77
HEADROOM = 0.9
"""Part of the device's memory that a run may take."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a training step.

    ``weights`` of frozen networks; ``trained`` of adapter, heads and averages; ``optimizer`` state;
    ``step``: activations and gradients; ``context`` of the device's own libraries.
    """

    weights: int
    trained: int
    optimizer: int
    step: int
    context: int

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.optimizer + self.step + self.context

    @property
    def gib(self) -> float:
        return self.total / GIB

    def text(self) -> str:
        rows = (
            ("Frozen weights", self.weights),
            ("LoRA and heads", self.trained),
            ("Optimizer", self.optimizer),
            ("Step", self.step),
            ("Device", self.context),
            ("Peak memory", self.total),
        )
        return "\n".join(f"{name:<16}{size / GIB:6.2f} GiB" for name, size in rows)


def estimate(config: TrainConfig, model: VideoModel | None = None) -> MemoryEstimate:
    """Peak memory of a training step of ``config`` on a card, or on the CPU if it says so.

    ``model`` is a loaded model or a `skeleton`, and is moved to "meta"; without it the config's
    own is read. Previews and the making of the library take less. Raises what `load_model` and the
    feature network raise.
    """
    on_cpu = config.hardware.device == "cpu"
    session, idle = bare_session(_on_shapes(config, on_cpu), model or _read(config), META)
    resting = config.hardware.offload_idle and not on_cpu
    count = sum(p.numel() for group in session.optimizer.param_groups for p in group["params"])
    judge = list(session.discriminator.parameters()) if session.discriminator else []
    weights = [session.model.unet, session.decoder.vae, session.features, session.reader]
    weights += [] if resting else idle
    adapter = storage_bytes(session.parameters, META)
    averages = adapter if not config.optim.offload else 0
    return MemoryEstimate(
        weights=_frozen_bytes(weights) - adapter,
        trained=adapter + averages + module_bytes(session.discriminator, META),
        optimizer=state_bytes(config.optim, count) + 2 * storage_bytes(judge, META),
        step=_step_peak(session, config),
        context=0 if on_cpu else CONTEXT,
    )


def memory_advice(config: TrainConfig) -> list[str]:
    """What saves memory, strongest first, leaving out what is already set."""
    hints = []
    if not config.hardware.gradient_checkpointing:
        hints.append("--memory lean")
    if config.data.batch_size > 1:
        hints.append(
            f"--data.batch-size {max(1, config.data.batch_size // 2)} --optim.accumulation 2"
        )
    if not config.hardware.offload_idle:
        hints.append("--hardware.offload-idle true")
    if not config.optim.offload and config.optim.optimizer == "adamw":
        hints.append("--memory tight, or --optim.optimizer adamw8bit with bitsandbytes")
    sizes = ", ".join(map(str, CARDS[1:]))
    hints.append(f"--card {CARDS[0]} (or {sizes}): a preset for a card of so many GB")
    hints.append("a smaller --data.height and --data.width, or fewer --data.frames")
    return hints


def _read(config: TrainConfig) -> VideoModel:
    """The config's base model, in half precision to be gentle to main memory."""
    return load_model(
        config.model, torch.bfloat16, motion_module=config.motion_module, vae=config.vae
    )


def _frozen_bytes(modules: list[nn.Module | None]) -> int:
    tensors: list[Tensor] = []
    for module in modules:
        if module is not None:
            tensors += [*module.parameters(), *module.buffers()]
    return storage_bytes(tensors, META)


def _on_shapes(config: TrainConfig, on_cpu: bool) -> TrainConfig:
    """What the device would choose for "auto", and without what only a real device can do."""
    changed: dict[str, Any] = {
        "hardware.offload_idle": False,
        "hardware.compile": False,
        "optim.optimizer": "adamw",
        "optim.offload": False,
    }
    if config.hardware.precision == "auto":
        changed["hardware.precision"] = "fp32" if on_cpu else "bf16"
    if config.hardware.decode_precision == "auto":
        half = not on_cpu or decoder_dtype("auto", torch.device("cpu")) == torch.bfloat16
        changed["hardware.decode_precision"] = "bf16" if half else "fp32"
    return with_overrides(config, changed)


def bare_session(
    config: TrainConfig, model: VideoModel, device: torch.device
) -> tuple[Session, list[nn.Module]]:
    """A session of networks on ``device`` with no data, and the networks that a step leaves idle.

    Enough for `gradients` on a `made_batch`, and for nothing else.
    """
    height, width = config.data.height or model.height, config.data.width or model.width
    shape = model.latent_shape(config.data.frames or model.frames, height, width)
    student = build_student(config, model, device, lambda _: None)
    session = Session(
        config=config,
        accelerator=cast(Any, None),
        student=student,
        decoder=build_decoder(config, model, device),
        prompts=cast(Any, None),
        motions=cast(Any, None),
        frames=cast(Any, None),
        replay=cast(Any, None),
        end_maps=None,
        latent_shape=shape,
        height=height,
        width=width,
        fps=model.fps,
        **trained_parts(config, model, device),
    )
    return session, [model.text_encoder, model.vae]


def _step_peak(session: Session, config: TrainConfig) -> int:
    batch = made_batch(session)
    with fused_attention(), MemoryMeter(META) as meter:
        for _ in range(min(2, config.optim.accumulation)):  # the second meets the first's gradients
            gradients(session, batch, 1 / config.optim.accumulation)
        parameters = [p for group in session.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, config.optim.grad_clip or torch.inf)
    return meter.peak + storage_bytes(_tensors_of(batch), META)


def made_batch(session: Session) -> Batch:
    """The batch of ``session``'s config that takes most memory and time, made up on its device: no
    stored trajectories where the config allows others.
    """
    config, model, latent = session.config, session.model, session.latent_shape
    device, count = model.device, config.data.batch_size
    places = torch.arange(count)
    clips = torch.randn(count, *latent, device=device)
    tokens = TOKENS if model.tokenizer is None else model.max_tokens
    text = torch.randn(count, tokens, model.text_dim, dtype=model.dtype, device=device)
    stored = config.recipe.trajectory.real_probability == 1
    known = stored and config.videos is None
    ends = clips.clone() if config.aims_at_ends else None
    batch = Batch(
        rows=places,
        origins=places,
        t_from=torch.full((count,), 499),
        t_to=torch.full((count,), 479),
        guidance=torch.full((count,), config.recipe.trajectory.guidance_min),
        noise=clips,
        earlier=clips.clone(),
        anchored=torch.ones(count),
        text=text,
        empty=text[:1].clone(),
        real=RealPoints(places, clips, clips if known else None) if stored else None,
        own=None if stored else OwnPoints(places, clips.clone()),
        ends=ends,
        asked=None if known or ends is not None else places,
        style=_made_style(session, device) if session.discriminator else None,
    )
    return to_device(batch, device)


def _made_style(session: Session, device: torch.device) -> StyleBatch:
    options, data = session.config.recipe.adversarial, session.config.data
    count = data.batch_size * data.frames_per_clip
    text = torch.randn(count, session.model.text_dim, device=device)
    draws = draw_augment(options.augment, count, torch.Generator().manual_seed(0))
    pixels = torch.rand(count, 3, session.height, session.width, device=device) * 2 - 1
    return StyleBatch(
        frames=torch.arange(data.frames_per_clip).repeat(data.batch_size, 1),
        text=text,
        captions=[""] * count,
        pixels=pixels,
        real_text=text.clone(),
        wrong_text=text.clone() if options.mismatched_captions else None,
        mask=torch.ones(count) if options.mismatched_captions else None,
        augment_fake=draws,
        augment_real=draws,
        wanted=_made_maps(session, pixels) if session.config.aims_at_ends else None,
        r1_weight=options.r1_weight,
        read=None if session.reader is None else session.reader.targets([""] * count),
    )


@torch.no_grad()
def _made_maps(session: Session, pixels: Tensor) -> list[Tensor] | None:
    features = session.features
    if features is None or not session.config.recipe.adversarial.content_weight:
        return None
    return [maps.half() for maps in deeper_half(features(pixels))]


def _tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list):
        return [tensor for item in value for tensor in _tensors_of(item)]
    fields = getattr(value, "__dataclass_fields__", {})
    return [tensor for name in fields for tensor in _tensors_of(getattr(value, name))]
