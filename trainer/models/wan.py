"""Wan's transformer as people have it: one file with the original names (ComfyUI's
``diffusion_models``) or a diffusers folder, in fp32, fp16, bf16 or fp8.

What it is built like is read from the shapes of its weights; nothing is looked up. The original
names are those of Wan-Video/Wan2.1 (`wan/modules/model.py`), diffusers' those of
`WanTransformer3DModel`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from .fp8 import MARKER, SCALES, build_fp8_network
from .weights import (
    ModelError,
    file_keys,
    init_options,
    is_safetensors,
    read_file,
    read_json,
    read_weights,
)

CLASS = "WanTransformer3DModel"
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
HEAD_WIDTH = 128  # of every published Wan; ComfyUI counts heads in the same way
CHANNELS = 16
HEAD_KEY = "head.modulation"
"""In every file with the original names, and in no other model's."""
EXACT = ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
"""Parts that keep fp32 beside half precision (diffusers' `_keep_in_fp32_modules`)."""
WANTED = (
    "Use a text-to-video file of Wan 2.1 (1.3B or 14B), such as wan2.1_t2v_1.3B_fp16.safetensors, "
    "or one of Wan 2.2 14B."
)
HIGH, LOW = "high", "low"
"""The two experts of Wan 2.2 14B: for much noise and for little."""
EXPERT = re.compile(
    rf"({HIGH}|{LOW})[ _-]?noise|(?:2[._]2|A14B).*[ _-]({HIGH}|{LOW})(?=[ ._-]|$)", re.IGNORECASE
)
"""In the names of their files; their tensors are those of Wan 2.1."""
PARTS = {"transformer": HIGH, "transformer_2": LOW}
"""Their folders in a diffusers model that has both."""

_ROOTS = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
_IN_BLOCKS = {
    "scale_shift_table": "modulation",
    "norm1": "norm1",
    "norm2": "norm3",  # the two are swapped
    "norm3": "norm2",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    **{
        f"{ours}.{part}": f"{theirs}.{name}"
        for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for part, name in (
            ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"),
            ("norm_q", "norm_q"), ("norm_k", "norm_k"),
        )
    },
}  # fmt: skip
_BLOCK = re.compile(r"(blocks\.\d+\.)(.+)")

# Pieces of names of what people really choose by mistake: (piece, what the file is). First the
# relatives of Wan, then other video models.
FOREIGN = (
    ("lora", "a LoRA"),
    ("vace_patch_embedding.", "Wan VACE, which is steered by a video"),
    ("vace_blocks.", "Wan VACE, which is steered by a video"),
    ("control_adapter.", "Wan Fun Camera, which is steered by a camera path"),
    ("casual_audio_encoder.", "Wan S2V, which is driven by sound"),
    ("audio_proj.", "a Wan that is driven by sound (HuMo, InfiniteTalk)"),
    ("face_adapter.", "Wan Animate, which is driven by a video of a person"),
    ("motion_encoder.", "Wan Animate, which is driven by a video of a person"),
    ("patch_embedding_mask.", "SCAIL, which is driven by poses"),
    ("patch_embedding_pose.", "SCAIL, which is driven by poses"),
    ("patch_embedding_global.", "WanDancer, which is driven by music"),
    ("ref_conv.", "Wan Fun Control, which is steered by a reference"),
    ("img_emb.", "a Wan image-to-video model (I2V)"),
    ("image_embedder.", "a Wan image-to-video model (I2V)"),
    ("add_k_proj.", "a Wan image-to-video model (I2V)"),
)
OTHERS = (
    ("video_patch_proj.", "MiniMax H3"),
    ("adaln_single.emb.timestep_embedder.", "LTX-Video"),
    ("individual_token_refiner.", "HunyuanVideo"),
    ("t5_yproj.", "Mochi"),
)


@dataclass(frozen=True, eq=False)
class WanWeights:
    """The weights of a transformer by diffusers' names, in the file's types, factors of fp8 among
    them, and the ``options`` that diffusers' class is built from.
    """

    path: Path
    weights: dict[str, Tensor]
    options: dict[str, Any]


def original_name(path: str) -> str | None:
    """The original name of the layer or weight at diffusers' ``path``; None for one that Wan does
    not have.

    `blocks.0.attn1.to_q` -> `blocks.0.self_attn.q`.
    """
    return _renamed(path, _ROOTS, _IN_BLOCKS)


def diffusers_name(original: str) -> str | None:
    """The inverse of `original_name`."""
    return _renamed(original, _inverse(_ROOTS), _inverse(_IN_BLOCKS))


def _renamed(name: str, roots: Mapping[str, str], inside: Mapping[str, str]) -> str | None:
    block = _BLOCK.fullmatch(name)
    start, rest, table = (block[1], block[2], inside) if block else ("", name, roots)
    head = rest
    while head:
        if head in table:
            return start + table[head] + rest[len(head) :]
        head = head.rpartition(".")[0]
    return None


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in table.items()}


def is_wan_file(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these ``names`` is a transformer of Wan or of one of its
    relatives, which `read_wan` may still refuse.
    """
    return any(plain_name(name) == HEAD_KEY for name in names)


def is_video_file(path: Path) -> bool:
    """Whether the file at ``path`` is a transformer of Wan, or of another video model that people
    may take for one; by its header. Pickles and damaged files are not.
    """
    try:
        names = file_keys(path) if is_safetensors(path) else []
    except ModelError:
        return False
    return is_wan_file(names) or any(piece in name for piece, _ in OTHERS for name in names)


def plain_name(name: str) -> str:
    """``name`` without what some files put before the original names."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def read_wan(path: Path) -> WanWeights:
    """Read a transformer: a single file, or the folder of diffusers' `WanTransformer3DModel`.

    Raises ModelError: unreadable, another model, or a Wan that makes no clips of text alone.
    """
    if path.is_dir():
        return _read_folder(path)
    weights = {plain_name(name): value for name, value in read_file(path).items()}
    refuse_foreign(weights, path)
    if HEAD_KEY not in weights:
        shown = ", ".join(sorted(weights)[:2])
        raise ModelError(f"'{path}' is no transformer of Wan: it holds {shown}. {WANTED}")
    # A name without a counterpart is kept, and refused by name when the network is built.
    named = {diffusers_name(name) or name: value for name, value in weights.items()}
    return WanWeights(path, named, _checked(_options(named, path), path))


def expert_of(path: Path) -> str:
    """Which expert of Wan 2.2 14B the transformer at ``path`` is, "high" or "low": a file or folder
    by its name, a part of a diffusers model by the other beside it. Empty for any other Wan.
    """
    if path.is_dir() and all((path.parent / part).is_dir() for part in PARTS):
        return PARTS.get(path.name, "")
    found = EXPERT.search(path.name)
    return (found[1] or found[2]).lower() if found else ""


def other_name(name: str) -> str:
    """The name of the other expert's file beside the one called ``name``, as published pairs are
    called: "high" for "low" or the other way round, in the same letters.
    """
    found = EXPERT.search(name)
    assert found is not None
    start, end = found.span(1 if found[1] else 2)
    word = found[0][start - found.start() : end - found.start()]
    other = LOW if word.lower() == HIGH else HIGH
    other = other.upper() if word.isupper() else other.title() if word.istitle() else other
    return name[:start] + other + name[end:]


def _read_folder(folder: Path) -> WanWeights:
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", CLASS)
    if kind != CLASS:
        raise ModelError(f"'{folder}' is a {kind}. {WANTED}")
    weights = read_weights(folder)
    refuse_foreign(weights, folder)
    options = init_options(WanTransformer3DModel, config)
    return WanWeights(folder, weights, _checked(options, folder))


def refuse_foreign(names: Iterable[str], path: Path) -> None:
    """Raise ModelError for files that are no text-to-video Wan, by the ``names`` inside."""
    known = list(names)
    for piece, what in (*FOREIGN, *OTHERS):
        if any(piece in name for name in known):
            raise ModelError(f"'{path}' is {what}, not a text-to-video model of Wan. {WANTED}")


def _options(weights: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The arguments of diffusers' class, from shapes. Raises ModelError for a torn file."""
    inside = (re.match(r"blocks\.(\d+)\.", name) for name in weights)
    blocks = {int(found[1]) for found in inside if found}
    try:
        width = weights["scale_shift_table"].shape[-1]
        embedding = weights["patch_embedding.weight"].shape
        outputs = weights["proj_out.weight"].shape[0]
        options = {
            "num_attention_heads": width // HEAD_WIDTH,
            "attention_head_dim": HEAD_WIDTH,
            "in_channels": embedding[1],
            "patch_size": tuple(embedding[2:]),
            "out_channels": outputs // (embedding[2] * embedding[3] * embedding[4]),
            "text_dim": weights["condition_embedder.text_embedder.linear_1.weight"].shape[1],
            "freq_dim": weights["condition_embedder.time_embedder.linear_1.weight"].shape[1],
            "ffn_dim": weights["blocks.0.ffn.net.0.proj.weight"].shape[0],
            "num_layers": max(blocks) + 1,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(
            f"'{path}' is no complete transformer of Wan ({error}). Download it again."
        ) from error
    if width % HEAD_WIDTH:
        raise ModelError(
            f"'{path}' is {width} wide; the heads of a Wan file are {HEAD_WIDTH} wide. {WANTED}"
        )
    return options


def _checked(options: dict[str, Any], path: Path) -> dict[str, Any]:
    """``options`` unless they are those of a Wan that reads or makes something else."""
    inputs, outputs = options["in_channels"], options["out_channels"] or options["in_channels"]
    if options.get("image_dim") or options.get("added_kv_proj_dim"):
        what = "a Wan image-to-video model (I2V)"
    elif outputs == 3 * CHANNELS:
        what = "Wan 2.2 5B (its latents have 48 channels)"
    elif inputs != CHANNELS:
        what = f"a Wan that is given a picture or a video (I2V, Fun; {inputs} input channels)"
    elif outputs != CHANNELS:
        what = f"a Wan with {outputs} output channels"
    else:
        return options
    raise ModelError(f"'{path}' is {what}, which cannot be trained here. {WANTED}")


def is_exact(name: str) -> bool:
    """Whether the weight or buffer ``name`` keeps fp32."""
    return any(piece in EXACT for piece in name.split("."))


def build_wan(found: WanWeights, dtype: torch.dtype = torch.float32) -> nn.Module:
    """diffusers' transformer with ``found``: `EXACT` parts in fp32, fp8 layers as stored, all else
    in ``dtype``. Raises ModelError unless the weights are exactly its.
    """
    return build_fp8_network(
        lambda: WanTransformer3DModel(**found.options), found.weights, found.path, dtype, is_exact
    )


def size_of(options: Mapping[str, Any]) -> str:
    """A name for people: "1.3B", "14B", or "384 wide, 2 layers" for sizes nobody has published."""
    width = options["num_attention_heads"] * options["attention_head_dim"]
    known = {(1536, 30): "1.3B", (5120, 40): "14B"}
    layers = options["num_layers"]
    return known.get((width, layers), f"{width} wide, {layers} layers")


def form_of(path: Path) -> str:
    """How the transformer at ``path`` is stored, in words: names of its weights and their types."""
    if path.is_dir():
        weights, names = read_weights(path), "diffusers folder"
    else:
        weights = read_file(path)
        prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in weights)), "")
        names = f"original names after `{prefix}`" if prefix else "original names"
    kinds = {str(v.dtype).removeprefix("torch.") for k, v in weights.items() if v.ndim > 1}
    scaled = MARKER in weights or any(name.endswith(SCALES) for name in weights)
    return f"{names}, {', '.join(sorted(kinds))}{', scaled' if scaled else ''}"
