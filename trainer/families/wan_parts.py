"""Where the parts of a Wan lie: transformer, text encoder, VAE and tiny VAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..models.comfyui_folders import TRANSFORMERS, find_beside
from ..models.downloads import TEXT_ENCODERS, TINY_VAES, WAN_EXPERTS, WAN_VAES
from ..models.tiny_vae import is_tiny_vae, read_tiny_vae
from ..models.umt5 import is_umt5
from ..models.wan import PARTS, expert_of, is_wan_file, other_name
from ..models.wan_vae import is_wan_vae, read_wan_vae
from ..models.weights import ModelError, file_keys, mended_by
from ..paths import TINY_ALONE
from .causal import CausalCodec, TinyCodec
from .record import Companions, Offer

TEXT = ("text_encoder", "tokenizer")
"""Folders of a diffusers model that make states of prompts."""
WORDS = f"the folders {' and '.join(TEXT)}"


def _is_own_vae(path: Path) -> bool:
    """By its name too: Qwen-Image's VAE has the same layers and lies in the same folder."""
    return "wan" in path.name.lower() and is_wan_vae(path)


def _is_expert(path: Path) -> bool:
    """By its name, and by its header."""
    try:
        return bool(expert_of(path)) and is_wan_file(file_keys(path))
    except ModelError:
        return False


OFFERS = {
    "text_encoder": Offer(TEXT_ENCODERS, ("text_encoders", "clip"), is_umt5),
    "vae": Offer(WAN_VAES, ("vae",), _is_own_vae),
    "tiny_vae": Offer(
        TINY_VAES,
        ("vae_approx", "vae"),
        is_tiny_vae,
        without="Without a tiny VAE the exact one decodes while training, and the discriminator "
        "sees only a part of 128 x 128 px of each frame: it learns strokes and colours, but hardly "
        "how a picture is laid out. A step takes about 1.3 GiB more graphics memory, and longer.",
    ),
    "other_expert": Offer(WAN_EXPERTS, TRANSFORMERS, _is_expert),
}


@dataclass(frozen=True)
class Places:
    """Where the parts of a model lie; None for what is not there. ``text`` is a file, or a
    diffusers folder with ``text_encoder`` and ``tokenizer``; ``vae`` and ``tiny_vae`` are the same
    file in a small Wan (`by_tiny_alone`); ``other`` is the other expert of Wan 2.2 14B, None for
    other models.
    """

    transformer: Path
    text: Path | None
    vae: Path | None
    tiny_vae: Path | None
    other: Path | None

    @classmethod
    def of(cls, path: Path, given: Companions) -> Places:
        """What is ``given``, else what is in the model's folder or in ComfyUI's beside its file."""
        if path.is_dir():
            whole = (path / "transformer").is_dir()  # else the folder of a transformer by itself
            home = path if whole else path.parent
            text = home if all((home / part).is_dir() for part in TEXT) else None
            vae, tiny = _vaes(home)
            transformer = path / "transformer" if whole else path
        else:
            transformer, (text, vae, tiny) = path, (_beside(path, name) for name in BESIDE)
        alone = vae is not None and vae == tiny
        tiny = _resolved(given.tiny_vae) or tiny
        return cls(
            transformer,
            _resolved(given.text_encoder) or text,
            _resolved(given.vae) or (tiny if alone else vae),
            tiny,
            _resolved(given.other_expert) or _other(transformer),
        )

    @property
    def by_tiny_alone(self) -> bool:
        """Whether the tiny VAE does all the work."""
        return self.vae is not None and self.vae == self.tiny_vae

    def names(self, path: Path) -> dict[str, str]:
        """Names of the files beside the model at ``path``, by setting, and that of the tiny VAE of
        a small Wan.
        """
        parts = (self.text, self.vae, self.tiny_vae, self.other)
        beside = dict(zip((*BESIDE, "other_expert"), parts, strict=True))
        told = (self.vae, self.tiny_vae) if self.by_tiny_alone else ()
        return {
            name: p.name
            for name, p in beside.items()
            if p and (p in told or not p.is_relative_to(path))
        }


def _vaes(home: Path) -> tuple[Path | None, Path | None]:
    """VAE and tiny VAE of a diffusers folder."""
    vae, tiny = home / "vae", home / TINY_ALONE
    if vae.is_dir() or not tiny.is_file():
        return vae if vae.is_dir() else None, None
    return tiny, tiny


BESIDE = ("text_encoder", "vae", "tiny_vae")


def _beside(file: Path, name: str) -> Path | None:
    return find_beside(file, OFFERS[name].folders, OFFERS[name].fits)


def _other(transformer: Path) -> Path | None:
    """The other expert of the one at ``transformer``, beside it: the other part of its folder, or
    the file of the same name but for "high" and "low", else the only one there.
    """
    mine = expert_of(transformer)
    if not mine:
        return None
    if transformer.name in PARTS:
        return next(transformer.parent / part for part in PARTS if part != transformer.name)
    twin = transformer.with_name(other_name(transformer.name))
    if twin.exists():
        return twin
    beside = (p for p in transformer.parent.glob("*.safetensors") if expert_of(p) not in ("", mine))
    found = [path for path in beside if _is_expert(path)]
    return found[0] if len(found) == 1 else None


def open_codec(places: Places) -> CausalCodec:
    """The VAE of ``places``, which must be there, and the tiny one. Raises ModelError."""
    assert places.vae is not None
    if places.by_tiny_alone:
        with mended_by("tiny_vae"):
            return TinyCodec(read_tiny_vae(places.vae, encoder=True))
    with mended_by("vae"):
        vae = read_wan_vae(places.vae)
    with mended_by("tiny_vae"):
        return CausalCodec(vae, None if places.tiny_vae is None else read_tiny_vae(places.tiny_vae))


def _resolved(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().resolve()
