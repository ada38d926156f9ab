"""The interface of a loaded base model; its family's record is in `record`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..diffusion.noise import VariancePreserving
from ..diffusion.path import NoisePath
from ..models.block_swap import BlockSwap, swapped_blocks
from ..models.weights import ModelError
from ..words import allowed_frames
from .codec import VideoCodec
from .record import Companions, Family, Teaching
from .text import TextReader, padded, unit_vectors

__all__ = ["Companions", "Family", "ModelError", "VideoModel"]

TEXTS_AT_ONCE = 32

CELLS_AT_ONCE = 16 * 32 * 32
"""Latent cells that a network samples at a time, before guidance doubles them: one clip of 16
frames of 256 px."""


class TextStore(Protocol):
    """Tensors on disk by the hash of what they depend on, as `data.cache.ContentCache`."""

    def key(self, *parts: str) -> str: ...

    def load(self, key: str) -> dict[str, Tensor] | None: ...

    def keep(self, key: str, tensors: Mapping[str, Tensor]) -> None: ...


@dataclass
class VideoModel:
    """A loaded text-to-video model.

    Frozen parts, the network that LoRA layers go into, and its noise levels.
    """

    family: Family
    name: str
    path: Path
    network: nn.Module
    codec: VideoCodec
    text: TextReader
    noise: NoisePath
    frames: int
    height: int
    width: int
    fps: int
    base_hash: str
    licence: str
    max_frames: int | None = None
    """Longest clip that these weights can make; None is the family's."""
    motion_module: str = ""
    """File or folder name of the motion module; empty where the model has none of its own."""
    companions: Mapping[str, str] = field(default_factory=dict)
    """By setting, the names of the files that text encoder and autoencoders were read from, where
    those are not in the model's own file or folder; and of a tiny VAE that works alone."""
    part: str = ""
    """Which part of the noise levels it is for, for people; empty for all of them."""
    other: Path | None = None
    """The base model of the rest of the noise levels, where there is one beside it."""
    own_teaching: Teaching | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that its training fixes, by dotted name, and why, for people."""
    fixed_why: str = ""
    subjects: tuple[str, ...] = ()
    """Words for everything it can draw, for models that can draw very little; empty for most."""
    resting: bool = False
    """Whether text encoder and autoencoder wait in main memory while they are not needed."""
    swap: BlockSwap | None = None
    """What fetches the blocks of the network that wait in main memory, when it samples so."""
    text_store: TextStore | None = None
    """Where states of prompts are kept on disk."""
    _text_cache: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        named = self.network.named_parameters()
        return next(value.dtype for name, value in named if not self.family.exact(name))

    @property
    def teaching(self) -> Teaching:
        """How it makes the clips that a student learns from: its family's way, or its own."""
        return self.own_teaching or self.family.teaching

    @property
    def negative(self) -> str:
        """The negative prompt of its guidance; empty for most."""
        return self.teaching.negative

    @property
    def prediction_type(self) -> str:
        """What the network predicts: "epsilon", "v_prediction", or "velocity" on a flow."""
        return self.noise.prediction

    def brought(self, name: str) -> Path | None:
        """The file or folder ``name`` that came with the model; None where none did."""
        path = self.path / name
        return path if path.exists() else None

    @property
    def feature_network(self) -> Path | None:
        """Folder of a frame network of its own, which the discriminator can look through."""
        return self.brought("framenet")

    @property
    def judge(self) -> Path | None:
        """Folder of a network that recognises what its clips show; training never uses it."""
        return self.brought("judge")

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> VideoModel:
        """Move every network, resting ones to main memory.

        Some parts keep fp32: the autoencoder, whose decoder overflows in fp16, what the family says
        of its network, and a UNet's last convolution. x0 is the prediction divided by alpha, so
        rounding errors grow fifteenfold at the noisiest timestep.
        """
        move(self.network, device, dtype, self.family.exact)
        _keep_output_in_fp32(self.network)
        idle = "cpu" if self.resting else device
        if self.text.loaded is not None:
            self.text.loaded.to(idle, dtype)
        for vae in self._autoencoders():
            vae.to(idle)
        self.noise = self.noise.to(device)
        self._text_cache.clear()
        return self

    def placed(self, device: torch.device, waiting: int, setting: str) -> VideoModel:
        """Move to ``device`` for sampling. On a card, ``waiting`` blocks of the network stay in
        main memory, and so do text encoder and autoencoder while they are not needed.

        Raises ValueError, naming the ``setting``, for more blocks than there are.
        """
        chosen = swapped_blocks(self.network, self.family.blocks, waiting, setting)
        if chosen and device.type == "cuda":
            self.resting = True
            self.swap = BlockSwap(chosen, self.family.exact)
        self.to(device)
        if self.swap is not None:
            self.swap.start(device)
        return self

    @contextmanager
    def awake(self, *parts: nn.Module) -> Iterator[None]:
        """Inside, resting ``parts`` are on the network's device; they go back when the outermost
        ends.

        Costs a copy of the part each way; nothing where parts do not rest.
        """
        device = self.device
        moved = [p for p in parts if self.resting and next(p.parameters()).device != device]
        try:
            for part in moved:
                part.to(device)
            yield
        finally:
            for part in moved:
                part.to("cpu")

    def freeze(self) -> VideoModel:
        for module in (self.network, *self._autoencoders(), self.text.loaded):
            if module is not None:
                module.requires_grad_(False).eval()
        return self

    def _autoencoders(self) -> list[nn.Module]:
        exact, quick = self.codec.vae, self.codec.quick.vae
        return [exact] if quick is exact else [exact, quick]

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """States (B, L, D) on the network's device and in its dtype.

        Each prompt is encoded once and remembered in main memory.
        """
        self.remember_texts(prompts)
        length = self.text.max_tokens
        states = [padded(self._text_cache[prompt], length) for prompt in prompts]
        return torch.stack(states).to(self.device)

    @torch.no_grad()
    def remember_texts(self, prompts: Sequence[str], device: torch.device | None = None) -> None:
        """Encode on ``device`` (the network's) those of ``prompts`` that are not known yet.

        States of an encoder that is let go afterwards are kept in `text_store`, where there is one.
        """
        missing = [p for p in dict.fromkeys(prompts) if p not in self._text_cache]
        keys = {prompt: self._text_key(prompt) for prompt in missing}
        for prompt, key in keys.items():
            kept = self.text_store.load(key) if self.text_store and key else None
            if kept is not None:
                self._text_cache[prompt] = kept["states"].to(self.dtype)
        missing = [p for p in missing if p not in self._text_cache]
        if not missing:
            return
        with self._reading(device or self.device):
            for start in range(0, len(missing), TEXTS_AT_ONCE):
                part = missing[start : start + TEXTS_AT_ONCE]
                for prompt, states in zip(part, self.text.encode(part).cpu(), strict=True):
                    self._keep_text(prompt, keys[prompt], states)

    def _text_key(self, prompt: str) -> str:
        if self.text_store is None or not self.text.fingerprint:
            return ""
        tokens = str(self.text.tokens(prompt))
        return self.text_store.key("text", self.text.fingerprint, str(self.dtype), tokens)

    def _keep_text(self, prompt: str, key: str, states: Tensor) -> None:
        if self.text.fingerprint:  # zeros past the end are not kept
            states = states[: self.text.count(prompt)].clone()
        if self.text_store is not None and key:
            self.text_store.keep(key, {"states": states})
        self._text_cache[prompt] = states.to(self.dtype)

    @contextmanager
    def _reading(self, device: torch.device) -> Iterator[None]:
        """Inside, the text encoder is on ``device``. One that can be read again is let go in the
        end, and the network makes room for it meanwhile: both together fit few cards.
        """
        if not self.text.fingerprint:
            with self.awake(self.text.encoder):
                yield
            return
        home = self.device
        away = home.type == device.type != "cpu"
        try:
            if away:
                self.network.to("cpu")
            self.text.encoder.to(device)
            yield
        finally:
            self.text.release()
            if away:
                self.network.to(home)

    def pooled_text(self, prompts: Sequence[str]) -> Tensor:
        """One unit vector per prompt (B, D) for the discriminator."""
        return unit_vectors(self.text, self.encode_text(prompts), self.encode_text([""]))

    def predict(self, latents: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """The network's output (B, C, F, h, w) in fp32 for ``latents`` of that shape at ``level``
        (B,), with ``text`` (B, L, D); `noise` reads it.
        """
        time = self.noise.model_time(level)
        return self.family.denoise(self.network, latents.to(self.dtype), time, text).float()

    def encode_clips(self, clips: Tensor) -> Tensor:
        """Latents (B, C, f, h, w) of ``clips`` (B, 3, F, H, W), a few frames at a time."""
        with self.awake(self.codec.vae):
            return self.codec.encode(clips)

    def decode_clips(self, latents: Tensor, quick: bool = False) -> Tensor:
        """Clips (B, 3, F, H, W) in [-1, 1] of ``latents`` (B, C, f, h, w); ``quick``, as previews
        are, where the model has a smaller decoder for them.
        """
        codec = self.codec.quick if quick else self.codec
        with self.awake(codec.vae):
            return codec.decode(latents)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """``(C, f, h, w)`` of a clip; raises ValueError for sizes this model cannot make."""
        possible = tuple(n for n in self.family.frames if n <= (self.max_frames or n))
        if frames not in possible:
            allowed = allowed_frames(possible)
            raise ValueError(f"`frames`={frames} is not supported by '{self.name}'; use {allowed}.")
        return self.codec.latent_shape(frames, height, width)


def read_schedule(config: Mapping[str, Any], source: Path) -> VariancePreserving:
    """The noise levels of a scheduler ``config``; ``source`` is what to name in an error.

    Raises ModelError for a schedule that ends in pure noise, ValueError as
    `VariancePreserving.from_config`.
    """
    schedule = VariancePreserving.from_config(config)
    if float(schedule.alphas_cumprod[-1]) == 0:
        raise ModelError(
            f"'{source}' has a zero terminal SNR schedule (`rescale_betas_zero_snr`): its last "
            "noise level has no signal, and few-step sampling begins there. Use the model without "
            "it."
        )
    return schedule


def clips_at_once(shape: tuple[int, int, int, int]) -> int:
    """How many clips of latent ``shape`` (C, F, h, w) are sampled in one pass, 1 to 8."""
    return max(1, min(8, CELLS_AT_ONCE // (shape[1] * shape[2] * shape[3])))


def move(
    network: nn.Module,
    device: torch.device | str,
    dtype: torch.dtype | None,
    exact: Callable[[str], bool],
) -> None:
    """``network`` to ``device`` and ``dtype``; what ``exact`` takes by name never leaves fp32."""
    named = [*network.named_parameters(), *network.named_buffers()]
    kept = {name: value.detach() for name, value in named if exact(name)}
    nn.Module.to(network, device, dtype)
    for name, value in kept.items():
        parent, _, leaf = name.rpartition(".")
        module = network.get_submodule(parent)
        value = value.to(device, torch.float32)
        if leaf in module._buffers:
            module._buffers[leaf] = value
        else:
            module._parameters[leaf] = nn.Parameter(value, getattr(module, leaf).requires_grad)


def _keep_output_in_fp32(network: nn.Module) -> None:
    last = getattr(network, "conv_out", None)
    if not isinstance(last, nn.Conv2d) or last.weight.dtype == torch.float32:
        return
    last.float()
    if not last._forward_pre_hooks:  # the first time
        last.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
