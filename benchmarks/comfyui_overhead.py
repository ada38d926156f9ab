"""What does the graph cost? A warm ComfyUI run of the mini model in 4 steps against the bare sum of
its UNet and VAE forwards, in one process.

    python benchmarks/comfyui_overhead.py --comfyui PATH_TO_COMFYUI --json OUT

The graph is the mini example (prompt, KSampler lcm/simple/CFG 1, VAE Decode, Create Video, Save
Video), run by ComfyUI's own executor; every run has a new seed, so sampling, decoding and saving
are done again while models and prompts stay cached. Both sides are timed in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STEPS = 4
PROMPT = "a red star growing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of ComfyUI's main.py")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        found = measure(options.comfyui.resolve(), Path(base), options.repeats)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(comfyui: Path, base: Path, repeats: int) -> dict[str, Any]:
    """Medians in milliseconds and the ratio of each pair of runs, after two warm-up runs."""
    import_comfyui(comfyui, base)
    import torch

    executor, server = start_executor()
    bare = bare_forwards()
    whole, sums, nodes = [], [], []
    for seed in range(repeats + 2):
        begun = time.perf_counter()
        server.begin()
        executor.execute(graph(seed), str(seed), {"client_id": "benchmark"}, ["8"])
        seconds = time.perf_counter() - begun
        assert executor.success, executor.status_messages
        begun = time.perf_counter()
        bare()
        if seed >= 2:
            whole.append(seconds)
            sums.append(time.perf_counter() - begun)
            nodes.append(server.seconds_by_node(graph(seed)))
    parts = {name: round(1e3 * median(n.get(name, 0.0) for n in nodes), 2) for name in nodes[0]}
    return {
        "overhead_ratio": round(median(w / s for w, s in zip(whole, sums, strict=True)), 3),
        "graph_ms": round(1e3 * median(whole), 2),
        "forwards_ms": round(1e3 * median(sums), 2),
        "nodes_ms": parts,
        "executor_ms": round(1e3 * median(whole) - sum(parts.values()), 2),
        "steps": STEPS,
        "repeats": repeats,
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def import_comfyui(comfyui: Path, base: Path) -> None:
    """Make ComfyUI importable, on the CPU, with ``base`` for its files."""
    sys.path.insert(0, str(comfyui))
    kept, sys.argv = sys.argv, ["comfyui", "--cpu", "--base-directory", str(base)]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401
        import utils.extra_config  # noqa: F401  (first, as in main.py: others have a `utils` too)
    finally:
        sys.argv = kept


class Clock:
    """Stands in for the connection to a browser: notes when which node begins."""

    client_id: str | None = "benchmark"
    last_node_id: str | None = None
    last_prompt_id: str | None = None

    def begin(self) -> None:
        self.marks: list[tuple[str | None, float]] = []

    def send_sync(self, event: str, data: Any, client: str | None = None) -> None:
        if event in ("executing", "execution_success"):
            node = data.get("node") if event == "executing" else None
            self.marks.append((node, time.perf_counter()))

    def seconds_by_node(self, prompt: dict[str, Any]) -> dict[str, float]:
        found: dict[str, float] = {}
        for (node, start), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            if node is not None:
                name = prompt[node]["class_type"]
                found[name] = found.get(name, 0.0) + end - start
        return found


def start_executor() -> tuple[Any, Clock]:
    """ComfyUI's executor with core's nodes and this pack."""
    import execution
    import server

    import nodes

    loop = asyncio.new_event_loop()
    server.PromptServer(loop)  # nodes register their routes with it; it never listens

    async def load() -> None:
        await nodes.init_builtin_extra_nodes()
        assert await nodes.load_custom_node(str(ROOT)), "this pack did not load"

    loop.run_until_complete(load())
    clock = Clock()
    kept = execution.CacheType.CLASSIC
    return execution.PromptExecutor(clock, kept, {"lru": 0, "ram": 0.0}), clock


def graph(seed: int) -> dict[str, Any]:
    """The API-format graph."""
    sampler = {"sampler_name": "lcm", "scheduler": "simple", "cfg": 1.0, "denoise": 1.0}
    size = {"width": 64, "height": 64, "frames": 8, "videos": 1}
    links = {
        "model": ["2", 0],
        "positive": ["3", 0],
        "negative": ["3", 0],
        "latent_image": ["4", 0],
    }
    saved = {"filename_prefix": "mcm", "format": "auto", "codec": "auto"}
    table = {
        "1": ("MCM_LoadVideoModel", {"model_name": "mini", "weight_dtype": "fp32"}),
        "2": (
            "MCM_ModelSampling",
            {"model": ["1", 0], "timestep_scaling": 4.0, "original_steps": 50},
        ),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": PROMPT}),
        "4": ("MCM_EmptyLatentVideo", size),
        "5": ("KSampler", {**links, **sampler, "seed": seed, "steps": STEPS}),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}),
        "7": ("CreateVideo", {"images": ["6", 0], "fps": 8.0}),
        "8": ("SaveVideo", {"video": ["7", 0], **saved}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in table.items()}


def bare_forwards() -> Any:
    """A function that runs the same networks as often as the graph, and nothing else."""
    import torch

    sys.path.append(str(ROOT))
    from trainer.families import load_model

    model = load_model("mini")
    text = model.encode_text([PROMPT])
    timestep = torch.tensor([499])

    @torch.inference_mode()
    def run() -> None:
        latents = torch.randn(1, *model.latent_shape(model.frames, model.height, model.width))
        for _ in range(STEPS):
            model.predict(latents, timestep, text)
        model.decode_clips(latents)

    return run


if __name__ == "__main__":
    main()
