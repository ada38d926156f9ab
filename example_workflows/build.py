"""Write the example workflows of this folder again: ``python example_workflows/build.py``.

The examples of the mini model run as they are: the model and its example LoRAs come with the
pack. The others name the files they need. The frontend offers single files for download; it cannot
see whether a *folder* is there, so those are named by a file inside, which it does not ask for, and
the note in the graph says where to get them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from trainer.lora.needs import (  # noqa: E402
    CHECKPOINTS,
    HUB,
    LORAS,
    needed_files,
    needed_folder,
)
from trainer.lora.workflow import (  # noqa: E402
    Node,
    build_graph,
    few_step_sampler,
    note,
    sample_nodes,
    save_nodes,
)

MINI_SIZE = (64, 64, 8)
POSTER = "mini-poster.safetensors"
MODELSCOPE = "text-to-video-ms-1.7b"
OFFICIAL = f"{HUB}/yhzhai/mcm/resolve/main"
OFFICIAL_FOLDER = f"{HUB}/yhzhai/mcm/tree/main"
Graph = list[Node]


def load_mini() -> Node:
    return Node("MCM_LoadVideoModel", {"model_name": "mini", "weight_dtype": "default"})


def load_lora(model: tuple[Node, str], name: str, strength: float = 1.0, **options) -> Node:
    return Node(
        "MCM_LoadLora", {"lora_name": name, "strength": strength}, {"model": model}, **options
    )


def encode(text: str, loader: Node, title: str) -> Node:
    return Node("CLIPTextEncode", {"text": text}, {"clip": (loader, "CLIP")}, title)


def empty_video(model: tuple[Node, str], size: tuple[int, int, int], videos: int = 1) -> Node:
    names = ("width", "height", "frames")
    return Node(
        "MCM_EmptyLatentVideo",
        {**dict(zip(names, size, strict=True)), "videos": videos},
        {"model": model},
    )


def decode(sampler: Node, loader: Node) -> Node:
    return Node("VAEDecode", {}, {"samples": (sampler, "LATENT"), "vae": (loader, "VAE")})


def teacher_sampler(
    model: tuple[Node, str], positive: Node, negative: Node, latents: Node, steps: int = 50
) -> Node:
    values = {"seed": 3, "steps": steps, "cfg": 4.0, "sampler_name": "ddim"}
    links = {
        "model": model,
        "positive": (positive, "CONDITIONING"),
        "negative": (negative, "CONDITIONING"),
        "latent_image": (latents, "LATENT"),
    }
    values |= {"scheduler": "ddim_uniform", "denoise": 1.0}
    return Node("KSampler", values, links, f"Teacher, {steps} steps")


def text_to_video() -> Graph:
    loader = load_mini()
    lora = load_lora((loader, "MODEL"), POSTER)
    told = note(
        "## Video in 4 steps\n\nThe model and the LoRA are included: press **Run**.\n\n"
        "*Load MCM LoRA* sets the noise levels. Set KSampler to **lcm**, **simple**, CFG 1."
    )
    sampled = sample_nodes(
        loader, (lora, "MODEL"), "a red circle growing", size=MINI_SIZE, fps=8, steps=4, seed=3
    )
    return [told, loader, lora, *sampled]


def teacher_and_student() -> Graph:
    loader = load_mini()
    lora = load_lora((loader, "MODEL"), POSTER)
    positive = encode("a blue circle moving right", loader, "Prompt")
    negative = encode("", loader, "Negative")
    empty = empty_video((loader, "MODEL"), MINI_SIZE)
    samplers = [teacher_sampler((loader, "MODEL"), positive, negative, empty)]
    for steps in (1, 2, 4, 8):
        latents = (empty, "LATENT")
        samplers.append(
            few_step_sampler((lora, "MODEL"), positive, negative, latents, steps, seed=3)
        )
    for number, sampler in enumerate(samplers):
        sampler.column = 2 + 2 * (number // 2)  # in pairs; their decoders stand between
    decoded = [decode(sampler, loader) for sampler in samplers]
    sampled = [node for pair in zip(samplers, decoded, strict=True) for node in pair]
    labels = ["teacher, 50 steps", "1 step", "2 steps", "4 steps", "8 steps"]
    page = Node(
        "MCM_SideBySide",
        {f"label_{n}": label for n, label in enumerate(labels, start=1)},
        {f"images_{n}": (node, "IMAGE") for n, node in enumerate(decoded, start=1)},
    )
    saved = save_nodes((page, "IMAGE"), 8, "video/mcm-comparison")
    return [loader, lora, positive, negative, empty, *sampled, page, *saved]


def video_to_video() -> Graph:
    loader = load_mini()
    lora = load_lora((loader, "MODEL"), POSTER)
    positive = encode("a purple cross moving up", loader, "Prompt")
    negative = encode("", loader, "Negative")
    empty = empty_video((loader, "MODEL"), MINI_SIZE)
    source = teacher_sampler((loader, "MODEL"), positive, negative, empty, steps=30)
    shown = decode(source, loader)
    again = Node("VAEEncode", {}, {"pixels": (shown, "IMAGE"), "vae": (loader, "VAE")})
    styled = few_step_sampler(
        (lora, "MODEL"), positive, negative, (again, "LATENT"), 4, seed=4, denoise=0.8
    )
    result = decode(styled, loader)
    page = Node(
        "MCM_SideBySide",
        {"label_1": "source", "label_2": "in the style", "label_3": "", "label_4": "",
         "label_5": ""},
        {"images_1": (shown, "IMAGE"), "images_2": (result, "IMAGE")},
    )  # fmt: skip
    told = note(
        "## Video to video\n\nThis makes a clip in the base model's look, then samples it again "
        "with the style LoRA at **denoise** 0.8. To use your own clip, replace the first sampler "
        "with *Load Video* and *Get Video Components*: 8 frames of 64x64 for this model."
    )
    saved = save_nodes((page, "IMAGE"), 8, "video/mcm-video-to-video")
    parts = [loader, lora, positive, negative, empty, source, shown, again, styled, result]
    return [told, *parts, page, *saved]


def long_clip() -> Graph:
    loader = load_mini()
    lora = load_lora((loader, "MODEL"), POSTER)
    values = {
        "context_length": 8,
        "context_overlap": 4,
        "context_schedule": "standard_uniform",
        "closed_loop": False,
        "fuse_method": "pyramid",
    }
    windows = Node("MCM_ContextWindows", values, {"model": (lora, "MODEL")})
    told = note(
        "## A clip longer than the model's own\n\nThe mini model makes 8 frames. Here it makes "
        "24, in overlapping windows of 8."
    )
    sampled = sample_nodes(
        loader,
        (windows, "MODEL"),
        "a blue circle circling",
        size=(64, 64, 24),
        fps=8,
        steps=8,
        seed=3,
    )
    return [told, loader, lora, windows, *sampled]


def _official(name: str) -> dict[str, str]:
    file = "adapter_model.safetensors"
    return {"name": f"{name}/{file}", "url": f"{OFFICIAL}/{name}/{file}", "directory": LORAS}


def modelscope() -> Graph:
    source = needed_folder(MODELSCOPE)
    loader = Node(
        "MCM_LoadVideoModel",
        {"model_name": MODELSCOPE, "weight_dtype": "fp16"},
        models=source,
    )
    name = "modelscopet2v-laion"
    lora = load_lora((loader, "MODEL"), name, models=[_official(name)])
    told = note(
        "## ModelScopeT2V in 4 steps\n\n1. Put the diffusers folder "
        f"[{MODELSCOPE}]({source[0]['url']}) into **models/diffusers**.\n2. Put the folder "
        f"[{name}]({OFFICIAL_FOLDER}/{name}) of the official MCM LoRAs (adapter_config.json and "
        "adapter_model.safetensors) into **models/loras**.\n\n"
        "**Licence of the base model: CC-BY-NC-4.0, no commercial use.**"
    )
    sampled = sample_nodes(
        loader,
        (lora, "MODEL"),
        "a corgi running on the beach",
        size=(256, 256, 16),
        fps=8,
        steps=4,
        seed=3,
    )
    return [told, loader, lora, *sampled]


def animatediff() -> Graph:
    checkpoint, module = "v1-5-pruned-emaonly.safetensors", "mm_sd15_v2.safetensors"
    loader = Node(
        "CheckpointLoaderSimple",
        {"ckpt_name": checkpoint},
        models=needed_files(checkpoint, CHECKPOINTS),
    )
    motion = Node(
        "MCM_AnimateDiff",
        {"motion_module": module},
        {"model": (loader, "MODEL")},
        models=needed_files(module, "animatediff_models"),
    )
    name = "animatediff-laion"
    lora = load_lora((motion, "MODEL"), name, models=[_official(name)])
    told = note(
        "## AnimateDiff in 4 steps\n\nAny Stable Diffusion 1.5 checkpoint, a motion module in "
        f"**models/animatediff_models**, and the folder [{name}]({OFFICIAL_FOLDER}/{name}) of the "
        "official MCM LoRAs (adapter_config.json and adapter_model.safetensors) in "
        "**models/loras**.\n\nSD 1.5 style LoRAs go between the checkpoint and the motion module."
    )
    sampled = sample_nodes(
        loader,
        (lora, "MODEL"),
        "a cherry tree in the wind, petals falling",
        size=(512, 512, 16),
        fps=8,
        steps=4,
        seed=3,
    )
    return [told, loader, motion, lora, *sampled]


EXAMPLES = {
    "1 Text to video in 4 steps": text_to_video,
    "2 AnimateDiff, official LoRA": animatediff,
    "3 ModelScope, official LoRA": modelscope,
    "4 Video to video": video_to_video,
    "5 Longer clip": long_clip,
    "6 Teacher beside student": teacher_and_student,
}
"""In the order of use, by the names that the template browser shows (`NAME.json`)."""


def example(name: str) -> str:
    """The JSON text of one example."""
    graph = build_graph(EXAMPLES[name](), name)
    return json.dumps(graph, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in EXAMPLES:
        (HERE / f"{name}.json").write_text(example(name), encoding="utf-8")
        print(f"{name}.json")
