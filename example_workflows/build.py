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

from trainer.lora.graph import Node, build_graph  # noqa: E402
from trainer.lora.metadata import LoraCard  # noqa: E402
from trainer.lora.needs import (  # noqa: E402
    CHECKPOINTS,
    HUB,
    LORAS,
    needed_files,
    needed_folder,
)
from trainer.lora.workflow import (  # noqa: E402
    after,
    decode,
    empty_clip,
    few_step_sampler,
    lora_nodes,
    note,
    sample_nodes,
    save_nodes,
    sources_of,
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
        sources_of(loader),
        (lora, "MODEL"),
        "a red circle growing",
        size=MINI_SIZE,
        fps=8,
        steps=4,
        seed=3,
    )
    return [told, loader, lora, *sampled]


def teacher_and_student() -> Graph:
    loader = load_mini()
    lora = load_lora((loader, "MODEL"), POSTER)
    positive = encode("a blue circle moving right", loader, "Prompt")
    negative = encode("", loader, "Negative")
    empty = empty_clip((loader, "MODEL"), MINI_SIZE)
    samplers = [teacher_sampler((loader, "MODEL"), positive, negative, empty)]
    for steps in (1, 2, 4, 8):
        latents = (empty, "LATENT")
        samplers.append(
            few_step_sampler((lora, "MODEL"), positive, negative, latents, steps, seed=3)
        )
    for number, sampler in enumerate(samplers):
        sampler.column = 2 + 2 * (number // 2)  # in pairs; their decoders stand between
    decoded = [decode((sampler, "LATENT"), sources_of(loader)) for sampler in samplers]
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
    empty = empty_clip((loader, "MODEL"), MINI_SIZE)
    source = teacher_sampler((loader, "MODEL"), positive, negative, empty, steps=30)
    shown = decode((source, "LATENT"), sources_of(loader))
    again = Node("VAEEncode", {}, {"pixels": (shown, "IMAGE"), "vae": (loader, "VAE")})
    styled = few_step_sampler(
        (lora, "MODEL"), positive, negative, (again, "LATENT"), 4, seed=4, denoise=0.8
    )
    result = decode((styled, "LATENT"), sources_of(loader))
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
        sources_of(loader),
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
        sources_of(loader),
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
        sources_of(loader),
        (lora, "MODEL"),
        "a cherry tree in the wind, petals falling",
        size=(512, 512, 16),
        fps=8,
        steps=4,
        seed=3,
    )
    return [told, loader, motion, lora, *sampled]


WAN_LORA = "my-wan-style.safetensors"
WAN_PROMPT = "a fishing boat rocking on the waves, seagulls flying past"
WAN_FILES = (
    "The files are listed with their folders in the loaders: the transformer in "
    "**models/diffusion_models**, UMT5 in **models/text_encoders**, the VAE in **models/vae**, "
    "your LoRA in **models/loras**. A LoRA of this trainer opens a graph like this one by itself, "
    "with its own file, size and steps: drop it on the canvas."
)


def wan_nodes() -> Graph:
    """Wan 2.1 1.3B with a style LoRA in 4 steps, all of ComfyUI's own nodes."""
    card = LoraCard(
        title="Wan",
        family="wan",
        base_model="Wan 2.1 T2V 1.3B",
        base_file="wan2.1_t2v_1.3B_fp16.safetensors",
        base_hash="",
        base_license="Apache-2.0",
        width=480,
        height=272,
        frames=33,
        fps=16,
    )
    return lora_nodes(card, WAN_LORA, WAN_PROMPT, seed=3)


def of_kind(nodes: Graph, kind: str) -> Node:
    return next(node for node in nodes if node.type == kind)


def wan_style() -> Graph:
    told = note(
        "## Wan in your style, in 4 steps\n\nAll nodes are ComfyUI's own. *ModelSamplingSD3* sets "
        "the shift that the LoRA was trained with, 5; KSampler needs **lcm**, **simple**, CFG 1.\n"
        f"\n{WAN_FILES}"
    )
    return [told, *wan_nodes()]


def wan_teacher_and_student() -> Graph:
    """The same prompt and seed without the LoRA, as Wan is sampled, and with it."""
    nodes = wan_nodes()
    loader, student = of_kind(nodes, "UNETLoader"), of_kind(nodes, "KSampler")
    shifted = after("ModelSamplingSD3", {"shift": 8.0}, (loader, "MODEL"), title="Wan's own shift")
    values = {**student.values, "steps": 30, "cfg": 6.0, "sampler_name": "uni_pc"}
    links = {**student.links, "model": (shifted, "MODEL")}
    teacher = Node("KSampler", values, links, "Teacher, 30 steps")
    sources = sources_of(of_kind(nodes, "VAELoader"))
    before = decode((teacher, "LATENT"), sources)
    columns = {"images_1": (before, "IMAGE"), "images_2": (of_kind(nodes, "VAEDecode"), "IMAGE")}
    labels = {"label_1": "Wan, 30 steps", "label_2": "your style, 4 steps"}
    labels |= {f"label_{n}": "" for n in (3, 4, 5)}
    page = Node("MCM_SideBySide", labels, columns)
    kept = [node for node in nodes if node.type not in ("CreateVideo", "SaveVideo")]
    told = note(
        "## Wan beside your style\n\nLeft: the base model with guidance, as it is usually sampled. "
        f"Right: the same prompt and seed with the LoRA.\n\n{WAN_FILES}"
    )
    saved = save_nodes((page, "IMAGE"), 16, "video/wan-comparison")
    return [told, *kept, shifted, teacher, before, page, *saved]


EXAMPLES = {
    "1 Text to video in 4 steps": text_to_video,
    "2 AnimateDiff, official LoRA": animatediff,
    "3 ModelScope, official LoRA": modelscope,
    "4 Video to video": video_to_video,
    "5 Longer clip": long_clip,
    "6 Teacher beside student": teacher_and_student,
    "7 Wan, style LoRA in 4 steps": wan_style,
    "8 Wan, teacher beside student": wan_teacher_and_student,
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
