"""Stable Diffusion 1.5 and motion modules of few channels, in the file forms that people have.

The layout is the full one: four levels, two layers a level, text 768 wide, 49408 tokens. Written
as the inverse of what the trainer reads, so that a wrong name cannot cancel itself out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHANNELS = (32, 64, 64, 64)
TEXT_WIDTH = 768
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


@dataclass(frozen=True)
class Parts:
    """The networks of a tiny Stable Diffusion 1.5 and a motion module, of diffusers' classes."""

    unet: Any
    vae: Any
    text_encoder: Any
    adapter: Any

    def checkpoint(self) -> dict[str, Tensor]:
        """One state dict in original keys, as checkpoint files hold it."""
        text = {
            key if key.startswith("text_model.") else f"text_model.{key}": value
            for key, value in self.text_encoder.state_dict().items()
        }
        return {
            **_prefixed("model.diffusion_model.", original_unet(self.unet.state_dict())),
            **_prefixed("first_stage_model.", original_vae(self.vae.state_dict())),
            **_prefixed("cond_stage_model.transformer.", text),
            "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[
                None
            ],
            "alphas_cumprod": torch.linspace(1, 0, 1000),
        }

    def save_folder(self, folder: Path) -> None:
        """A diffusers folder without tokenizer, as this image model's UNet."""
        for name in ("unet", "vae", "text_encoder"):
            getattr(self, name).save_pretrained(folder / name)


def build_parts(seed: int = 0) -> Parts:
    from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=CHANNELS,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )
    small = (32, 32, 32, 32)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=small,
        layers_per_block=2,
    )
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=12,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    adapter = MotionAdapter(block_out_channels=CHANNELS)
    parts = Parts(unet, vae, CLIPTextModel(text), adapter)
    for network in (unet, vae, parts.text_encoder, adapter):
        network.eval().requires_grad_(False)
    return parts


def _prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value.contiguous() for key, value in state.items()}


def unet_renames() -> list[tuple[str, str]]:
    """(diffusers beginning, original beginning) of every block of SD 1.5, written out by block."""
    pairs = [
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("mid_block.resnets.0.", "middle_block.0."),
        ("mid_block.attentions.0.", "middle_block.1."),
        ("mid_block.resnets.1.", "middle_block.2."),
    ]
    number = 1
    for level in range(4):
        for layer in range(2):
            pairs.append((f"down_blocks.{level}.resnets.{layer}.", f"input_blocks.{number}.0."))
            pairs.append((f"down_blocks.{level}.attentions.{layer}.", f"input_blocks.{number}.1."))
            number += 1
        down = f"down_blocks.{level}.downsamplers.0.conv."
        pairs.append((down, f"input_blocks.{number}.0.op."))
        number += 1
    number = 0
    for level in range(4):
        for layer in range(3):
            pairs.append((f"up_blocks.{level}.resnets.{layer}.", f"output_blocks.{number}.0."))
            pairs.append((f"up_blocks.{level}.attentions.{layer}.", f"output_blocks.{number}.1."))
            number += 1
        up = f"up_blocks.{level}.upsamplers.0.conv."
        pairs.append((up, f"output_blocks.{number - 1}.{min(level, 1) + 1}.conv."))
    return pairs


def original_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        ours, theirs = next(pair for pair in unet_renames() if key.startswith(pair[0]))
        rest = key[len(ours) :]
        if ".resnets." in ours:
            part = next(name for name in RESNET.values() if rest.startswith(f"{name}."))
            original = next(name for name, other in RESNET.items() if other == part)
            rest = original + rest[len(part) :]
        found[theirs + rest] = value
    return found


def original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        for level in range(4):
            key = key.replace(f"encoder.down_blocks.{level}.", f"encoder.down.{level}.")
            key = key.replace(f"decoder.up_blocks.{level}.", f"decoder.up.{3 - level}.")
        for new, old in (
            ("mid_block.resnets.0.", "mid.block_1."),
            ("mid_block.resnets.1.", "mid.block_2."),
            ("mid_block.attentions.0.", "mid.attn_1."),
            ("downsamplers.0.", "downsample."),
            ("upsamplers.0.", "upsample."),
            ("resnets.", "block."),
            ("conv_norm_out.", "norm_out."),
            ("conv_shortcut.", "nin_shortcut."),
            ("group_norm.", "norm."),
            ("to_q.", "q."),
            ("to_k.", "k."),
            ("to_v.", "v."),
            ("to_out.0.", "proj_out."),
        ):
            key = key.replace(new, old)
        attention = "attn_1." in key and value.ndim == 2
        found[key] = value[:, :, None, None] if attention else value
    return found


def original_motion(adapter: Any, prefix: str = "") -> dict[str, Tensor]:
    """A motion module in the layout of the authors' files, encodings included."""
    original = {}
    for key, value in adapter.state_dict().items():
        head, module, rest = key.partition(".motion_modules.")
        index, _, rest = rest.partition(".")
        rest = "." + rest
        for ours, theirs in (
            (".norm1.", ".norms.0."),
            (".norm2.", ".norms.1."),
            (".norm3.", ".ff_norm."),
            (".attn1.", ".attention_blocks.0."),
            (".attn2.", ".attention_blocks.1."),
        ):
            rest = rest.replace(ours, theirs)
        base = f"{prefix}{head}{module}{index}.temporal_transformer"
        if ".pos_embed." in rest:
            for number in (0, 1):
                encoding = rest.replace(".pos_embed.", f".attention_blocks.{number}.pos_encoder.")
                original[base + encoding] = value.clone()
        else:
            original[base + rest] = value.clone()
    return original
