"""Pictures of every tab, light and dark, for the README and to be looked at.

    python tests/ui/screenshots.py                 # trains a small style first
    python tests/ui/screenshots.py --runs runs     # of runs that are there
    python tests/ui/screenshots.py --out docs

Writes ``ui-<tab>-<light|dark>.png`` with 256 colours, small enough for a repository.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from browsing import load_settings, opened, start, tab, wait_status
from chromium import browser
from PIL import Image
from webtrainer import ROOT, WebTrainer, tiny_settings

TABS = ("Data", "Train", "Monitor", "Samples", "Export", "Runs")
WIDTH, HEIGHT = 1280, 860
SETTLE_MILLISECONDS = 2500
COLOURS = 256
STEPS, EVERY = 40, 5
PLAYING = "() => [...document.querySelectorAll('video')].every(clip => clip.readyState > 1)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=Path, help="folder of runs; a small training without it")
    parser.add_argument("--run", default="", help="run to look at (the newest)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where to write (docs)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        web = WebTrainer(Path(home), runs_folder=options.runs)
        (web.comfyui / "models" / "loras").mkdir(parents=True)
        web.start()
        try:
            with browser() as chromium:
                if options.runs is None:
                    train(chromium, web, Path(home))
                for scheme in ("light", "dark"):
                    take(chromium, web, scheme, options.out)
        finally:
            web.stop_everything()


def train(chromium: Any, web: WebTrainer, home: Path) -> None:
    """A training of a minute or two on an example style."""
    images = ROOT / "trainer" / "assets" / "mini" / "styles" / "poster"
    with opened(chromium, web.url) as page:
        load_settings(page, tiny_settings(home, images, STEPS, EVERY))
        start(page, "flat-poster")
        wait_status(page, "finished")


def take(chromium: Any, web: WebTrainer, scheme: str, out: Path) -> None:
    """One picture of every tab in ``scheme`` ("light" or "dark")."""
    out.mkdir(parents=True, exist_ok=True)
    with opened(chromium, web.url, WIDTH, HEIGHT, scheme) as page:
        page.get_by_text("images used").wait_for()
        for name in TABS:
            tab(page, name)
            page.wait_for_timeout(SETTLE_MILLISECONDS)
            page.wait_for_function(PLAYING)
            page.mouse.move(0, 0)
            file = out / f"ui-{name.lower()}-{scheme}.png"
            page.screenshot(path=str(file))
            with Image.open(file) as picture:
                small = picture.convert("RGB").quantize(COLOURS)
            small.save(file, optimize=True)
            print(file, file.stat().st_size // 1024, "KB")


if __name__ == "__main__":
    main()
