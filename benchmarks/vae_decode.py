"""How long does ComfyUI take to decode a clip of the mini model, with and without what the pack
does to its autoencoder on the CPU?

    python benchmarks/vae_decode.py --comfyui PATH_TO_COMFYUI

Both are ComfyUI's own `VAE.decode` in one process, in turn; times are processor time, which other
programs on the machine change less than the clock.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from comfyui_overhead import ROOT, import_comfyui

FRAMES, SIDE = 8, 8
SAME = 1e-5
"""Pixels in [0, 1] may differ by this much: rounding."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of ComfyUI's main.py")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "vae_decode.json"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        found = compare(options.comfyui.resolve(), Path(base), options.repeats, options.threads)
    text = json.dumps(found, indent=1)
    options.json.write_text(text + "\n", encoding="utf-8")
    print(text)


def compare(comfyui: Path, base: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Medians in milliseconds, and the median ratio of neighbouring runs."""
    import_comfyui(comfyui, base)
    import torch

    torch.set_num_threads(threads)
    ours, plain = load(quick=True), load(quick=False)
    latents = torch.randn(FRAMES, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        away = (ours.decode(latents) - plain.decode(latents)).abs().max().item()
        assert away <= SAME, f"The pixels differ by {away:.1e}."
        pairs = [
            tuple(processor_ms(lambda vae=vae: vae.decode(latents)) for vae in (plain, ours))
            for _ in range(repeats)
        ]
    return {
        "plain_ms": round(median(before for before, _ in pairs), 1),
        "ours_ms": round(median(after for _, after in pairs), 1),
        "ratio": round(median(after / before for before, after in pairs), 3),
        "largest_difference": away,
        "clip": f"{FRAMES} frames of 64 x 64 pixels, float32",
        "repeats": repeats,
        "machine": f"{platform.system()} {platform.machine()}, {threads} threads, "
        f"torch {torch.__version__}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def load(quick: bool) -> Any:
    """The mini model's VAE as the pack makes it, or without its `quicken`."""
    import torch

    sys.path.append(str(ROOT.parent))
    package = ROOT.name
    vae = importlib.import_module(f"{package}.nodes.native.vae")
    kept: Callable[..., None] = vae.quicken
    try:
        if not quick:
            vae.quicken = lambda network: None
        made = vae.load_native_vae(ROOT / "trainer" / "assets" / "mini" / "vae")
    finally:
        vae.quicken = kept
    assert made.vae_dtype == torch.float32, made.vae_dtype
    return made


def processor_ms(run: Callable[[], Any]) -> float:
    begun = time.process_time()
    run()
    return 1e3 * (time.process_time() - begun)


if __name__ == "__main__":
    main()
