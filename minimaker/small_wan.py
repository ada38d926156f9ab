"""Train the embedded small Wan from nothing: ``python -m minimaker.small_wan``.

Stages: autoencoder, decoder, reader, judge, small-clips, small-transformer, clips,
parts-transformer, transformer, folder, styles, warmstart, library. Each continues where it was
interrupted; everything is derived from fixed seeds.

On a graphics card: ``--device cuda --painters 15 --batch 256 --shards 200``; clips and transformer
are made there, all else on the processor.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.mini.reading import JUDGE_FILE, READER_FILE
from trainer.mini.sentences import SHAPES
from trainer.models.tiny_vae import TinyVae, read_tiny_vae

from .causal import (
    ENCODER,
    WIDTHS,
    build_autoencoder,
    load_average,
    reconstruction_psnr,
    train_half,
)
from .clips import save_weights
from .contact import write_folders
from .flow_clips import encode_clips
from .flow_teacher import PARTS, SHIFT, SMALL, WHOLE, Teacher, load_teacher, train_teacher
from .flow_text import PIECES, TOKENS, kept_pieces, prompt_lines
from .footage import public_video
from .gallery import HELD_OUT, STYLES
from .scene_networks import train_judge, train_reader
from .scenes import FPS, FRAMES, SIZE
from .shared import distil_start, roll_out_library

STAGES = (
    "autoencoder", "decoder", "reader", "judge",
    "small-clips", "small-transformer", "clips", "parts-transformer", "transformer",
    "folder", "styles", "warmstart", "library",
)  # fmt: skip
ABOUT: dict[str, Any] = {
    "name": "small-wan",
    "frames": FRAMES,
    "height": SIZE,
    "width": SIZE,
    "fps": FPS,
    "tokens": TOKENS,
    "shift": int(SHIFT),
    "licence": "Apache-2.0",
    "for_trying_out": "one shape",
    "subjects": list(SHAPES),
    "recommended": {"data.library_clips": 96},
}
VAE_FILE = "taew2_1.safetensors"
STARTED = Path(__file__).parent / "started" / VAE_FILE
"""The autoencoder of an earlier training, in fp16, which is trained on."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m minimaker.small_wan", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("work/small-wan"), help="checkpoints")
    parser.add_argument("--out", type=Path, help="model folder to write (default: in --work)")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument(
        "--autoencoder",
        type=Path,
        default=STARTED if STARTED.is_file() else None,
        help="file to begin with instead of principal components (default: %(default)s)",
    )
    parser.add_argument("--autoencoder-steps", type=int, default=8000)
    parser.add_argument("--decoder-steps", type=int, default=4000)
    parser.add_argument("--reader-steps", type=int, default=2400)
    parser.add_argument("--judge-steps", type=int, default=2400)
    parser.add_argument("--shards", type=int, default=120, help="of 200 clips each")
    parser.add_argument("--small-steps", type=int, default=8000, help="of the small transformer")
    parser.add_argument("--parts-steps", type=int, default=8000, help="on parts of clips")
    parser.add_argument("--transformer-steps", type=int, default=30000)
    parser.add_argument("--helpers", type=int, default=0, help="more processes, one on each core")
    parser.add_argument("--device", default="cpu", help="of clips and transformer, such as cuda")
    parser.add_argument("--batch", type=int, help="whole clips a step of the transformer")
    parser.add_argument("--painters", type=int, default=0, help="processes that render clips")
    parser.add_argument("--warmstart-steps", type=int, default=600)
    return parser


def _autoencoder(options: argparse.Namespace) -> TinyVae:
    """The autoencoder as far as it got in ``--work``, else a given or a new one; trained on where
    that is wanted.
    """
    wanted, work = set(options.only), options.work
    if (work / "autoencoder.pt").is_file():
        vae = TinyVae(WIDTHS, ENCODER)
    elif options.autoencoder is not None:
        vae = read_tiny_vae(options.autoencoder, encoder=True)
    else:
        vae = build_autoencoder()
    if "autoencoder" in wanted:
        train_half(vae, "autoencoder", work, options.autoencoder_steps)
    load_average(vae, "autoencoder", work)
    if "decoder" in wanted:
        train_half(vae, "decoder", work, options.decoder_steps)
    load_average(vae, "decoder", work)
    vae.eval().requires_grad_(False)
    if {"autoencoder", "decoder"} & wanted:
        _report(vae, work / "autoencoder.json")
    return vae


def _train(options: argparse.Namespace) -> None:
    wanted, work = set(options.only), options.work
    work.mkdir(parents=True, exist_ok=True)
    vae = _autoencoder(options)
    _networks(options, vae)
    tokenizer = kept_pieces(work / "tokenizer")
    given = {"device": options.device}
    for size, clips in ((SIZE // 2, "small-clips"), (SIZE, "clips")):
        if clips in wanted:
            encode_clips(vae, work, options.shards, size, painters=options.painters, **given)
    for stage, name, steps in (
        ("small-transformer", SMALL, options.small_steps),
        ("parts-transformer", PARTS, options.parts_steps),
        ("transformer", WHOLE, options.transformer_steps),
    ):
        if stage in wanted:
            more = {"helpers": options.helpers, "batch": options.batch}
            train_teacher(work, steps, name, **more, **given)
    if "folder" in wanted:
        teacher = load_teacher(Teacher(tokenizer), work)
        assemble(_out(options), teacher, vae, work / "tokenizer" / PIECES)
    if "styles" in wanted:
        write_folders(_out(options) / "styles")
    if "warmstart" in wanted:
        distil_start(_out(options), work, options.warmstart_steps)
    if "library" in wanted:
        roll_out_library(_out(options), work)


def _out(options: argparse.Namespace) -> Path:
    return options.out or options.work / "model"


def _networks(options: argparse.Namespace, vae: TinyVae) -> None:
    """Train what looks at the clips, and write it to the model folder."""
    out = _out(options)
    if "reader" in options.only:
        reader = train_reader(options.work, vae, options.reader_steps)
        save_weights(reader, out / "framenet" / READER_FILE)
    if "judge" in options.only:
        judge = train_judge(options.work, vae, options.judge_steps)
        save_weights(judge, out / "judge" / JUDGE_FILE)


def _report(vae: TinyVae, file: Path) -> None:
    """Write and print the PSNR of every look."""
    looks = {"public video": public_video, **STYLES, "held out": HELD_OUT}
    found = {name: round(reconstruction_psnr(vae, look), 2) for name, look in looks.items()}
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(*(f"autoencoder, {name}: {psnr} dB" for name, psnr in found.items()), sep="\n")


def assemble(folder: Path, teacher: Teacher, vae: TinyVae, pieces: Path) -> None:
    """Write the model as a folder, weights in fp16: the parts of a diffusers Wan, with the tiny
    autoencoder in place of the VAE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (
        ("transformer", teacher.transformer),
        ("text_encoder", teacher.text_encoder),
    ):
        part.to(torch.float16).save_pretrained(folder / name)
        part.float()
    save_weights(vae, folder / VAE_FILE)
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / PIECES).write_bytes(pieces.read_bytes())
    (folder / "prompts.txt").write_text(prompt_lines(), encoding="utf-8")
    (folder / "mcm.json").write_text(json.dumps(ABOUT, indent=2) + "\n", encoding="utf-8")


def run(arguments: Sequence[str] | None = None) -> int:
    """The command with its ``arguments``, by default those of the process."""
    _train(_parser().parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(run())
