"""LoRA file formats, one row each; all are converted to {module path: LoraPair}."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from .files import Hashes, file_hashes, read_json, read_metadata, read_tensors, refuse_run
from .match import pair_widths, resolve_names
from .names import LORA, motion_lora_path
from .pairs import KOHYA_PREFIX, LoraError, LoraPair, base_modules, check_pair, kohya_name
from .peft_config import AlphaOf, peft_alphas
from .whole import WHOLE, check_difference, known_weight

COMFYUI_PREFIX = "diffusion_model."
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Parts:
    """The tensors of one module as a file has them; any may be missing."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None


@dataclass(frozen=True)
class LoraFormat:
    """`prefix` is cut from every key (kohya's stays: its names are resolved later); `suffixes` name
    the parts.

    `alphas` makes the rule for modules without an alpha tensor from (file, header metadata);
    `path_of` turns the file's name of a module into its path, None for a name it does not know.
    """

    name: str
    prefix: str
    keep_prefix: bool
    suffixes: Mapping[str, str]
    alphas: Callable[[Path, Mapping[str, str]], AlphaOf]
    path_of: Callable[[str], str | None] = str
    whole: Mapping[str, str] = field(default_factory=dict)
    """Suffix -> which of a layer's weights has a whole difference."""

    def split(self, key: str) -> tuple[str, str] | None:
        """(module name, part), or None for a key this format does not know."""
        if not key.startswith(self.prefix):
            return None
        for suffix, name in self.whole.items():
            if key.endswith(suffix):
                start = 0 if self.keep_prefix else len(self.prefix)
                path = known_weight(key[start : len(key) - len(suffix)], name)
                return None if path is None else (path, WHOLE_PART)
        for suffix, part in self.suffixes.items():
            if key.endswith(suffix):
                start = 0 if self.keep_prefix else len(self.prefix)
                path = self.path_of(key[start : len(key) - len(suffix)])
                return None if path is None else (path, part)
        return None


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as read. Without a base model kohya pairs are still under their `lora_unet_...`
    names.
    """

    path: Path
    format: str
    pairs: dict[str, LoraPair]
    metadata: dict[str, str]
    hashes: Hashes
    differences: dict[str, Tensor] = field(default_factory=dict)
    """Whole differences of weights, by path: of norms, biases and the like."""

    @property
    def hash_ok(self) -> bool | None:
        """Whether the tensor hash in the metadata is correct; None if the file declares none."""
        declared = self.metadata.get("modelspec.hash_sha256") or self.metadata.get(
            "sshs_model_hash"
        )
        return (
            None
            if not declared
            else declared.removeprefix("0x").lower() == self.hashes.tensors_sha256
        )

    @property
    def widths(self) -> dict[str, int]:
        """Input width of each layer, whole differences of layers included, for `guess_base`."""
        whole = {path.removesuffix(".weight"): d for path, d in self.differences.items()}
        return {p: d.shape[1] for p, d in whole.items() if d.dim() == 2} | pair_widths(self.pairs)

    def resolved(self, model: nn.Module | Iterable[str]) -> LoraFile:
        """The same file with every name that `model` (a UNet, or its module paths) knows turned
        into its path.
        """
        paths = base_modules(model) if isinstance(model, nn.Module) else model
        return replace(self, pairs=resolve_names(self.pairs, paths))


def _alpha_is_rank(file: Path, metadata: Mapping[str, str]) -> AlphaOf:
    """kohya's rule for a module without `.alpha`: no scaling."""
    return lambda path, rank: float(rank)


def _alpha_from_config(file: Path, metadata: Mapping[str, str]) -> AlphaOf:
    return peft_alphas(read_json(file.with_name(PEFT_CONFIG)), PEFT_CONFIG)


def _alpha_from_header(file: Path, metadata: Mapping[str, str]) -> AlphaOf:
    """diffusers keeps the PEFT config as JSON in the header, with `unet.` or `transformer.` before
    each key; without it, no scaling.
    """
    raw = metadata.get("lora_adapter_metadata")
    if raw is None:
        return lambda path, rank: float(rank)
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise LoraError(
            f"`lora_adapter_metadata` of `{file.name}` is not JSON; export the LoRA again."
        ) from error
    if not isinstance(config, dict):
        raise LoraError(
            f"`lora_adapter_metadata` of `{file.name}` is not a table; export the LoRA again."
        )
    starts = ("unet.", "transformer.")
    ours = {key: value for key, value in config.items() if key.startswith(starts)} or config
    plain = {key.partition(".")[2] if key.startswith(starts) else key: v for key, v in ours.items()}
    return peft_alphas(plain, file.name)


def _known_layer(name: str) -> str | None:
    """The path of a layer by its name in the original files of any family; None for others."""
    from ..families import FAMILIES  # diffusers: only where a LoRA is read

    paths = (family.layers.path_of(name) for family in FAMILIES if family.layers.original)
    return next((path for path in paths if path is not None), None)


def _plain_underscores(name: str) -> str:
    """VideoX-Fun writes two underscores after `lora_unet`."""
    return name.replace(f"{KOHYA_PREFIX}_", KOHYA_PREFIX, 1)


WHOLE_PART = "whole"
LORA_AB = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
}
DIFFUSERS_PARTS = {
    **LORA_AB,
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}
COMFYUI_PARTS = {**LORA_AB, ".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha"}
MOTION_PARTS = {f"{LORA}.down.weight": "down", f"{LORA}.up.weight": "up"}
KOHYA_PARTS = {".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha"}

OTHER_KINDS = (
    (".hada_", "LoHa (LyCORIS)"),
    (".lokr_", "LoKr (LyCORIS)"),
    (".glora_", "GLoRA (LyCORIS)"),
    (".a1.weight", "GLoRA (LyCORIS)"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".on_input", "IA3 (LyCORIS)"),
    (".lora_mid.", "LoCon with a core tensor (CP decomposition)"),
    (".lora_t1.", "LoCon with a core tensor (CP decomposition)"),
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    ("k_img", "layers of an image-to-video model (I2V)"),
    ("img_emb", "layers of an image-to-video model (I2V)"),
    (".diff_b", "whole biases (a full difference)"),
    (".diff_m", "whole modulations (a full difference)"),
    (".w_norm", "norm layers (LyCORIS)"),
    (".b_norm", "norm layers (LyCORIS)"),
    (".diff", "whole weights (a full difference)"),
    (".modules_to_save.", "whole layers (`modules_to_save`)"),
    (".lora_embedding_", "embeddings"),
    (".bundle_emb.", "embeddings"),
    (".reshape_weight", "reshaped weights"),
    ("bias", "biases"),
    (".lora_te", "the text encoder's layers"),
    (".text_encoder", "the text encoder's layers"),
)
"""Adapters that are more than a plain LoRA of the UNet: (part of a key, what it is). The first that
is found is named.
"""

# Asked in this order; the last one takes bare module paths (`unet.save_lora_adapter`).
FORMATS = (
    LoraFormat("kohya", KOHYA_PREFIX, True, KOHYA_PARTS, _alpha_is_rank, _plain_underscores, WHOLE),
    LoraFormat("peft", "base_model.model.", False, LORA_AB, _alpha_from_config),
    LoraFormat("diffusers", "unet.", False, DIFFUSERS_PARTS, _alpha_from_header),
    LoraFormat("diffusers", "transformer.", False, DIFFUSERS_PARTS, _alpha_from_header),
    LoraFormat(
        "ComfyUI", COMFYUI_PREFIX, False, COMFYUI_PARTS, _alpha_is_rank, _known_layer, WHOLE
    ),
    LoraFormat("ComfyUI, bare", "", False, COMFYUI_PARTS, _alpha_is_rank, _known_layer, WHOLE),
    LoraFormat("motion LoRA", "", False, MOTION_PARTS, _alpha_is_rank, motion_lora_path),
    LoraFormat("diffusers, bare", "", False, DIFFUSERS_PARTS, _alpha_from_header),
)


def locate(path: Path) -> Path:
    """The weights file of a LoRA given as a file or as a folder. Raises LoraError."""
    if not path.is_dir():
        return path
    for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS):
        if (path / name).is_file():
            return path / name
    pickles = sorted(
        entry.name for entry in path.iterdir() if entry.suffix in (".bin", ".pt", ".ckpt")
    )
    found = f"found {pickles[0]}, a pickle that can run code" if pickles else "found neither"
    refuse_run(path)
    raise LoraError(
        f"`{path}` is not a LoRA folder: expected {PEFT_WEIGHTS} with {PEFT_CONFIG}, or "
        f"{DIFFUSERS_WEIGHTS}; "
        f"{found}. Save it with safe_serialization=True."
    )


def read_lora(path: str | Path, model: nn.Module | Iterable[str] | None = None) -> LoraFile:
    """Read a kohya file, a PEFT folder or a diffusers file; every key must be understood.

    `model` (a UNet, or the module paths of one) resolves kohya's underscore names to module paths.
    Tensors stay in the file's dtype, on the CPU. Raises LoraError: what is wrong, what was found,
    what to do.
    """
    file = locate(Path(path))
    tensors = read_tensors(file)
    metadata = read_metadata(file)
    form = detect(tensors, file.name)
    parts, differences = _group(tensors, form, file.name)
    alpha_of = form.alphas(file, metadata)
    pairs: dict[str, LoraPair] = {}
    for module, part in sorted(parts.items()):
        if part.down is None or part.up is None:
            absent = "down" if part.down is None else "up"
            raise LoraError(
                f"`{module}` in `{file.name}` has no {absent} matrix; the file is incomplete."
            )
        if part.alpha is not None and part.alpha.numel() != 1:
            raise LoraError(
                f"`{module}.alpha` has shape {tuple(part.alpha.shape)}; one number is needed."
            )
        rank = part.down.shape[0] if part.down.dim() else 0
        alpha = alpha_of(module, rank) if part.alpha is None else float(part.alpha)
        pair = LoraPair(part.down, part.up, alpha)
        if part.down.dim() == 5:
            weight = known_weight(module, "weight") or f"{module}.weight"
            differences[weight] = _delta_of_conv3d(pair)
            continue
        pairs[module] = pair
        check_pair(module, pair)
    _check_differences(differences, pairs, file.name)
    found = LoraFile(Path(path), form.name, pairs, metadata, file_hashes(file), differences)
    return found if model is None else found.resolved(model)


def _delta_of_conv3d(pair: LoraPair) -> Tensor:
    """The update of a Conv3d as one tensor: its weight is small where there is one."""
    up, down = pair.up.float().flatten(1), pair.down.float().flatten(1)
    return (up @ down * (pair.alpha / pair.rank)).reshape(-1, *pair.down.shape[1:])


def _check_differences(
    differences: Mapping[str, Tensor], pairs: Mapping[str, LoraPair], where: str
) -> None:
    for path, value in differences.items():
        check_difference(path, value)
        module, _, name = path.rpartition(".")
        if name == "weight" and {module, kohya_name(module)} & set(pairs):
            raise LoraError(
                f"`{module}` in `{where}` has a low-rank update and a whole one, of which ComfyUI "
                "reads only one; export the LoRA again."
            )


def detect(keys: Iterable[str], where: str) -> LoraFormat:
    """The first format that understands at least one key. Raises LoraError when none does."""
    names = sorted(keys)
    some = [form for form in FORMATS if any(form.split(key) for key in names)]
    if some:
        return next((form for form in some if all(form.split(key) for key in names)), some[0])
    shown = ", ".join(names[:3]) or "no tensors at all"
    raise LoraError(
        f"`{where}` is not a LoRA of a known format: it holds {_kind_of(names)}{shown}. Known are "
        "the files of ComfyUI, kohya, musubi-tuner and diffusers, PEFT folders, and AnimateDiff's "
        "motion LoRAs. A base model's file is not a LoRA."
    )


def _kind_of(keys: Iterable[str]) -> str:
    """What keys of a known other kind of adapter are, with a colon after it; else empty."""
    kinds = [what for piece, what in OTHER_KINDS if any(piece in f".{key}" for key in keys)]
    return f"{kinds[0]}: " if kinds else ""


def _group(
    tensors: Mapping[str, Tensor], form: LoraFormat, where: str
) -> tuple[dict[str, Parts], dict[str, Tensor]]:
    """The parts of each pair, and whole differences by the path of the weight."""
    split = {key: form.split(key) for key in tensors}
    strange = sorted(key for key, found in split.items() if found is None)
    if strange:
        raise LoraError(
            f"{len(strange)} of {len(tensors)} weights in `{where}` are not those of a plain LoRA "
            f"of a video model ({_kind_of(strange)}{', '.join(strange[:3])}). Use a plain LoRA: "
            "train or export it without these."
        )
    parts: dict[str, Parts] = {}
    differences: dict[str, Tensor] = {}
    for key, found in split.items():
        assert found is not None
        module, part = found
        if part == WHOLE_PART:
            if module in differences:
                raise LoraError(f"`{where}` has two differences of `{module}`; export it again.")
            differences[module] = tensors[key]
            continue
        before = parts.get(module, Parts())
        if getattr(before, part) is not None:
            raise LoraError(
                f"`{module}` has its {part} matrix twice in `{where}`; export the LoRA again."
            )
        parts[module] = replace(before, **{part: tensors[key]})
    return parts, differences
