"""Write the subgraph blueprints of this folder again: ``python subgraphs/build.py``.

They stand in the frontend's node library and in its search, each as one node: prompt in, video
out. The nodes inside are those of the templates.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from trainer.lora.blueprint import Shown, build_blueprint  # noqa: E402
from trainer.lora.graph import Node  # noqa: E402

LEFT_OUT = ("MarkdownNote", "SaveVideo")


def _templates() -> ModuleType:
    place = HERE.parent / "example_workflows" / "build.py"
    spec = importlib.util.spec_from_file_location("example_workflows_build", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _of(nodes: list[Node], kind: str) -> Node:
    """The first node of a kind; of two CLIPTextEncode that is the prompt."""
    return next(node for node in nodes if node.type == kind)


def _blueprint(name: str, description: str, template: list[Node], loaders: list[tuple]) -> dict:
    """``loaders`` are (label, node type, widget) of the models, shown below the prompt."""
    nodes = [node for node in template if node.type not in LEFT_OUT]
    choices = [Shown(label, "COMBO", _of(nodes, kind), widget) for label, kind, widget in loaders]
    lora, empty = _of(nodes, "MCM_LoadLora"), _of(nodes, "MCM_EmptyLatentVideo")
    sampler, video = _of(nodes, "KSampler"), _of(nodes, "CreateVideo")
    shown = [
        Shown("prompt", "STRING", _of(nodes, "CLIPTextEncode"), "text"),
        *choices,
        Shown("lora", "COMBO", lora, "lora_name"),
        Shown("strength", "FLOAT", lora, "strength"),
        *(Shown(each, "INT", empty, each) for each in ("width", "height", "frames")),
        Shown("steps", "INT", sampler, "steps"),
        Shown("seed", "INT", sampler, "seed"),
        Shown("fps", "FLOAT", video, "fps"),
    ]
    outputs = [(video, "VIDEO"), (_of(nodes, "VAEDecode"), "IMAGE")]
    return build_blueprint(name, description, nodes, shown, outputs)


def blueprints() -> dict[str, dict]:
    """File name without `.json` -> content."""
    templates = _templates()
    made = {
        "MCM text to video": (
            "A video in 1 to 8 steps with a few-step LoRA. Works with the mini model without a "
            "download; for more, put a diffusers folder of ModelScopeT2V or ZeroScope into "
            "models/diffusers.",
            templates.text_to_video(),
            [("model", "MCM_LoadVideoModel", "model_name")],
        ),
        "MCM AnimateDiff": (
            "A video in 1 to 8 steps from a Stable Diffusion 1.5 checkpoint, an AnimateDiff motion "
            "module and a few-step LoRA.",
            templates.animatediff(),
            [
                ("checkpoint", "CheckpointLoaderSimple", "ckpt_name"),
                ("motion module", "MCM_AnimateDiff", "motion_module"),
            ],
        ),
    }
    return {name: _blueprint(name, *parts) for name, parts in made.items()}


def as_text(blueprint: dict) -> str:
    return json.dumps(blueprint, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, blueprint in blueprints().items():
        (HERE / f"{name}.json").write_text(as_text(blueprint), encoding="utf-8")
        print(f"{name}.json")
