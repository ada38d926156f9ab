"""What a run has made: previews, its LoRA, and the forms that other programs read."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..paths import bundled
from .options import add_model_arguments, model_from


def preview_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--prompt", action="append", default=[], help="what the clip shows; may be repeated"
    )
    parser.add_argument(
        "--strengths",
        nargs="+",
        type=float,
        default=[],
        metavar="S",
        help="LoRA strengths to compare, in 4 sampling steps, on one prompt",
    )
    parser.add_argument("--seed", type=int, help="seed of the noise (the run's)")


def preview(options: argparse.Namespace) -> int:
    """Make a preview now: the base model beside the LoRA in 1, 2, 4 and 8 steps.

      python -m trainer preview runs/my-style
      python -m trainer preview runs/my-style --prompt "a red star growing" --seed 7
      python -m trainer preview runs/my-style --strengths 0 0.5 0.75 1

    A run that is training makes it after its current training step. With your own prompts, or
    strengths to compare, this command makes it, with the exported LoRA (or the newest checkpoint
    if there is none).
    """
    from ..runs.folder import Run
    from ..runs.state import read_state

    folder = Run.open(options.folder)
    if read_state(folder).live and not (options.prompt or options.strengths):
        folder.request_preview()
        print(f"{folder.name} makes a preview after the current training step.")
        return 0
    from ..distill.stored import preview_checkpoint

    made = preview_checkpoint(folder, options.prompt, options.seed, options.strengths)
    print(f"Wrote {made.folder}.")
    return 0


def export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--checkpoint",
        type=_step,
        metavar="STEP",
        help='step of the checkpoint, or "best" (default: the newest)',
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write (RUN/<name>-step<number>.safetensors)",
    )
    parser.add_argument("--force", action="store_true", help="replace the file at --out")


def _step(text: str) -> int | str:
    return text if text == "best" else int(text)


def export(options: argparse.Namespace) -> int:
    """Export the LoRA from a checkpoint of a run: the newest, one by its step, or the best.

    The best checkpoint has the most motion and style in its preview. The end of a training exports
    it automatically.

      python -m trainer export runs/my-style --checkpoint 300
      python -m trainer export runs/my-style --out ../ComfyUI/models/loras/my-style.safetensors

    An existing file is only replaced with --force.
    """
    from ..distill.stored import best_checkpoint, export_checkpoint
    from ..runs.folder import Run

    if options.out is not None and options.out.exists() and not options.force:
        raise ValueError(
            f"{options.out} exists; choose another name, or add --force to replace it."
        )
    folder = Run.open(options.folder)
    step = best_checkpoint(folder) if options.checkpoint == "best" else options.checkpoint
    made = export_checkpoint(folder, step, options.out)
    print(f"Wrote {made.path} ({made.counts}, sha256 {made.sha256}).")
    return 0


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="LoRA or base model: file, folder")
    add_model_arguments(parser, default=None)


def inspect(options: argparse.Namespace) -> int:
    """Show what a file contains. Of a LoRA: base model, format, matched layers, recommended
    settings, hashes. Of a base model: family, size, form, and which layers are trained.

      python -m trainer inspect runs/ink/ink.safetensors
      python -m trainer inspect my_peft_folder --model /models/text-to-video-ms-1.7b

    With `--model`, its layers are matched against that base model. A LoRA for the mini model is
    always matched.
    """
    from ..lora.inspect import inspect_base, inspect_file

    base = inspect_base(options.file)
    if base is not None:
        print(base.text())
        return 0
    name = options.model or _named_model(options.file)
    report = inspect_file(options.file, None if name is None else model_from(options, name).network)
    print(report.text())
    return 0


def _named_model(file: Path) -> str | None:
    """The base model that the file says it was trained on, if it is the one that comes with us."""
    from ..lora.formats import read_lora

    name = read_lora(file).metadata.get("mcm.base_model", "")
    return name if bundled(name) else None


FORMS = ("comfyui", "kohya", "kohya-webui", "peft", "diffusers", "animatediff-evolved")
DTYPES = ("keep", "fp16", "bf16", "fp32")


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="IN", help="LoRA file or folder, in any format"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="file or folder to write")
    parser.add_argument("--to", required=True, choices=FORMS, help="format to write")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="keep", help="precision of the numbers (keep)"
    )
    parser.add_argument(
        "--motion-module",
        type=Path,
        metavar="PATH",
        help="motion module to merge the motion layers into, for animatediff-evolved",
    )


def convert(options: argparse.Namespace) -> int:
    """Convert a LoRA to the format of another program. Its values do not change.

      python -m trainer convert ink.safetensors ink-peft --to peft
      python -m trainer convert animatediff-laion laion.safetensors --to kohya
      python -m trainer convert ink.safetensors ink --to animatediff-evolved

    Formats: `comfyui` (the names that ComfyUI's own loader reads), `kohya` (underscores, which
    ComfyUI reads too; for Wan those of musubi-tuner), `kohya-webui` (the image layers, with Stable
    Diffusion 1.5's own block names), `peft` (a folder, like the official LoRAs), `diffusers` (one
    file), `animatediff-evolved` (a folder with an image LoRA and a motion LoRA; with
    --motion-module also a merged motion module).
    """
    from ..lora.convert import convert
    from ..lora.inspect import inspect_base

    base = inspect_base(options.source)
    if base is not None:
        raise ValueError(f"'{options.source}' is no LoRA:\n{base.text()}")
    done = convert(
        options.source,
        options.out,
        options.to,
        dtype=options.dtype,
        motion_module=options.motion_module,
    )
    print(done.text())
    return 0
