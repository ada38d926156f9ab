"""A base model of another kind, as one file: velocity on a shifted flow, a causal codec that puts
four frames into one latent, 16 channels, a T5 text encoder with a mask, and a transformer that
reads frames before channels and whose layers have other names.

It has the transformer of CogVideoX at tiny size, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, CogVideoXTransformer3DModel
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from trainer.cards import CARDS, CardPreset, Speed
from trainer.diffusion.noise import RectifiedFlow
from trainer.families.base import VideoModel
from trainer.families.causal import CausalCodec
from trainer.families.record import (
    Base,
    BaseFiles,
    Companions,
    Family,
    Graph,
    LayerNames,
    Loader,
    Shelf,
)
from trainer.families.text import MaskedText
from trainer.models.umt5 import JsonTokenizer
from trainer.models.weights import file_hash, read_json

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "green", "star", "circle", "moving", "up")
TOKENS = 12
CLASS = "CogVideoXTransformer3DModel"


class ShortText(MaskedText):
    max_tokens = TOKENS


def matches(path: Path) -> bool:
    config = path / "transformer" / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == CLASS


def load(path: Path, dtype: torch.dtype, companions: Companions) -> VideoModel:
    encoder = UMT5EncoderModel.from_pretrained(path / "text_encoder", dtype=dtype)
    tokenizer = JsonTokenizer(path / "tokenizer" / "tokenizer.json")
    network = CogVideoXTransformer3DModel.from_pretrained(path / "transformer", torch_dtype=dtype)
    vae = AutoencoderKLWan.from_pretrained(path / "vae")
    weights = path / "transformer" / "diffusion_pytorch_model.safetensors"
    return video_model(path, network, vae, ShortText(encoder, tokenizer), file_hash([weights]))


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
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16,
        text_embed_dim=32, time_embed_dim=32, num_layers=2, sample_width=4, sample_height=4,
        sample_frames=5, max_text_seq_length=TOKENS,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    config = UMT5Config(vocab_size=len(WORDS), d_model=32, d_kv=16, d_ff=32, num_layers=1,
                        num_heads=2)  # fmt: skip
    return transformer, vae, UMT5EncoderModel(config)


def skeleton(device: torch.device | str) -> VideoModel:
    with torch.device(device):
        transformer, vae, encoder = networks()
    return video_model(Path("no files"), transformer, vae, ShortText(encoder, None), "")


def counter(path: Path) -> tuple[Callable[[str], int], int]:
    tokenizer = JsonTokenizer(path / "tokenizer" / "tokenizer.json")
    return lambda prompt: len(tokenizer.ids(prompt)), TOKENS


def lacks(folder: Path) -> list[str]:
    parts = ("transformer", "vae", "text_encoder", "tokenizer")
    return [part for part in parts if not (folder / part).is_dir()]


def graph(base: BaseFiles) -> Graph:
    checkpoint = f"{base.name}.safetensors"
    widgets = {"ckpt_name": checkpoint}
    return Graph((Loader("CheckpointLoaderSimple", widgets, checkpoint, "checkpoints"),))


def denoise(network: nn.Module, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
    return network(latents.transpose(1, 2), text, time).sample.transpose(1, 2)


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
    blocks=(CogVideoXBlock,),
    layers=LayerNames(
        markers=("norm1",),
        words="patch_embed|text_proj|time_embedding|transformer_blocks|linear_[12]|norm_out"
        "|proj_out|to_(?:q|k|v|out)",
        text_layer="patch_embed.text_proj",
        untouched=("proj_out", "norm_out", "time_embedding", "patch_embed.proj"),
    ),
    bases=(Base("flow", "the tiny flow", 32, (32, 32, 5)),),
    cards=tuple(CardPreset(size, 5, 48, 48, 2, batch=1, accumulation=1) for size in CARDS),
    skeleton=skeleton,
    counter=counter,
    speed=Speed(60.0, 0.0, "a clock"),
    shelf=Shelf(lacks=lacks),
    graph=graph,
    published={"tiny flow ü.safetensors": "someone/flow/resolve/main"},
)


def save_tiny(folder: Path) -> Path:
    """Write a model of this family into ``folder``."""
    torch.manual_seed(0)
    for part, network in zip(("transformer", "vae", "text_encoder"), networks(), strict=True):
        network.save_pretrained(folder / part)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer").mkdir()
    words.save(str(folder / "tokenizer" / "tokenizer.json"))
    return folder
