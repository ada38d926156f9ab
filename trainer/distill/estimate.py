"""How much memory a run needs, without a card: the real training step on tensor shapes alone.

The networks are moved to PyTorch's "meta" device, where tensors have no contents, and one step is
taken there under a `MemoryMeter`. It counts exactly the tensors of the real step, because it runs
the real step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adversarial.augment import draw_augment
from ..adversarial.frame_losses import deeper_half
from ..cards import CARDS
from ..config import TrainConfig, with_overrides
from ..families import VideoModel, load_model
from ..models.block_swap import swapped_blocks, swapped_bytes
from .batch import Batch, StyleBatch, to_device
from .meter import MemoryMeter, fused_attention, module_bytes, storage_bytes
from .optimizers import state_bytes
from .plan import TeacherPlan, fitted
from .session import build_parts, build_student, new_memory
from .step import gradients
from .student import StepParts, decoder_dtype

GIB = 1 << 30
META = torch.device("meta")
CONTEXT = GIB // 2
"""What CUDA itself, its libraries and their workspaces take on a card (0.4 to 0.6 GiB)."""
HEADROOM = 0.9
"""Fraction of the device's memory that a run may use."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a training step.

    ``weights`` of frozen networks; ``trained`` of adapter, heads and averages; ``optimizer`` state;
    ``step``: activations and gradients; ``context`` of the device's own libraries. ``waiting`` is
    not on the device: what a card's run keeps in main memory until it is needed.
    """

    weights: int
    trained: int
    optimizer: int
    step: int
    context: int
    waiting: int = 0

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
        lines = [f"{name:<16}{size / GIB:6.2f} GiB" for name, size in rows]
        if self.waiting:
            size = f"{self.waiting / GIB:6.2f} GiB"
            lines.append(f"{'RAM':<16}{size} of the computer's, for what the card does not hold")
        return "\n".join(lines)


def estimate(config: TrainConfig, model: VideoModel | None = None) -> MemoryEstimate:
    """Peak memory of a training step of ``config`` on a card, or on the CPU if it says so.

    ``model`` is a loaded model or a `skeleton`, and is moved to "meta"; without it the config's
    own is read. Previews and the making of the library take less. Raises what `load_model` and the
    feature network raise.
    """
    model = model or read_model(config)
    config, on_cpu = fitted(config, model), config.hardware.device == "cpu"
    shapes = _on_shapes(config, on_cpu)
    parts = build_parts(shapes, build_student(shapes, model, META, lambda _: None), META)
    trained = parts.parameters + parts.representation.parameters()
    count = sum(parameter.numel() for parameter in trained)
    judge = list(parts.discriminator.parameters()) if parts.discriminator else []
    weights = [model.network, parts.decoder.vae, parts.features, parts.reader]
    idle = [model.text.loaded, model.codec.vae, model.codec.quick.vae]
    if on_cpu or not config.hardware.offload_idle:
        weights, idle = weights + idle, []
    adapter = storage_bytes(parts.parameters, META)
    swapped, places = (0, 0) if on_cpu else _swapped(config, model)
    offloaded = config.optim.offload and not on_cpu
    return MemoryEstimate(
        weights=_frozen_bytes(weights) - adapter - swapped + places,
        trained=adapter + (0 if offloaded else adapter) + module_bytes(parts.discriminator, META),
        optimizer=state_bytes(config.optim, count) + 2 * storage_bytes(judge, META),
        step=_step_peak(parts, config, trained),
        context=0 if on_cpu else CONTEXT,
        waiting=swapped + _frozen_bytes(idle) + (3 * adapter if offloaded else 0),
    )


def estimated(config: TrainConfig, model: VideoModel) -> str:
    """What an estimate with ``config`` is of, in a line."""
    data = config.data
    height, width = data.height or model.height, data.width or model.width
    parts = [
        f"{data.frames or model.frames} frames of {width} x {height} px",
        f"LoRA rank {config.lora.rank}",
        f"{data.batch_size} x {config.optim.accumulation} clips per step",
    ]
    if "tiny_vae" in model.family.takes:
        tiny = getattr(model.codec, "tiny", None) is not None
        files = model.family.offers["tiny_vae"].files
        without = f"WITHOUT the tiny VAE, which saves memory ({files})"
        parts.append("with the tiny VAE" if tiny else without)
    if config.hardware.blocks_to_swap:
        parts.append(f"{config.hardware.blocks_to_swap} blocks in the computer's RAM")
    return f"Estimated for {model.name}: {', '.join(parts)}."


def _swapped(config: TrainConfig, model: VideoModel) -> tuple[int, int]:
    chosen = swapped_blocks(model.network, model.family.blocks, config.hardware.blocks_to_swap)
    return swapped_bytes(chosen, model.family.exact)


def memory_advice(config: TrainConfig) -> list[str]:
    """Settings that save memory, strongest first, without those already set."""
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


def read_model(config: TrainConfig) -> VideoModel:
    """The config's base model, in half precision to save main memory."""
    return load_model(config.model, torch.bfloat16, **config.companions)


def _frozen_bytes(modules: list[nn.Module | None]) -> int:
    tensors: list[Tensor] = []
    for module in modules:
        if module is not None:
            tensors += [*module.parameters(), *module.buffers()]
    return storage_bytes(tensors, META)


def _on_shapes(config: TrainConfig, on_cpu: bool) -> TrainConfig:
    """The config with "auto" resolved, and without options that need a real device."""
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


def _step_peak(parts: StepParts, config: TrainConfig, trained: list[nn.Parameter]) -> int:
    batch, memory = made_batch(parts), new_memory(config)
    with fused_attention(), MemoryMeter(META) as meter:
        for _ in range(min(2, config.optim.accumulation)):  # the second meets the first's gradients
            memory = gradients(parts, batch, memory, 1 / config.optim.accumulation).memory
        nn.utils.clip_grad_norm_(trained, config.optim.grad_clip or torch.inf)
    return meter.peak + storage_bytes(_tensors_of(batch), META)


def made_batch(parts: StepParts) -> Batch:
    """The batch of the config of ``parts`` that needs the most memory and time, created on the
    network's device: no stored trajectories where the config allows others.
    """
    config, model = parts.config, parts.model
    device, count = model.device, config.data.batch_size
    height, width = config.data.height or model.height, config.data.width or model.width
    latent = model.latent_shape(config.data.frames or model.frames, height, width)
    places = torch.arange(count)
    clips = torch.randn(count, *latent, device=device)
    states = (count, model.text.max_tokens, model.text.width)
    text = torch.randn(states, dtype=model.dtype, device=device)
    stored = config.recipe.trajectory.real_probability == 1
    known = stored and config.videos is None
    ends = clips.clone() if config.aims_at_ends else None
    plan = TeacherPlan.of_model(config, model)
    levels, middle = plan.levels, plan.places // 2
    batch = Batch(
        rows=places,
        origins=places,
        level=levels[middle].repeat(count),
        next_level=levels[middle - 1].repeat(count),
        most=levels[-1:],
        guidance=torch.full((count,), plan.guidance[0]),
        noise=clips,
        text=text,
        empty=text[:1].clone(),
        earlier=clips.clone(),
        anchored=torch.ones(count),
        fresh=None if stored else places,
        start=None if stored else clips.clone(),
        real=places if stored else None,
        real_latents=clips if stored else None,
        real_next=clips if known else None,
        ends=ends,
        asked=None if known or ends is not None else places,
        style=_made_style(parts, (height, width)) if parts.discriminator else None,
    )
    return to_device(batch, device)


def _made_style(parts: StepParts, size: tuple[int, int]) -> StyleBatch:
    options, data, device = parts.config.recipe.adversarial, parts.config.data, parts.model.device
    count = data.batch_size * data.frames_per_clip
    text = torch.randn(count, parts.model.text.width, device=device)
    draws = draw_augment(options.augment, count, torch.Generator().manual_seed(0))
    part = parts.decoder.part(*size)
    pixels = torch.rand(count, 3, *part, device=device) * 2 - 1
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
        wanted=_made_maps(parts, pixels) if parts.config.aims_at_ends and part == size else None,
        r1_weight=options.r1_weight,
        place=None if part == size else torch.zeros(2, device=device),
        read=None if parts.reader is None else parts.reader.targets([""] * count),
    )


@torch.no_grad()
def _made_maps(parts: StepParts, pixels: Tensor) -> list[Tensor] | None:
    features = parts.features
    if features is None or not parts.config.recipe.adversarial.content_weight:
        return None
    return [maps.half() for maps in deeper_half(features(pixels))]


def _tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list):
        return [tensor for item in value for tensor in _tensors_of(item)]
    fields = getattr(value, "__dataclass_fields__", {})
    return [tensor for name in fields for tensor in _tensors_of(getattr(value, name))]
