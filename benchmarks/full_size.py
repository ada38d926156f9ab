"""One real forward of each family at full size, by the trainer and by the ComfyUI nodes.

    python benchmarks/full_size.py --json benchmarks/results/full_size.json [--comfyui PATH]

Writes stand-ins for the published files (their shapes, key names and formats, random weights in
fp16), reads them as a user's files are read, and predicts noise for one clip in bf16: 16 frames of
256 px for ModelScopeT2V, of 512 px for AnimateDiff; for Wan 2.1 1.3B in fp32 9 frames of 256 x 144
px, with random states of text. The trainer's and the nodes' predictions are compared; for Wan the
nodes are ComfyUI's own. Needs 16 GiB of memory, 6 GiB of disk and some minutes, but no graphics
card. Each path runs in a process of its own. Without ``--comfyui`` only the trainer's path is run.
Rows of OUT stay unless they are measured again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import full_size_wan
import psutil
import repository
import torch

ROOT = repository.ROOT
SIZES = {"modelscope": (16, 256, 256), "animatediff": (16, 512, 512), "wan": (9, 144, 256)}
"""Frames, height and width of a clip in pixels, by family."""
TOKENS, TIMESTEP = 77, 499
CHECKPOINT, MOTION = "sd15.safetensors", "mm_sd_v15_v2.safetensors"
GIB = 1 << 30


def main() -> None:
    options = arguments()
    if options.part:
        PARTS[options.part](options)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = [row for family in options.family for row in measure(family, Path(folder), options)]
    found = {"rows": kept(options) + rows}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="OUT", default=Path("full_size.json"), help="file to write")
    add("--comfyui", type=Path, help="folder of ComfyUI's main.py, for the nodes' path")
    add("--family", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    add("--side", type=int, help="side of a square clip in pixels, in place of the family's own")
    add("--part", choices=("write", "trainer", "nodes"), help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def kept(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of other families that an earlier call left in OUT."""
    if not options.json.is_file():
        return []
    rows = json.loads(options.json.read_text(encoding="utf-8"))["rows"]
    return [row for row in rows if row["family"] not in options.family]


def measure(family: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each path: seconds to load and to predict, peak memory, difference of the two."""
    place = folder / family
    place.mkdir()
    in_own_process("write", family, place, options)
    rows = []
    where = {"machine": machine(), "date": datetime.date.today().isoformat()}
    for part in PARTS_RUN if options.comfyui else PARTS_RUN[:1]:
        report = in_own_process(part, family, place, options)
        row = {"family": family, "path": part, "clip": size_of(family, options.side)}
        rows.append(row | report | where)
        print(rows[-1], flush=True)
    if options.comfyui:
        ours, theirs = (torch.load(place / f"{part}.pt", weights_only=True) for part in PARTS_RUN)
        rows[-1]["relative_difference"] = float((ours - theirs).norm() / ours.norm())
    return rows


PARTS_RUN = ("trainer", "nodes")


def size_of(family: str, side: int | None) -> tuple[int, int, int]:
    """Frames, height and width of the clip."""
    frames, height, width = SIZES[family]
    return frames, side or height, side or width


def in_own_process(
    part: str, family: str, place: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """What ``part`` reports; its peak memory is its process's own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part, "--family", family]
    command += ["--folder", str(place)]
    command += ["--side", str(options.side)] if options.side else []
    command += ["--comfyui", str(options.comfyui.resolve())] if options.comfyui else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The part {part!r} of {family} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write(options: argparse.Namespace) -> None:
    """Stand-ins for the published files in ``options.folder``."""
    family, folder = options.family[0], options.folder
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    WRITERS[family](folder)
    report(written_gib=sum(f.stat().st_size for f in folder.rglob("*")) / GIB)


def write_modelscope(folder: Path) -> None:
    """The diffusers folder of ``ali-vilab/text-to-video-ms-1.7b``."""
    from trainer.families import family_named
    from trainer.models.clip import clip_tokenizer

    model = family_named("modelscope").skeleton("cpu")
    parts = {"unet": model.network, "vae": model.codec.vae, "text_encoder": model.text.encoder}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(model.noise.config), encoding="utf-8")


def write_animatediff(folder: Path) -> None:
    """A Stable Diffusion 1.5 checkpoint and a motion module v2, both in original keys."""
    sys.path.append(str(ROOT / "tests"))
    from diffusers import MotionAdapter, UNet2DConditionModel
    from safetensors.torch import save_file
    from sd15_files import Parts, original_motion

    from trainer.families import family_named

    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    adapter = MotionAdapter(motion_max_seq_length=32)
    shapes = family_named("animatediff").skeleton("cpu")
    parts = Parts(unet, shapes.codec.vae, shapes.text.encoder, adapter)
    save_file(parts.checkpoint(), folder / CHECKPOINT)
    save_file(original_motion(adapter), folder / MOTION)


WRITERS = {
    "modelscope": write_modelscope,
    "animatediff": write_animatediff,
    "wan": full_size_wan.write,
}


def trainer(options: argparse.Namespace) -> None:
    """The path of a training run: `load_model` and `VideoModel.predict`."""
    from trainer.families import load_model

    family, folder = options.family[0], options.folder
    if family == "wan":
        finish(folder / "trainer.pt", *full_size_wan.trainer(folder, size_of(family, options.side)))
        return
    begun = time.perf_counter()
    if family == "modelscope":
        model = load_model(str(folder), torch.bfloat16)
    else:
        path = str(folder / CHECKPOINT)
        model = load_model(path, torch.bfloat16, motion_module=folder / MOTION)
    model.to("cpu", torch.bfloat16)
    loaded = time.perf_counter()
    latents, text = inputs(size_of(family, options.side), model.text.width)
    with torch.inference_mode():
        eps = model.predict(latents, torch.tensor([TIMESTEP]), text.bfloat16())
    finish(folder / "trainer.pt", eps, begun, loaded)


def nodes(options: argparse.Namespace) -> None:
    """The path of a ComfyUI graph: the loaders behind the nodes, and the model's own forward."""
    family, folder = options.family[0], options.folder
    pack = import_pack(options.comfyui)
    if family == "wan":
        finish(folder / "nodes.pt", *full_size_wan.nodes(folder, size_of(family, options.side)))
        return
    begun = time.perf_counter()
    with torch.inference_mode():
        if family == "modelscope":
            bundle = importlib.import_module(f"{pack}.nodes.native.bundle")
            patcher, _, _ = bundle.load_video_model(folder, "bf16")
            width = 1024
        else:
            patcher, width = animatediff_model(pack, folder), 768
        loaded = time.perf_counter()
        latents, text = inputs(size_of(family, options.side), width)
        rows = latents[0].transpose(0, 1).contiguous()
        context = text.expand(len(rows), -1, -1)
        timesteps = torch.full((len(rows),), float(TIMESTEP))
        eps = patcher.model.diffusion_model(
            rows.bfloat16(), timesteps, context=context.bfloat16(), transformer_options={}
        )
    finish(folder / "nodes.pt", eps.float().transpose(0, 1)[None], begun, loaded)


def animatediff_model(pack: str, folder: Path) -> Any:
    """Load Checkpoint, then AnimateDiff Motion Module."""
    sd = importlib.import_module("comfy.sd")
    native = importlib.import_module(f"{pack}.nodes.native.animatediff")
    motion = importlib.import_module(f"{pack}.trainer.models.motion_module")
    loaded = sd.load_checkpoint_guess_config(
        str(folder / CHECKPOINT),
        output_vae=False,
        output_clip=False,
        model_options={"dtype": torch.bfloat16},
    )
    return native.apply_motion_module(loaded[0], motion.read_motion_module(folder / MOTION))


def import_pack(comfyui: Path) -> str:
    """This repository as a package of ComfyUI's, and ComfyUI importable; returns its name."""
    sys.path.insert(0, str(comfyui))
    kept, sys.argv = sys.argv, ["comfyui", "--cpu"]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = kept
    name = "mcm_pack"
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return name


def inputs(size: tuple[int, int, int], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same noisy latents (1, 4, f, h, w) and text (1, 77, D) for both paths."""
    frames, *sides = size
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, frames, sides[0] // 8, sides[1] // 8, generator=generator)
    return latents, torch.randn(1, TOKENS, width, generator=generator)


def finish(file: Path, eps: torch.Tensor, begun: float, loaded: float) -> None:
    assert bool(eps.isfinite().all()), "the prediction is not finite"
    seconds = time.perf_counter() - loaded
    torch.save(eps.float().clone(), file)
    report(load_seconds=loaded - begun, forward_seconds=seconds)


def report(**values: float) -> None:
    """The last line of a part's output, with the peak of its memory."""
    rounded = {name: round(value, 3) for name, value in values.items()}
    print(json.dumps(rounded | {"peak_gib": round(peak_gib(), 2)}))


def peak_gib() -> float:
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return info.peak_wset / GIB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


PARTS = {"write": write, "trainer": trainer, "nodes": nodes}


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "processor": ", ".join(sorted(names)) or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def table(rows: list[dict[str, Any]]) -> str:
    head = ("family", "clip", "path", "load s", "forward s", "peak GiB", "difference")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        difference = row.get("relative_difference")
        shown = "" if difference is None else f"{difference:.1e}"
        frames, height, width = row["clip"]
        lines.append(
            f"| {row['family']} | {frames} x {width} x {height} px | {row['path']} | "
            f"{row['load_seconds']:.1f} | {row['forward_seconds']:.1f} | {row['peak_gib']:.1f} | "
            f"{shown} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
