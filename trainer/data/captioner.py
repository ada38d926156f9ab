"""Captions by a model on the user's machine: any image captioning model that transformers loads
from a folder.

Nothing is downloaded. BLIP, BLIP-2, GIT and similar models work; the folder is what
``save_pretrained`` or the ``hf`` command made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .images import ImageRecord
from .pixels import open_image, to_rgb
from .records import DataError

MAX_NEW_TOKENS = 40
KINDS = ("blip", "blip-2", "git", "vision-encoder-decoder")
"""``model_type`` of captioning models that need no question."""


@dataclass(frozen=True)
class Captioner:
    """``captioner(path)`` is one line about the image at ``path``."""

    name: str
    _processor: Any
    _model: Any

    @torch.no_grad()
    def __call__(self, path: Path) -> str:
        with open_image(path) as image:
            picture = to_rgb(image)[0]
        inputs = self._processor(images=picture, return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._model.device, self._model.dtype)
        tokens = self._model.generate(pixel_values=pixels, max_new_tokens=MAX_NEW_TOKENS)
        text = self._processor.batch_decode(tokens, skip_special_tokens=True)[0]
        return " ".join(text.split())


def load_captioner(folder: Path) -> Captioner:
    """The captioner in ``folder``. Raises `DataError` that says what is wrong with it."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    kind = captioner_kind(folder)
    if kind not in KINDS:
        found = f"a model of type {kind!r}" if kind else "no model"
        raise DataError(f"'{folder}' holds {found}; use a folder with one of {', '.join(KINDS)}.")
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"The captioner in '{folder}' cannot be loaded: {error}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Captioner(folder.name, processor, model.to(device).eval())


def captioner_kind(folder: Path) -> str:
    """``model_type`` of the model in ``folder``; empty when there is none."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def find_captioners(folders: Sequence[Path]) -> list[Path]:
    """Captioners directly in ``folders`` and in the cache of the ``hf`` command."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    candidates = [child for folder in folders if folder.is_dir() for child in folder.iterdir()]
    candidates += hub.glob("models--*/snapshots/*")
    return sorted(folder for folder in candidates if captioner_kind(folder) in KINDS)


def missing_captions(records: Sequence[ImageRecord]) -> Iterator[ImageRecord]:
    """Used images without a caption of their own."""
    return (r for r in records if r.status == "used" and not r.captioned)
