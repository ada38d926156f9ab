"""Train the embedded mini model from nothing: ``python -m minimaker pretrain``.

Stages: autoencoder, clips, teacher, framenet, judge, styles, assemble, warmstart, library. Each one
continues where it was interrupted; ``--only`` repeats some of them. Everything is derived from
fixed seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from trainer.families import MINI
from trainer.mini.networks import FRAMENET_FILE, JUDGE_FILE

from .assemble import assemble
from .autoencoder import reconstruction_psnr, train_autoencoder
from .clips import save_weights
from .directions import SHAPES_AGAIN, teach_directions
from .framenet import train_framenet
from .judge import train_judge
from .looks import HELD_OUT, STYLES, Look, public_video, regenerate
from .shared import distil_start, roll_out_library
from .teacher import encode_clips, load_clips, train_teacher
from .text import kept_tokenizer

FRAMENET_STEPS = 1900
JUDGE_STEPS = 2400
STAGES = (
    "autoencoder", "clips", "teacher", "framenet", "judge", "styles", "assemble", "warmstart",
    "library",
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m minimaker", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    pretrain = commands.add_parser("pretrain", help="train every part and write the model folder")
    pretrain.add_argument(
        "--work", type=Path, default=Path("work/mini"), help="checkpoints and caches"
    )
    pretrain.add_argument("--out", type=Path, default=MINI, help="the model folder to write")
    pretrain.add_argument(
        "--only", nargs="+", choices=STAGES, default=STAGES, help="run only these stages"
    )
    pretrain.add_argument("--autoencoder-steps", type=int, default=4200)
    pretrain.add_argument("--decoder-steps", type=int, default=1200)
    pretrain.add_argument("--teacher-steps", type=int, default=8500)
    pretrain.add_argument("--direction-steps", type=int, default=3000)
    pretrain.add_argument("--shape-steps", type=int, default=1600)
    pretrain.add_argument(
        "--shards", type=int, default=12, help="of 250 sequences of 12 frames each"
    )
    pretrain.add_argument("--framenet-steps", type=int, default=FRAMENET_STEPS)
    pretrain.add_argument("--judge-steps", type=int, default=JUDGE_STEPS)
    pretrain.add_argument("--warmstart-steps", type=int, default=600)
    styles = commands.add_parser("styles", help="write the three example style folders again")
    styles.add_argument("--out", type=Path, default=MINI)
    return parser


def _autoencoder(options: argparse.Namespace) -> AutoencoderTiny:
    """The trained autoencoder, from the work folder if it is complete there."""
    vae = train_autoencoder(options.work, options.autoencoder_steps, options.decoder_steps)
    looks: dict[str, Look] = {"public video": public_video, **STYLES, "held out": HELD_OUT}
    for name, look in looks.items():
        print(f"autoencoder, {name}: {reconstruction_psnr(vae, look):.1f} dB")
    return vae


def _pretrain(options: argparse.Namespace) -> None:
    wanted, work, out = set(options.only), options.work, options.out
    vae = _autoencoder(options)
    files = encode_clips(vae, work, options.shards)
    if "framenet" in wanted:
        net = train_framenet(work, vae, options.framenet_steps)
        save_weights(net, out / "framenet" / FRAMENET_FILE)
    if "judge" in wanted:
        judge = train_judge(work, vae, options.judge_steps)
        save_weights(judge, out / "judge" / JUDGE_FILE)
    if "styles" in wanted:
        regenerate(out / "styles")
    if "assemble" in wanted:
        tokenizer = kept_tokenizer(work / "tokenizer")
        clips = load_clips(files)
        unet, text = train_teacher(work, tokenizer, clips, options.teacher_steps)
        teach_directions(work, tokenizer, clips, unet, text, options.direction_steps)
        teach_directions(work, tokenizer, clips, unet, text, options.shape_steps, SHAPES_AGAIN)
        assemble(out, unet, vae, text, tokenizer)
    if "warmstart" in wanted:
        distil_start(out, work, options.warmstart_steps)
    if "library" in wanted:
        roll_out_library(out, work)


def main() -> int:
    options = _parser().parse_args()
    torch.set_num_threads(max(torch.get_num_threads(), 1))
    if options.command == "styles":
        regenerate(options.out / "styles")
    else:
        _pretrain(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
