"""A base model of another kind, as one file: velocity on a shifted flow, a causal codec that puts
four frames into one latent, 16 channels, a T5 text encoder with a mask, and a transformer whose
layers have other names.

It has the networks of Wan at tiny size, with random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from trainer.cards import CARDS, CardPreset, Speed
from trainer.diffusion.noise import RectifiedFlow
from trainer.families.base import VideoModel
from trainer.families.record import Base, Companions, Family, LayerNames, Loader, Shelf
from trainer.models.weights import file_hash

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "green", "star", "circle", "moving", "up")
TOKENS = 12
STRIDE = 4


class CausalCodec:
    """The first latent is one frame, every later one is `STRIDE` frames."""

    channels, factor = 16, 16  # eight pixels a latent cell, two cells a patch

    def __init__(self, vae: Any):
        self.vae = vae
        shape = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(vae.config.latents_mean).view(shape)
        self.std = torch.tensor(vae.config.latents_std).view(shape)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        if height % self.factor or width % self.factor:
            raise ValueError(f"`height` and `width` must be multiples of {self.factor} pixels.")
        return self.channels, 1 + (frames - 1) // STRIDE, height // 8, width // 8

    def encode(self, clips: Tensor) -> Tensor:
        latents = self.vae.encode(clips.to(self.vae.dtype)).latent_dist.mode().float()
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    def decode(self, latents: Tensor) -> Tensor:
        return self._decode(latents).clamp(-1, 1)

    def decode_frames(self, latents: Tensor, frames: Tensor) -> Tensor:
        clips = self._decode(latents).transpose(1, 2)
        picked = [clip[numbers] for clip, numbers in zip(clips, frames, strict=True)]
        return torch.cat(picked)

    def _decode(self, latents: Tensor) -> Tensor:
        scaled = latents * self.std.to(latents) + self.mean.to(latents)
        return self.vae.decode(scaled.to(self.vae.dtype)).sample.float()

    def for_training(self, device, dtype, checkpointing, apart):
        other = copy(self)
        other.vae = self.vae.to(device, dtype)
        return other


class MaskedText:
    """T5; states past the end of a prompt are zero."""

    def __init__(self, encoder: Any, tokenizer: Any):
        self.encoder, self.tokenizer = encoder, tokenizer

    width = property(lambda self: self.encoder.config.d_model)
    max_tokens = property(lambda self: TOKENS)

    def tokens(self, prompt: str) -> list[int]:
        return list(self.tokenizer(prompt).input_ids) + [1]

    def count(self, prompt: str) -> int:
        return len(self.tokens(prompt))

    def encode(self, prompts: Sequence[str]) -> Tensor:
        device = next(self.encoder.parameters()).device
        ids = torch.zeros(len(prompts), TOKENS, dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            found = torch.tensor(self.tokens(prompt)[:TOKENS])
            row[: len(found)] = found
        mask = (ids != 0).to(device)
        states = self.encoder(ids.to(device), attention_mask=mask).last_hidden_state
        return states * mask[..., None]

    def pool(self, states: Tensor) -> Tensor:
        said = (states.abs().sum(-1, keepdim=True) > 0).to(states)
        return (states * said).sum(1) / said.sum(1).clamp_min(1)


def matches(path: Path) -> bool:
    return (path / "transformer" / "config.json").is_file()


def load(path: Path, dtype: torch.dtype, companions: Companions) -> VideoModel:
    encoder = UMT5EncoderModel.from_pretrained(path / "text_encoder", dtype=dtype)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path / "tokenizer")
    network = WanTransformer3DModel.from_pretrained(path / "transformer", torch_dtype=dtype)
    vae = AutoencoderKLWan.from_pretrained(path / "vae")
    weights = path / "transformer" / "diffusion_pytorch_model.safetensors"
    return video_model(path, network, vae, MaskedText(encoder, tokenizer), file_hash([weights]))


def video_model(
    path: Path, network: nn.Module, vae: Any, text: MaskedText, base_hash: str
) -> VideoModel:
    return VideoModel(
        family=FAMILY,
        name=path.name,
        path=path,
        network=network,
        codec=CausalCodec(vae),
        text=text,
        noise=RectifiedFlow(shift=5.0),
        frames=5,
        height=32,
        width=32,
        fps=16,
        base_hash=base_hash,
        licence=FAMILY.licence,
    ).freeze()


def networks() -> tuple[Any, Any, Any]:
    """Transformer, autoencoder and text encoder with random weights."""
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=32, ffn_dim=32,
        num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    config = UMT5Config(vocab_size=len(WORDS), d_model=32, d_kv=16, d_ff=32, num_layers=1,
                        num_heads=2)  # fmt: skip
    return transformer, vae, UMT5EncoderModel(config)


def skeleton(device: torch.device | str) -> VideoModel:
    with torch.device(device):
        transformer, vae, encoder = networks()
    return video_model(Path("no files"), transformer, vae, MaskedText(encoder, None), "")


def lacks(folder: Path) -> list[str]:
    parts = ("transformer", "vae", "text_encoder", "tokenizer")
    return [part for part in parts if not (folder / part).is_dir()]


def loaders(name: str, file: str, motion_module: str) -> tuple[Loader, ...]:
    checkpoint = f"{name}.safetensors"
    widgets = {"ckpt_name": checkpoint}
    return (Loader("CheckpointLoaderSimple", widgets, checkpoint, "checkpoints"),)


def denoise(network: nn.Module, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
    return network(latents, time, encoder_hidden_states=text).sample


FAMILY = Family(
    name="flow",
    title="A flow",
    architecture="flow-tiny",
    licence="Apache-2.0",
    frames=(5, 9, 13, 17),
    matches=matches,
    load=load,
    missing=lambda path, companions: (),
    denoise=denoise,
    blocks=(WanTransformerBlock,),
    layers=LayerNames(
        markers=("ffn",),
        words="(?:condition|text|time)_embedder|linear_[12]|proj_out|time_proj|to_(?:q|k|v|out)",
        text_layer="text_embedder.linear_1",
        untouched=("proj_out", "condition_embedder.time_embedder", "condition_embedder.time_proj"),
    ),
    bases=(Base("flow", "the tiny flow", 32, (32, 32, 5)),),
    cards=tuple(CardPreset(size, 5, 48, 48, 2, batch=1, accumulation=1) for size in CARDS),
    skeleton=skeleton,
    speed=Speed(60.0, 0.0, "a clock"),
    shelf=Shelf(lacks=lacks),
    loaders=loaders,
    published={"tiny flow ü.safetensors": "someone/flow/resolve/main"},
)


def save_tiny(folder: Path) -> Path:
    """Write a model of this family into ``folder``."""
    torch.manual_seed(0)
    for part, network in zip(("transformer", "vae", "text_encoder"), networks(), strict=True):
        network.save_pretrained(folder / part)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    return folder
