"""Sheets to look at, and the example style folders: ``python -m minimaker.contact OUT``.

Writes ``OUT/sheet_<name>.png``; with ``--folders`` also ``OUT/<style>/``, 40 captioned stills each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.mini.sentences import COLOURS, SHAPES

from .footage import public_video
from .gallery import HELD_OUT, STYLES, Look, random_style
from .paint import paint
from .scenes import SIZE, Scene, random_scene, random_still

EXAMPLES = ("poster", "neon", "ink", "watercolour", "cutout", "chalk")
"""The styles that get a folder."""
STILLS = 40
QUALITY = 92
COLUMNS = 10
GAP = 4


def sheet(rows: list[list[np.ndarray]]) -> Image.Image:
    """Frames (128, 128, 3) uint8 in rows on white."""
    step = SIZE + GAP
    page = np.full((len(rows) * step + GAP, max(map(len, rows)) * step + GAP, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, frame in enumerate(row):
            top, left = GAP + r * step, GAP + c * step
            page[top : top + SIZE, left : left + SIZE] = frame
    return Image.fromarray(page)


def clip_row(look: Look, scene: Scene, count: int = COLUMNS) -> list[np.ndarray]:
    """``count`` frames of one clip, from its first to its last."""
    frames = look(scene)
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]


def style_row(look: Look, rng: np.random.Generator, count: int = COLUMNS) -> list[np.ndarray]:
    """``count`` different stills, the colours in turn."""
    stills = (
        random_still(rng, shape=SHAPES[i % len(SHAPES)], colour=COLOURS[i % len(COLOURS)])
        for i in range(count)
    )
    return [look(still)[0] for still in stills]


def write_sheets(folder: Path, seed: int = 0, columns: int = COLUMNS) -> list[Path]:
    """Stills, clips, pans, public video and random styles, one row a style; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    looks: dict[str, Look] = {**STYLES, "held out": HELD_OUT, "public": public_video}
    rng = np.random.default_rng(seed)

    def clip(look: Look, **asked: bool | None) -> list[np.ndarray]:
        return clip_row(look, random_scene(rng, **asked), columns)  # type: ignore[arg-type]

    pages = {
        "stills": [style_row(k, np.random.default_rng(seed), columns) for k in looks.values()],
        "clips": [clip(k, pan=False, pair=i % 2 == 1) for i, k in enumerate(looks.values())],
        "pans": [clip(look, pan=True) for look in looks.values()],
        "public": [style_row(public_video, rng, columns) for _ in range(4)]
        + [clip(public_video) for _ in range(4)],
        "random": [
            [paint(random_still(rng), random_style(rng))[0] for _ in range(columns)]
            for _ in range(columns)
        ],
    }
    files = []
    for name, rows in pages.items():
        files.append(folder / f"sheet_{name}.png")
        sheet(rows).save(files[-1])
    return files


def write_folder(folder: Path, look: Look, seed: int, count: int) -> int:
    """``count`` captioned stills of all shapes and colours in ``look``; bytes written."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-count // len(pairs)))])
    total = 0
    for number, index in enumerate(order[:count]):
        shape, colour = pairs[index]
        still = random_still(rng, shape=shape, colour=colour)
        name = still.caption.removeprefix("a ").replace(" ", "_")
        picture, words = folder / f"{number:02d}_{name}.jpg", folder / f"{number:02d}_{name}.txt"
        Image.fromarray(look(still)[0]).save(picture, quality=QUALITY, subsampling=0)
        words.write_text(still.caption + "\n", encoding="utf-8")
        total += picture.stat().st_size + words.stat().st_size
    return total


def write_folders(out: Path) -> int:
    """A folder of stills below ``out`` for each style of `EXAMPLES`; bytes written."""
    named = enumerate(EXAMPLES, 1)
    return sum(write_folder(out / name, STYLES[name], seed, STILLS) for seed, name in named)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m minimaker.contact", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--folders", action="store_true", help="write the style folders too")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    for file in write_sheets(chosen.out, chosen.seed):
        print(file)
    if chosen.folders:
        total = write_folders(chosen.out)
        print(f"{len(EXAMPLES)} folders of {STILLS} pictures: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
