"""Where the parts of a Wan lie: transformer, text encoder, VAE and tiny VAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..models.comfyui_folders import find_beside
from ..models.downloads import TEXT_ENCODERS, TINY_VAES, WAN_VAES
from ..models.tiny_vae import is_tiny_vae
from ..models.umt5 import is_umt5
from ..models.wan_vae import is_wan_vae
from ..paths import TINY_ALONE
from .record import Companions, Offer

TEXT = ("text_encoder", "tokenizer")
"""Folders of a diffusers model that make states of prompts."""
WORDS = f"the folders {' and '.join(TEXT)}"


def _is_own_vae(path: Path) -> bool:
    """By its name too: Qwen-Image's VAE has the same layers and lies in the same folder."""
    return "wan" in path.name.lower() and is_wan_vae(path)


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
}


@dataclass(frozen=True)
class Places:
    """Where the parts of a model lie; None for what is not there. ``text`` is a file, or a
    diffusers folder with ``text_encoder`` and ``tokenizer``; ``vae`` and ``tiny_vae`` are the same
    file in a small Wan (`by_tiny_alone`).
    """

    transformer: Path
    text: Path | None
    vae: Path | None
    tiny_vae: Path | None

    @classmethod
    def of(cls, path: Path, given: Companions) -> Places:
        """What is ``given``, else what is in the model's folder or in ComfyUI's beside its file."""
        if path.is_dir():
            whole = (path / "transformer").is_dir()  # else the folder of a transformer by itself
            home = path if whole else path.parent
            text = home if all((home / part).is_dir() for part in TEXT) else None
            found = cls(path / "transformer" if whole else path, text, *_vaes(home))
        else:
            found = cls(
                path,
                *(find_beside(path, OFFERS[name].folders, OFFERS[name].fits) for name in OFFERS),
            )
        tiny = _resolved(given.tiny_vae) or found.tiny_vae
        return cls(
            found.transformer,
            _resolved(given.text_encoder) or found.text,
            _resolved(given.vae) or (tiny if found.by_tiny_alone else found.vae),
            tiny,
        )

    @property
    def by_tiny_alone(self) -> bool:
        """Whether the tiny VAE does all the work."""
        return self.vae is not None and self.vae == self.tiny_vae

    def names(self, path: Path) -> dict[str, str]:
        """Names of the files beside the model at ``path``, by setting, and that of the tiny VAE of
        a small Wan.
        """
        beside = dict(zip(OFFERS, (self.text, self.vae, self.tiny_vae), strict=True))
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


def _resolved(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().resolve()
