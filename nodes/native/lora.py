"""Applies few-step LoRAs of all file formats to a native MODEL, completely or not at all, with
their sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...trainer.diffusion.noise import EPSILON, FLOW, VELOCITY
from ...trainer.paths import MINI
from .advice import advise
from .core_models import core_name, layer_shapes
from .info import VideoInfo, video_info
from .notices import tell
from .previews import add_previews
from .sampling import apply_model_sampling, prediction_of

FOLDER = "loras"
EXAMPLES = MINI / "loras"
"""Examples for the embedded mini model, which the example workflows use."""
PEFT_WEIGHTS = "adapter_model.safetensors"
STUDENTS = "mcm_few_step_loras"
"""Attachment of a MODEL: names of the few-step LoRAs on it, in order."""
HASH_BYTES = 2**28
"""Weight files up to this size in all are hashed to compare them with a LoRA's base."""


@dataclass(frozen=True)
class LoraSettings:
    """Recommended settings: from the LoRA's metadata, or those of the official LoRAs.

    None where a LoRA that is not for few steps recommends nothing.
    """

    strength: float
    trigger: str
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `apply_model_sampling`."""
    steps_allowed: tuple[int, ...] = ()
    part: str = ""
    """Which part of the noise levels it is for, such as "high noise"; empty for all."""


def list_loras() -> list[str]:
    """Names of the LoRAs in ComfyUI's folders, with ``/``: files, PEFT folders by the folder, and
    the bundled examples.

    A list without any holds one empty name, because a combo needs an option.
    """
    import folder_paths

    files = [name.replace("\\", "/") for name in folder_paths.get_filename_list(FOLDER)]
    names = {name.removesuffix(f"/{PEFT_WEIGHTS}") for name in files if _is_safetensors(name)}
    names |= {file.name for file in EXAMPLES.glob("*.safetensors")}
    return sorted(names, key=str.casefold) or [""]


def _is_safetensors(name: str) -> bool:
    return name.lower().endswith(".safetensors")


def resolve_lora(name: str) -> Path:
    """The file or PEFT folder that ``name`` of `list_loras` means.

    Raises ValueError for a name that is not there; one that leads out of the folders never is.
    """
    import folder_paths

    for file in (name, f"{name}/{PEFT_WEIGHTS}"):
        path = folder_paths.get_full_path(FOLDER, file) if name and _is_safetensors(file) else None
        if path is not None:
            return Path(path) if file == name else Path(path).parent
    if name in {file.name for file in EXAMPLES.glob("*.safetensors")}:
        return EXAMPLES / name
    found = [lora for lora in list_loras() if lora]
    raise ValueError(
        f"`lora_name`={name!r} was not found. Put the .safetensors file or the PEFT folder into "
        f"models/loras and press R. Found: {', '.join(found) or 'none'}."
    )


def fingerprint(name: str) -> str:
    """Changes when file ``name`` changes, so that ComfyUI loads a retrained LoRA again."""
    from ...trainer.lora.formats import locate

    try:
        stat = locate(resolve_lora(name)).stat()
    except (ValueError, OSError):
        return "missing"
    return f"{stat.st_mtime_ns} {stat.st_size}"


def load_lora(model: Any, name: str, strength: float) -> Any:
    """A clone of MODEL ``model`` with LoRA ``name`` and the sampling it was distilled with.

    Strength 0 leaves the model as it is, sampling included. Raises ValueError, with nothing
    applied, unless every weight of the LoRA has its place in the model.
    """
    from ...trainer.lora.few_step import STYLE, fit_few_step

    info = video_info(model)
    if not math.isfinite(strength):
        raise ValueError(
            f"`strength`={strength} must be a finite number; the LoRA was trained for 1."
        )
    if strength == 0:
        return model.clone()
    found = read_or_why(resolve_lora(name))
    if isinstance(found, str):
        raise ValueError(f"{found} {STYLE}")
    network = layer_shapes(model) if info.stride else model.model.diffusion_model
    pairs = fit_few_step(found, network, info.family, info.name, name, _prediction(model, info))
    settings = settings_of(found)
    _warn(found, info, name)
    patched = apply_model_sampling(model, **settings.sampling)
    advise(patched, settings.steps, settings.guidance_scale, settings.steps_allowed)
    named = core_name({**pairs, **found.differences}) if info.stride else str
    add_pairs(patched, pairs, strength, named)
    if found.differences:
        add_differences(patched, found.differences, strength, named)
    if info.stride:
        add_previews(patched)  # MODELs of this pack have them from their loaders
    note_student(patched, name)
    return patched


def _prediction(model: Any, info: VideoInfo) -> str:
    """What the network of MODEL ``model`` predicts, in the trainer's words."""
    if info.stride:
        return FLOW
    return VELOCITY if prediction_of(model) == "V_PREDICTION" else EPSILON


def note_student(model: Any, name: str) -> None:
    """Record on MODEL ``model`` that it has few-step LoRA ``name``, and warn about a second one.
    Style LoRAs from core's loader are not recorded.
    """
    before = model.get_attachment(STUDENTS) or ()
    model.set_attachments(STUDENTS, (*before, name))
    if before:
        tell(
            f"'{name}' is the second few-step LoRA on this MODEL, after '{before[-1]}'. Two of "
            "them do not mix: at 0.5 + 0.5 the base model's own look comes back, at 1 + 1 shapes "
            "and motion suffer (docs/stacking.md). Use one, at strength 1, or train one LoRA on "
            "images of the look you want. Style LoRAs without few-step training can be added with "
            "ComfyUI's 'LoraLoaderModelOnly'."
        )


def add_pairs(
    model: Any, pairs: Mapping[str, Any], strength: float, name_of: Callable[[str], str] = str
) -> None:
    """Patch ``strength * delta`` of every pair onto MODEL ``model``, in place, as core's loader
    does: ComfyUI then merges, offloads and undoes it. ``name_of`` gives the name of a path.
    """
    from comfy.weight_adapter.lora import LoRAAdapter

    patches = {
        f"diffusion_model.{name_of(path)}.weight": LoRAAdapter(
            set(), (pair.up, pair.down, pair.alpha, None, None, None)
        )
        for path, pair in pairs.items()
    }
    missed = set(patches) - set(model.add_patches(patches, strength))
    if missed:
        raise ValueError(f"ComfyUI did not accept {len(missed)} layers (first: {min(missed)}).")


def add_differences(
    model: Any, differences: Mapping[str, Any], strength: float, name_of: Callable[[str], str]
) -> None:
    """Patch whole differences of weights (norms, biases), which a LoRA has that was
    trained from a step LoRA with them, onto MODEL ``model``, in place.
    """
    import comfy.utils

    patches = {f"diffusion_model.{name_of(path)}": value for path, value in differences.items()}
    for key, value in patches.items():
        if not key.endswith((".weight", ".bias")):
            raise ValueError(f"ComfyUI never applies a difference of `{key}`: it is of no layer.")
        try:
            own = comfy.utils.get_attr(model.model, key)
        except AttributeError as error:
            raise ValueError(f"The MODEL has no `{key}`, which this LoRA changes.") from error
        if own.shape != value.shape:
            wrong = f"{tuple(value.shape)} in the LoRA, {tuple(own.shape)} in the MODEL"
            raise ValueError(f"`{key}` is {wrong}. Load the base model that it was made for.")
    model.add_patches({key: ("diff", (value,)) for key, value in patches.items()}, strength)


def settings_of(found: Any) -> LoraSettings:
    """The settings of LoraFile ``found``. Raises ValueError for metadata that cannot be used."""
    from ...trainer.lora.few_step import few_step_kind
    from ...trainer.lora.match import offered_size, pair_widths
    from ...trainer.lora.recommended import read_recommended

    if few_step_kind(found) is None:
        return plain_settings(found.metadata)
    told = read_recommended(found.metadata, found.path.name)
    width, height, frames = offered_size(pair_widths(found.pairs))
    return LoraSettings(
        steps=told.steps,
        guidance_scale=told.guidance_scale,
        strength=told.strength,
        trigger=told.trigger,
        width=told.width or width,
        height=told.height or height,
        frames=told.frames or frames,
        fps=told.fps,
        sampling={**told.sampling, "shift": told.shift, "low": told.low},
        part=told.part,
        steps_allowed=told.steps_allowed,
    )


def plain_settings(metadata: Mapping[str, str]) -> LoraSettings:
    """Of a LoRA that is not for few steps: its trigger, and 1, the strength it was trained at."""
    return LoraSettings(strength=1.0, trigger=metadata.get("modelspec.trigger_phrase", ""))


def _warn(found: Any, info: VideoInfo, name: str) -> None:
    """Warn about things that are allowed but may give poor results."""
    from ...trainer.lora.few_step import OFFICIAL, as_published, few_step_kind

    if few_step_kind(found) == OFFICIAL and not as_published(found):
        tell(
            f"'{name}' has no metadata. It changes the same layers as the official MCM LoRAs, so "
            "it is treated as one of them: few steps, sampler lcm, CFG 1. If it is a style LoRA, "
            "load it with ComfyUI's own 'LoraLoaderModelOnly'."
        )
    if found.hash_ok is False:
        tell(f"'{name}': the weights do not match the hash in its metadata.")
    part = found.metadata.get("mcm.part", "")
    if part != info.part and few_step_kind(found) is not None and info.weight_files:
        made, loaded = (f"the {each} expert" if each else "all noise levels"
                        for each in (part, info.part))  # fmt: skip
        tell(
            f"'{name}' is for {made}, but '{info.name}' is a network for {loaded}, by its file's "
            "name. The layers fit, the clip will be wrong: connect the other network."
        )
    declared = found.metadata.get("mcm.base_hash")
    size = sum(file.stat().st_size for file in info.weight_files)
    if declared and 0 < size <= HASH_BYTES and declared != info.base_hash:
        base = found.metadata.get("mcm.base_model", info.name)
        tell(
            f"'{name}' was trained on other weights of '{base}' than those loaded; results may "
            "differ."
        )


def read_or_why(path: Path) -> Any:
    """The LoraFile at ``path``; or, for an intact file of another kind, why it is not read: style
    LoRAs have formats (text encoder, LoHa) that only core's loader supports.

    Raises LoraError for a missing or damaged file, an incomplete PEFT folder, and a few-step LoRA
    that cannot be read.
    """
    from ...trainer.lora.few_step import declares_few_step
    from ...trainer.lora.formats import read_lora
    from ...trainer.lora.pairs import LoraError

    try:
        return read_lora(path)
    except LoraError as error:
        if path.is_dir() or declares_few_step(metadata_of(path)):
            raise
        return str(error)


def metadata_of(path: Path) -> dict[str, str]:
    from ...trainer.lora.files import read_metadata
    from ...trainer.lora.formats import locate

    return read_metadata(locate(path))
