"""Where the files that ship with the trainer are."""

from pathlib import Path

MINI = Path(__file__).resolve().parent / "assets" / "mini"
"""The embedded model's folder, in diffusers layout."""
