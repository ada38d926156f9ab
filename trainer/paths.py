"""Where the files that ship with the trainer are."""

from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
"""This repository's folder."""
ASSETS = Path(__file__).resolve().parent / "assets"
MINI = ASSETS / "mini"
"""The embedded model's folder, in diffusers layout."""
CLIP_MERGES = ASSETS / "clip" / "merges.txt.gz"
"""Byte-pair merges of CLIP's tokenizer."""
GENERAL_PROMPTS = ASSETS / "prompts" / "general.txt"
"""Prompts for the example clips of any general video model; lines that begin with # are notes."""
