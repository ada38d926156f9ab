"""One real forward of each family at full size, by the trainer and by the ComfyUI nodes.

    python benchmarks/full_size.py --json benchmarks/results/full_size.json [--comfyui PATH]

Writes stand-ins for the published files (their shapes, key names and formats, random weights in
fp16), reads them as a user's files are read, and predicts noise for one clip of 16 frames in bf16:
256 px for ModelScopeT2V, 512 px for AnimateDiff. The trainer's and the nodes' predictions are
compared. Needs 16 GiB of memory, 6 GiB of disk and some minutes, but no graphics card. Each path
runs in a process of its own. Without ``--comfyui`` only the trainer's path is run.
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

import psutil
import repository
import torch

ROOT = repository.ROOT
SIDES = {"modelscope": 256, "animatediff": 512}
FRAMES, TOKENS, TIMESTEP = 16, 77, 499
CHECKPOINT, MOTION = "sd15.safetensors", "mm_sd_v15_v2.safetensors"
GIB = 1 << 30


def main() -> None:
    options = arguments()
    if options.part:
        PARTS[options.part](options)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = [row for family in options.family for row in measure(family, Path(folder), options)]
    found = {"rows": rows, "machine": machine(), "date": datetime.date.today().isoformat()}
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
    add("--family", nargs="+", choices=tuple(SIDES), default=list(SIDES))
    add("--side", type=int, help="clip side in pixels, in place of the family's own")
    add("--part", choices=("write", "trainer", "nodes"), help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(family: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each path: seconds to load and to predict, peak memory, difference of the two."""
    place = folder / family
    place.mkdir()
    in_own_process("write", family, place, options)
    rows = []
    for part in ("trainer", "nodes") if options.comfyui else ("trainer",):
        report = in_own_process(part, family, place, options)
        rows.append({"family": family, "path": part, "side": side_of(family, options), **report})
        print(rows[-1], flush=True)
    if options.comfyui:
        ours, theirs = (torch.load(place / f"{part}.pt", weights_only=True) for part in PARTS_RUN)
        rows[-1]["relative_difference"] = float((ours - theirs).norm() / ours.norm())
    return rows


PARTS_RUN = ("trainer", "nodes")


def side_of(family: str, options: argparse.Namespace) -> int:
    return options.side or SIDES[family]


def in_own_process(
    part: str, family: str, place: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """What ``part`` reports; its peak memory is its process's own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part, "--family", family]
    command += ["--folder", str(place), "--side", str(side_of(family, options))]
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
    if family == "modelscope":
        write_modelscope(folder)
    else:
        write_animatediff(folder)
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


def trainer(options: argparse.Namespace) -> None:
    """The path of a training run: `load_model` and `VideoModel.predict`."""
    from trainer.families import load_model

    family, folder = options.family[0], options.folder
    begun = time.perf_counter()
    if family == "modelscope":
        model = load_model(str(folder), torch.bfloat16)
    else:
        path = str(folder / CHECKPOINT)
        model = load_model(path, torch.bfloat16, motion_module=folder / MOTION)
    model.to("cpu", torch.bfloat16)
    loaded = time.perf_counter()
    latents, text = inputs(options.side, model.text.width)
    with torch.inference_mode():
        eps = model.predict(latents, torch.tensor([TIMESTEP]), text.bfloat16())
    finish(eps, folder / "trainer.pt", begun, loaded)


def nodes(options: argparse.Namespace) -> None:
    """The path of a ComfyUI graph: the loaders behind the nodes, and the model's own forward."""
    family, folder = options.family[0], options.folder
    pack = import_pack(options.comfyui)
    begun = time.perf_counter()
    with torch.inference_mode():
        if family == "modelscope":
            bundle = importlib.import_module(f"{pack}.nodes.native.bundle")
            patcher, _, _ = bundle.load_video_model(folder, "bf16")
            width = 1024
        else:
            patcher, width = animatediff_model(pack, folder), 768
        loaded = time.perf_counter()
        latents, text = inputs(options.side, width)
        rows = latents[0].transpose(0, 1).contiguous()
        context = text.expand(FRAMES, -1, -1)
        timesteps = torch.full((FRAMES,), float(TIMESTEP))
        eps = patcher.model.diffusion_model(
            rows.bfloat16(), timesteps, context=context.bfloat16(), transformer_options={}
        )
    finish(eps.float().transpose(0, 1)[None], folder / "nodes.pt", begun, loaded)


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


def inputs(side: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same noisy latents (1, 4, 16, h, w) and text (1, 77, D) for both paths."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, FRAMES, side // 8, side // 8, generator=generator)
    return latents, torch.randn(1, TOKENS, width, generator=generator)


def finish(eps: torch.Tensor, file: Path, begun: float, loaded: float) -> None:
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
        lines.append(
            f"| {row['family']} | {FRAMES} x {row['side']} px | {row['path']} | "
            f"{row['load_seconds']:.1f} | {row['forward_seconds']:.1f} | {row['peak_gib']:.1f} | "
            f"{shown} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
