"""The record of a family: all that differs between kinds of base models, as data and callables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..cards import CardPreset, Speed
from ..models.downloads import Download, Need

if TYPE_CHECKING:
    from .base import VideoModel


@dataclass(frozen=True)
class Companions:
    """Files that a base model may need beside its own; None where it needs none.

    ``motion_module`` makes a video model of an image model, ``vae`` and ``text_encoder`` replace
    the model's own, ``tiny_vae`` decodes where the exact one would take too much, ``other_expert``
    is the network of the rest of the trajectory.
    """

    motion_module: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    tiny_vae: Path | None = None
    other_expert: Path | None = None

    def given(self) -> dict[str, Path]:
        """Those that are set, by setting."""
        return {name: path for name, path in vars(self).items() if path is not None}


@dataclass(frozen=True)
class Base:
    """A published base model: its ``text_width``, which tells LoRAs of one family apart, and the
    clip to offer where a LoRA says nothing: width and height in pixels, frames. ``cards`` and
    ``skeleton`` are as those of `Family`, where they differ.
    """

    name: str
    label: str
    text_width: int
    size: tuple[int, int, int] = (256, 256, 16)
    cards: tuple[CardPreset, ...] = ()
    skeleton: Callable[[torch.device | str], VideoModel] | None = None


@dataclass(frozen=True)
class LayerNames:
    """What the layers of a family's network are called, so that LoRA files can be read.

    ``markers`` are pieces of names that no other family has, such as those of layers over time;
    ``words`` a pattern of names with an underscore of their own, since every other underscore of
    kohya's names was a dot; ``text_layer`` the end of the names of layers that read the text;
    ``untouched`` what the names of layers begin with that a LoRA leaves alone; ``official`` pieces
    that the published few-step LoRAs have beside a marker, empty where none are published.
    ``path_of`` gives the path of a layer by its name in the original files, None for others;
    ``original`` is its inverse, where ComfyUI's LoRA loader knows layers by those names.
    ``starts`` are what names begin with in no other family, ``bare`` the end of the names of
    weights that belong to no layer, ``component`` diffusers' name of the network.
    """

    markers: tuple[str, ...]
    words: str
    text_layer: str
    untouched: tuple[str, ...] = ()
    official: tuple[str, ...] = ()
    path_of: Callable[[str], str | None] = lambda name: None
    original: Callable[[str], str | None] | None = None
    starts: tuple[str, ...] = ()
    bare: str = ""
    component: str = "unet"
    trained: str = (
        "every Linear and Conv2d but those of input, output and time, as in the official MCM LoRAs"
    )
    """Which layers a LoRA updates, and why, for people."""


@dataclass(frozen=True)
class StepLoras:
    """Few-step LoRAs that others publish for a family: training then only adds the style, and
    ``steps`` training steps are enough. ``names`` of the best known.
    """

    names: tuple[str, ...]
    steps: int

    def advice(self) -> str:
        known = ", ".join(self.names)
        return (
            f"start from a step LoRA for this base model ({known}): set its file as `start_from`. "
            f"It makes clips in a few steps already, so that {self.steps} training steps for the "
            "style are enough; from nothing it takes many thousands."
        )


@dataclass(frozen=True)
class BaseFiles:
    """What the graph of a LoRA is made for: the ``name`` of its base model, ``file`` where that is
    one file, and the files beside it by setting (`Companions`); ``shift`` of a flow's levels, and
    the ``part`` of them that it is for, empty for all.
    """

    name: str
    file: str = ""
    companions: Mapping[str, str] = field(default_factory=dict)
    shift: float | None = None
    part: str = ""


@dataclass(frozen=True)
class Loader:
    """A node of ComfyUI in the graph of a LoRA: its type and widgets, and the ``file`` that it
    loads from ``directory`` of ComfyUI's ``models``; a file without one comes with the pack.
    """

    node: str
    widgets: Mapping[str, Any]
    file: str = ""
    directory: str = ""


@dataclass(frozen=True)
class Graph:
    """The nodes of ComfyUI that run a base model with a few-step LoRA. Those of this pack where
    ComfyUI has none.

    Each of the ``loaders`` gives some of MODEL, CLIP and VAE; one that takes a MODEL is fed the one
    before, and of several the last counts. ``lora`` applies the LoRA (its widgets: name, strength),
    nodes of ``sampling`` follow it, ``latents`` begins a clip (widgets: width, height, frames,
    videos). ``note`` is said in the graph. ``other`` is a second network that clips need.
    """

    loaders: tuple[Loader, ...]
    lora: str = "MCM_LoadLora"
    sampling: tuple[Loader, ...] = ()
    latents: str = "MCM_EmptyLatentVideo"
    note: str = ""
    other: OtherNetwork | None = None


@dataclass(frozen=True)
class Half:
    """How one of two networks samples its half of the steps: ``steps`` that the whole would take,
    ComfyUI's ``sampler``, and the CFG scale.
    """

    steps: int
    sampler: str
    cfg: float = 1.0


@dataclass(frozen=True)
class OtherNetwork:
    """The network for the other half of the noise levels, which samples as a base model does:
    ``loader`` of it, whether it is ``first``, how its half (``its``) is sampled and that of the
    network with the LoRA (``own``), and the ``negative`` prompt of its guidance.
    """

    loader: Loader
    first: bool
    its: Half
    own: Half
    negative: str


@dataclass(frozen=True)
class Offer:
    """What to do for a companion: ``downloads`` to fetch by hand, and ``fits``, which tells one by
    its path, of the files in ``folders`` of ComfyUI's ``models``. ``without`` says in a sentence
    what a training is like without one, where it can do without.
    """

    downloads: tuple[Download, ...]
    folders: tuple[str, ...]
    fits: Callable[[Path], bool]
    without: str = ""

    @property
    def files(self) -> str:
        """Names of the downloads and their folder, for a sentence."""
        names = " or ".join(download.name for download in self.downloads)
        return f"{names} in {self.downloads[0].folder}"


@dataclass(frozen=True)
class Shelf:
    """Where a family's base models lie on a machine, for the list of those that are there.

    ``directory`` is that of ComfyUI's ``models`` for single files, empty where a model is always a
    folder; ``holds`` tells one by its path and safetensors header (empty where it has none);
    ``lacks`` names the parts that a folder lacks, ``does_without`` the settings of companions that
    are not there and that it can do without. ``takes_motion``: an image model, which takes a
    motion module beside it.
    """

    directory: str = ""
    holds: Callable[[Path, Mapping[str, Any]], bool] = lambda path, header: False
    lacks: Callable[[Path], list[str]] = lambda folder: []
    does_without: Callable[[Path], list[str]] = lambda path: []
    takes_motion: bool = False


@dataclass(frozen=True)
class Teaching:
    """How a base model makes the clips that a student learns from, where the settings say nothing.

    ``guidance`` is the range drawn from and ``library_guidance`` that of example clips, both as
    LCM's w; ``cfg`` the CFG scale of the clips that commands sample; ``library_steps`` the sampling
    steps of an example clip. ``negative`` is the prompt of guidance's unconditional half.
    """

    guidance: tuple[float, float] = (5.0, 15.0)
    library_guidance: float = 8.0
    cfg: float = 3.0
    library_steps: int = 25
    negative: str = ""


@dataclass(frozen=True)
class Family:
    """Constants and callables of one kind of base model. A new family is one file and one line in
    the table.

    ``frames`` are the clip lengths it was trained for; ``licence`` is that of its published
    weights, shown wherever a user picks one; ``matches`` recognises its file or folder; ``load``
    reads it with its companions; ``missing`` names, in a moment, the parts that `load` would not
    find; ``denoise`` is the network's pass ``(network, latents (B, C, f, h, w), time (B,), text
    (B, L, D)) -> (B, C, f, h, w)``, whose output the model's `NoisePath` reads; ``blocks`` are the
    classes of its sub-blocks, for gradient checkpointing and compilation.
    """

    name: str
    title: str
    architecture: str
    licence: str
    frames: tuple[int, ...]
    matches: Callable[[Path], bool]
    load: Callable[[Path, torch.dtype, Companions], VideoModel]
    missing: Callable[[Path, Companions], tuple[Need, ...]]
    denoise: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    blocks: tuple[type[nn.Module], ...]
    layers: LayerNames
    bases: tuple[Base, ...]
    """The best known first."""
    base_at: Callable[[Path], str] = field(default=lambda path: "", kw_only=True)
    """The name of the one of them that is at a path; empty where it does not matter."""
    cards: tuple[CardPreset, ...]
    """Smallest first."""
    skeleton: Callable[[torch.device | str], VideoModel]
    """The published model at full size, frozen, without a tokenizer: on "meta" without contents,
    for estimates, on another device with random weights."""
    counter: Callable[[Path], tuple[Callable[[str], int], int]]
    """Of a base model: the counter of a prompt's tokens, and how many are read."""
    teaching: Teaching = Teaching()
    texts_first: bool = False
    """Whether a run encodes its prompts before it reads the network, because the text encoder is
    of its size."""
    takes: tuple[str, ...] = ("vae",)
    """The `Companions` that it can be given."""
    offers: Mapping[str, Offer] = field(default_factory=dict)
    """By companion: what to fetch or to choose, where it is not what most families need."""
    exact: Callable[[str], bool] = lambda name: False
    """Takes the names of the network's weights and buffers that keep fp32 beside half precision."""
    describe: Callable[[Path], tuple[nn.Module, str, str]] | None = None
    """Takes file or folder of a base model without its companions: the network, its size and the
    form of the file in words. None where `load` tells as much."""
    step_loras: StepLoras | None = None
    """What to start from; None where a run begins with nothing, or with an official LoRA."""
    speed: Speed | None = None
    """How fast it trains, where that was measured."""
    shelf: Shelf = Shelf()
    graph: Callable[[BaseFiles], Graph] | None = None
    """The nodes of ComfyUI that run a base model. None where none do; its LoRAs then carry no
    workflow."""
    published: Mapping[str, str] = field(default_factory=dict)
    """Files and folders of base models, and of what they need -> where on Hugging Face they
    lie."""
