"""Where the files that ship with the trainer are."""

from __future__ import annotations

from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
"""This repository's folder."""
ASSETS = Path(__file__).resolve().parent / "assets"
BUNDLED = "mini"
"""Name of the base model that comes with the trainer."""
MINI = ASSETS / BUNDLED
"""Its folder, in diffusers layout."""
TINY_ALONE = "taew2_1.safetensors"
"""In the folder of a small Wan, in place of ``vae``: a tiny VAE that also encodes."""
CLIP_MERGES = ASSETS / "clip" / "merges.txt.gz"
"""Byte-pair merges of CLIP's tokenizer."""
GENERAL_PROMPTS = ASSETS / "prompts" / "general.txt"
"""Prompts for the example clips of any general video model; lines that begin with # are notes."""


def bundled(name: str) -> Path | None:
    """The folder of base model ``name`` where it is the one that comes with the trainer."""
    return MINI if name == BUNDLED else None
