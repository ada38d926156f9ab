"""Wan of tiny size in the file forms that people have: original names, fp8, a text encoder with its
tokenizer inside, a tiny VAE. Written as the inverse of what the trainer reads.
"""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

TEXT_WIDTH = 64
WORDS = "a red blue green star circle square moving growing turning up down left right slowly"
ROOTS = {
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
    "proj_out.": "head.head.",
    "patch_embedding.": "patch_embedding.",
}
LAYERS = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
}


def build_transformer(layers: int = 2, seed: int = 0, **options: Any) -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    tiny = {"num_attention_heads": 1, "attention_head_dim": 128, "text_dim": TEXT_WIDTH,
            "ffn_dim": 96, "num_layers": layers}  # fmt: skip
    network = WanTransformer3DModel(**{**tiny, **options}).eval().requires_grad_(False)
    # As in a trained one, no two of these are equal, so that a swapped name shows.
    for name, value in network.named_parameters():
        if "norm" in name or "scale_shift" in name:
            value.add_(torch.randn_like(value) * 0.2)
    return network


def original(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A transformer's weights by the original names."""
    found = {}
    for key, value in state.items():
        if key == "scale_shift_table":
            name = "head.modulation"
        elif key.startswith("blocks."):
            _, number, rest = key.split(".", 2)
            layer, _, kind = rest.rpartition(".")
            inside = f"{LAYERS[layer]}.{kind}" if layer else "modulation"
            name = f"blocks.{number}.{inside}"
        else:
            start = next(start for start in ROOTS if key.startswith(start))
            name = ROOTS[start] + key[len(start) :]
        found[prefix + name] = value.detach().clone().contiguous()
    return found


def scaled_fp8(state: dict[str, Tensor], form: str = "scale_weight") -> dict[str, Tensor]:
    """``state`` with the matrices of its blocks in fp8, each with a factor beside it."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.ndim != 2 or "block" not in key or "relative" in key:
            found[key] = value.half() if value.is_floating_point() else value
            continue
        layer = key.removesuffix(".weight")
        scale = value.abs().amax().float() / 448
        found[key] = (value / scale).to(torch.float8_e4m3fn)
        found[f"{layer}.{form}"] = scale
        if form == "weight_scale":
            told = json.dumps({"format": "float8_e4m3fn"}).encode()
            found[f"{layer}.comfy_quant"] = torch.tensor(list(told), dtype=torch.uint8)
    if form == "scale_weight":
        found["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return found


def plain_fp8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` all in fp8, as some files are."""
    return {key: value.to(torch.float8_e4m3fn) for key, value in state.items()}


def sentencepiece_model() -> bytes:
    """A vocabulary of a few words with UMT5's special numbers: 0 pads, 1 ends, 2 is unknown."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 20), model_writer=made, vocab_size=60,
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return made.getvalue()


def build_encoder(layers: int = 2, **options: Any) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(1)
    tiny = {"vocab_size": 64, "d_model": TEXT_WIDTH, "d_kv": 16, "d_ff": 48, "num_heads": 4}
    config = UMT5Config(**{**tiny, **options}, num_layers=layers, feed_forward_proj="gated-gelu")
    return UMT5EncoderModel(config).eval().requires_grad_(False)


def encoder_state(encoder: Any, pieces: bytes | None) -> dict[str, Tensor]:
    """As ComfyUI's files hold it: the word embedding once, the tokenizer as bytes."""
    state = {key: value.detach().clone() for key, value in encoder.state_dict().items()}
    del state["encoder.embed_tokens.weight"]
    if pieces is not None:
        state["spiece_model"] = torch.tensor(list(pieces), dtype=torch.uint8)
    return state


def build_vae() -> Any:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(2)
    return AutoencoderKLWan(base_dim=4).eval().requires_grad_(False)


def original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's weights by the names of wan_2.1_vae.safetensors."""
    return {_vae_name(key): value.detach().clone() for key, value in state.items()}


def _vae_name(key: str) -> str:
    for ours, theirs in (
        ("post_quant_conv.", "conv2."), ("quant_conv.", "conv1."), ("conv_in.", "conv1."),
        ("norm_out.", "head.0."), ("conv_out.", "head.2."),
        ("mid_block.resnets.0.", "middle.0."), ("mid_block.resnets.1.", "middle.2."),
        ("mid_block.attentions.0.", "middle.1."), ("down_blocks.", "downsamples."),
    ):  # fmt: skip
        key = key.replace(ours, theirs)
    parts = key.split(".")
    if parts[1] == "up_blocks":
        level, kind, number = int(parts[2]), parts[3], int(parts[4])
        place = 4 * level + (number if kind == "resnets" else 3)
        key = ".".join([parts[0], "upsamples", str(place), *parts[5:]])
    if ".norm1." in key or ".conv1." in key or ".norm2." in key or ".conv2." in key:
        for ours, theirs in (("norm1", "0"), ("conv1", "2"), ("norm2", "3"), ("conv2", "6")):
            key = key.replace(f".{ours}.", f".residual.{theirs}.") if _inside(key) else key
    return key.replace(".conv_shortcut.", ".shortcut.")


def _inside(key: str) -> bool:
    """Whether a name is that of a residual block, not of the first convolution."""
    return key.split(".")[1] in ("downsamples", "upsamples", "middle")


def save_half(state: dict[str, Tensor], path: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write ``state`` with its numbers in ``dtype``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {k: v.to(dtype) if v.dtype == torch.float32 else v for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in kept.items()}, path)
    return path


def build_tiny_vae() -> Any:
    from trainer.models.tiny_vae import TinyVae

    torch.manual_seed(3)
    tiny = TinyVae((8, 6, 6, 4)).eval().requires_grad_(False)
    tiny.decoder[-1].weight.mul_(30)  # so that random weights give no flat grey
    return tiny


def tiny_vae_state(tiny: Any) -> dict[str, Tensor]:
    """As its files hold it, the encoder beside it."""
    state = {name: value.detach().clone() for name, value in tiny.state_dict().items()}
    return {**state, "encoder.0.weight": torch.zeros(64, 3, 3, 3)}


def save_comfyui(models: Path) -> Path:
    """A tiny Wan with all that belongs to it in ComfyUI's folder ``models``."""
    state = original(build_transformer().state_dict())
    save_half(state, models / "diffusion_models" / "wan2.1_t2v_tiny ü.safetensors")
    text = encoder_state(build_encoder(), sentencepiece_model())
    save_half(text, models / "text_encoders" / "umt5_tiny.safetensors", torch.float32)
    vae = original_vae(build_vae().state_dict())
    save_half(vae, models / "vae" / "wan_2.1_vae.safetensors", torch.float32)
    tiny = tiny_vae_state(build_tiny_vae())
    save_half(tiny, models / "vae_approx" / "taew2_1.safetensors", torch.float32)
    return models


CORE_TEXT = {"d_model": 4096, "d_kv": 8, "d_ff": 8, "num_heads": 1}
"""Sizes of a text encoder as wide as the real one."""


def save_for_core(models: Path) -> Path:
    """A tiny Wan in ComfyUI's folder ``models``, in fp32, under the names of the published files;
    the transformer's path. ComfyUI's own loaders take transformer and VAE.
    """
    state = original(build_transformer(text_dim=4096).state_dict())
    place = models / "diffusion_models" / "wan2.1_t2v_1.3B_fp16.safetensors"
    save_half(state, place, torch.float32)
    text = encoder_state(build_encoder(**CORE_TEXT), sentencepiece_model())
    name = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
    save_half(text, models / "text_encoders" / name, torch.float32)
    vae = original_vae(build_vae().state_dict())
    save_half(vae, models / "vae" / "wan_2.1_vae.safetensors", torch.float32)
    return place


SMALL: dict[str, Any] = {
    "name": "small", "frames": 5, "height": 32, "width": 32, "fps": 8, "licence": "Apache-2.0",
    "subjects": ["circle", "square", "star"], "tokens": 12, "shift": 3,
}  # fmt: skip


def save_small(folder: Path) -> Path:
    """A small Wan as the embedded one: its tiny VAE encodes too, and is the only one."""
    from trainer.models.tiny_vae import TinyVae

    build_transformer().half().save_pretrained(folder / "transformer")
    build_encoder().half().save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(sentencepiece_model())
    torch.manual_seed(4)
    tiny = TinyVae((8, 6, 6, 4), encoder=6).requires_grad_(False)
    tiny.decoder[-1].weight.mul_(30)  # so that random weights give no flat grey
    save_half(tiny.state_dict(), folder / "taew2_1.safetensors")
    (folder / "mcm.json").write_text(json.dumps(SMALL), encoding="utf-8")
    return folder


def save_folder(folder: Path) -> Path:
    """The same model as a diffusers folder."""
    build_transformer().save_pretrained(folder / "transformer")
    build_vae().save_pretrained(folder / "vae")
    build_encoder().save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(sentencepiece_model())
    return folder


EXPERTS = {
    "high": "wan2.2_t2v_high_noise_14B_fp16.safetensors",
    "low": "wan2.2_t2v_low_noise_14B_fp16.safetensors",
}


def save_experts(models: Path, **options: Any) -> dict[str, Path]:
    """A tiny Wan 2.2 14B with all that belongs to it in ComfyUI's folder ``models``: the paths of
    its two experts, which differ, by "high" and "low".
    """
    save_comfyui(models)
    place = models / "diffusion_models"
    next(place.iterdir()).unlink()
    for seed, name in enumerate(EXPERTS.values(), start=5):
        state = original(build_transformer(seed=seed, **options).state_dict())
        save_half(state, place / name, torch.float32)
    return {which: place / name for which, name in EXPERTS.items()}


def random_pairs(network: Any) -> dict[str, Any]:
    """A LoRA of rank 2 with random weights on all layers of ``network`` that the trainer covers."""
    from trainer.lora.adapter import add_lora, lora_parameters, lora_state

    network = copy.deepcopy(network)
    add_lora(network, 2, 2.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lora_parameters(network):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return lora_state(network)
