"""The Wan family: text-to-video transformers of Wan 2.1, 1.3B and 14B, and of Wan 2.2 14B.

A transformer is a single file in ComfyUI's ``diffusion_models``, with UMT5 and the VAE in the
folders beside it, or a diffusers folder. Nothing is looked up online: what a model is built like is
read from its weights (`models.wan`). A small Wan is a folder with a tiny VAE alone, and notes of
how many tokens it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from ..cards import CardPreset
from ..models.about import read_about
from ..models.downloads import Need
from ..models.tiny_vae import TinyVae
from ..models.umt5 import (
    Umt5,
    file_tokenizer,
    folder_tokenizer,
    open_umt5,
    xxl_config,
)
from ..models.wan import (
    CLASS,
    LOW,
    build_wan,
    diffusers_name,
    expert_of,
    form_of,
    is_exact,
    is_video_file,
    is_wan_file,
    original_name,
    other_name,
    read_wan,
    size_of,
)
from ..models.weights import (
    FILE_SUFFIXES,
    ModelError,
    file_hash,
    mended_by,
    read_json,
    shapes_only,
    weight_files,
)
from .base import Companions, Family, VideoModel
from .causal import CausalCodec
from .record import Base, LayerNames, Shelf, StepLoras, Teaching
from .text import MaskedText
from .wan_experts import check_other, lacks_choice, name_of, own_of, refuse_both, title_of
from .wan_graph import NEGATIVE, PUBLISHED, flow_at, graph
from .wan_parts import OFFERS, WORDS, Places, open_codec

TEACHING = Teaching(
    guidance=(4.0, 4.0),  # a CFG scale of 5, as in rCM
    library_guidance=4.0,
    cfg=5.0,
    library_steps=24,  # every second level of 48
    negative=NEGATIVE,
)
SIZE: dict[str, Any] = {"frames": 33, "height": 272, "width": 480, "fps": 16}
"""What is trained where the settings say nothing: a seventh of the tokens of 81 frames at 480p."""
LICENCE = "Apache-2.0"


def matches(path: Path) -> bool:
    """True for a file with the names of a Wan or of another video transformer, which `load` refuses
    by name, and for a diffusers folder of Wan or of its transformer alone.
    """
    if path.is_file():
        return is_video_file(path)
    for config in (path / "transformer" / "config.json", path / "config.json"):
        if config.is_file():
            return read_json(config).get("_class_name") == CLASS
    return False


def load(path: Path, dtype: torch.dtype, companions: Companions) -> VideoModel:
    """Read transformer, text encoder and VAE, frozen, on the CPU. Raises ModelError."""
    refuse_both(path)
    places = Places.of(path, companions)
    found = read_wan(places.transformer)
    needs = _needs(path, places)
    if needs:
        error = ModelError(f"{needs[0].text} Give one with `{_flag(needs[0].setting)}`.")
        error.part = needs[0].setting
        raise error
    if places.text is None:
        raise ModelError(f"'{path}' lacks {WORDS}. Copy the whole folder again.")
    with mended_by("text_encoder"):
        source = open_umt5(places.text, dtype)
        _check_width(source.config.d_model, found.options, places.text)
    codec = open_codec(places)
    with mended_by("other_expert"):
        check_other(places.transformer, companions.other_expert)
    about = _about(path)
    whole = {"noise": flow_at(about["shift"])}
    return VideoModel(
        family=FAMILY,
        name=about["name"],
        path=path,
        network=build_wan(found, dtype),
        codec=codec,
        text=MaskedText.of(source, about["tokens"]),
        frames=about["frames"],
        height=about["height"],
        width=about["width"],
        fps=about["fps"],
        base_hash=file_hash(_files(places.transformer)),
        licence=about["licence"],
        companions=places.names(path),
        subjects=tuple(about["subjects"]),
        **(own_of(places.transformer, places.other, TEACHING) or whole),
    ).freeze()


def _about(path: Path) -> dict[str, Any]:
    """Its own notes, or what is known of any Wan."""
    name = name_of(path) if path.is_dir() else path.stem
    tokens = MaskedText.max_tokens
    return read_about(
        path, name=name, licence=LICENCE, subjects=(), tokens=tokens, shift=None, **SIZE
    )


def _files(transformer: Path) -> list[Path]:
    return weight_files(transformer) if transformer.is_dir() else [transformer]


def _check_width(width: int, options: Mapping[str, Any], source: Path) -> None:
    if width != options["text_dim"]:
        raise ModelError(
            f"The text encoder '{source}' is {width} wide, the transformer reads "
            f"{options['text_dim']}. Use the text encoder that belongs to it."
        )


def _flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def missing(path: Path, companions: Companions) -> tuple[Need, ...]:
    """Text encoder and VAE, where they are neither given nor with the transformer. No published
    text encoder fits a small Wan.
    """
    return _needs(path, Places.of(path, companions))


def _needs(path: Path, places: Places) -> tuple[Need, ...]:
    needs = []
    if places.text is None and not places.by_tiny_alone:
        about = f"'{path.name}' comes without a text encoder; Wan reads prompts by UMT5."
        needs.append(_need("Text encoder", "text_encoder", about))
    if places.vae is None:
        about = f"'{path.name}' comes without a VAE; it needs that of Wan 2.1."
        needs.append(_need("VAE", "vae", about))
    if expert_of(places.transformer) == LOW and places.other is None:
        about = (
            f"'{path.name}' takes over clips that the high-noise expert of Wan 2.2 14B begins, and "
            f"that is not beside it: '{other_name(path.name)}' in {path.parent}."
        )
        needs.append(_need("High-noise expert", "other_expert", about))
    return tuple(needs)


def _need(part: str, setting: str, about: str) -> Need:
    return Need(part, setting, about, OFFERS[setting].downloads)


def denoise(network: nn.Module, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
    return network(latents, time, encoder_hidden_states=text).sample


def counter(path: Path) -> tuple[Callable[[str], int], int]:
    """By the tokenizer of the folder, or of the text encoder file beside the transformer; words
    where there is none yet: a prompt of more than 500 is rare.
    """
    text, most = Places.of(path, Companions()).text, _about(path)["tokens"]
    if text is None:
        return lambda prompt: len(prompt.split()) + 1, most
    tokenizer = folder_tokenizer(text / "tokenizer") if text.is_dir() else file_tokenizer(text)
    return lambda prompt: len(tokenizer.ids(prompt)), most


def holds(file: Path, header: Mapping[str, Any]) -> bool:
    """Whether ``file`` is a transformer of Wan that makes clips of text alone, by its header."""
    if not is_wan_file(header) or file.suffix.lower() not in FILE_SUFFIXES:
        return False
    try:
        with shapes_only():
            read_wan(file)
    except ModelError:
        return False
    return True


def describe(path: Path) -> tuple[nn.Module, str, str]:
    """Transformer, size and form of a file or folder. Raises ModelError."""
    refuse_both(path)
    transformer = Places.of(path, Companions()).transformer
    found = read_wan(transformer)
    size = f"{size_of(found.options)}{title_of(transformer)}"
    return build_wan(found), size, form_of(transformer)


def lacks(path: Path) -> list[str]:
    """Parts that are not there, each with what to fetch; weights that a folder should have."""
    needs = missing(path, Companions())
    found = [f"{n.part} ({n.downloads[0].folder}/{n.downloads[0].name})" for n in needs]
    places = Places.of(path, Companions())
    if places.by_tiny_alone and places.text is None:
        found.append(WORDS)
    transformer = places.transformer
    if transformer.is_dir() and not any(f.suffix in FILE_SUFFIXES for f in transformer.iterdir()):
        found.append(f"the weights in {transformer.name}")
    return found + lacks_choice(path)


def does_without(path: Path) -> list[str]:
    """Companions that are not there and that it can do without, by setting."""
    return [] if Places.of(path, Companions()).tiny_vae else ["tiny_vae"]


def skeleton(device: torch.device | str) -> VideoModel:
    """Wan 2.1 T2V 1.3B without its weights, with a tiny VAE."""
    return build_skeleton(device, heads=12, layers=30, hidden=8960)


def large_skeleton(device: torch.device | str) -> VideoModel:
    """The same of 14B."""
    return build_skeleton(device, heads=40, layers=40, hidden=13824)


def base_at(path: Path) -> str:
    """The name of the published size that the transformer at ``path`` has, or of another."""
    with shapes_only():
        options = read_wan(Places.of(path, Companions()).transformer).options
    return f"wan-{size_of(options)}".lower()


def build_skeleton(device: torch.device | str, heads: int, layers: int, hidden: int) -> VideoModel:
    """A transformer of these sizes with UMT5-XXL, which is read when a prompt needs it, the exact
    VAE and the tiny one: on "meta" without contents, on another device with random weights.
    """
    with torch.device(device):
        network = WanTransformer3DModel(
            num_attention_heads=heads, num_layers=layers, ffn_dim=hidden
        )
        vae, tiny = AutoencoderKLWan(), TinyVae()

    def encoder() -> nn.Module:
        with torch.device(device):
            return UMT5EncoderModel(config).requires_grad_(False)

    config = xxl_config()
    return VideoModel(
        family=FAMILY,
        name=f"wan-{heads * 128}",
        path=Path("no wan files"),
        network=network,
        codec=CausalCodec(vae, tiny),
        text=MaskedText.of(Umt5(config, None, "", encoder)),
        noise=flow_at(),
        base_hash="",
        licence=LICENCE,
        **SIZE,
    ).freeze()


CARDS_14B = (
    CardPreset(8, 17, 272, 480, 16, batch=1, accumulation=4, memory="tight", swapped=40),
    CardPreset(12, 33, 272, 480, 16, batch=1, accumulation=4, memory="tight", swapped=40),
    CardPreset(16, 33, 272, 480, 32, batch=1, accumulation=4, memory="tight", swapped=40),
    CardPreset(24, 49, 272, 480, 64, batch=1, accumulation=4, memory="tight", swapped=30),
    CardPreset(48, 49, 480, 832, 64, batch=1, accumulation=4, swapped=20),
)
"""With blocks in main memory so that a bf16 file fits too; fp8 takes half of it."""


FAMILY = Family(
    name="wan",
    title="Wan (text to video: Wan 2.1 1.3B and 14B, Wan 2.2 14B)",
    architecture="wan-t2v",
    licence=LICENCE,
    frames=tuple(range(5, 122, 4)),
    matches=matches,
    load=load,
    missing=missing,
    denoise=denoise,
    blocks=(WanTransformerBlock,),
    layers=LayerNames(
        markers=("ffn", "cross_attn"),
        words="(?:self|cross)_attn|to_(?:q|k|v|out)|norm_[qk]|patch_embedding|condition_embedder"
        "|(?:text|time)_embed(?:ding|der)|time_proj(?:ection)?|proj_out|linear_[12]",
        text_layer="attn2.to_k",
        # Input, output, text and time carry no look and no motion of their own.
        untouched=("condition_embedder", "proj_out"),
        original=original_name,
        path_of=diffusers_name,
        starts=("blocks.", "lora_unet_blocks_"),
        bare="scale_shift_table",
        component="transformer",
        trained="q, k, v and o of both attentions and both layers of the feed-forward network of "
        "each block, where look and motion are made; input, output, text and time carry neither",
    ),
    bases=(
        Base("wan-1.3b", "Wan 2.1 T2V 1.3B", 1536, (480, 272, 33)),
        Base(
            "wan-14b",
            "Wan 2.1 T2V 14B",
            5120,
            (480, 272, 33),
            cards=CARDS_14B,
            skeleton=large_skeleton,
        ),
    ),
    base_at=base_at,
    cards=(
        CardPreset(8, 33, 272, 480, 32, batch=1, accumulation=4, memory="tight"),
        CardPreset(12, 33, 272, 480, 32, batch=1, accumulation=4),
        CardPreset(16, 33, 272, 480, 64, batch=1, accumulation=4),
        CardPreset(24, 49, 480, 832, 64, batch=1, accumulation=4),
        CardPreset(48, 81, 480, 832, 64, batch=2, accumulation=2),
    ),
    skeleton=skeleton,
    counter=counter,
    teaching=TEACHING,
    texts_first=True,
    takes=tuple(OFFERS),
    offers=OFFERS,
    exact=is_exact,
    describe=describe,
    step_loras=StepLoras(("lightx2v", "CausVid", "AccVideo", "FastWan", "rCM"), 300),
    shelf=Shelf("diffusion_models", holds, lacks, does_without),
    graph=graph,
    published=PUBLISHED,
)
