"""AnimateDiff Motion Module: a Stable Diffusion 1.5 checkpoint becomes a text-to-video MODEL."""

from __future__ import annotations

from comfy_api.latest import io

from .native.core import VIDEO, found_by
from .native.motion_files import list_motion_modules, resolve_motion_module


class AnimateDiff(io.ComfyNode):
    """MODEL of SD 1.5 + motion module -> MODEL of clips; see `native/animatediff.py`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MCM_AnimateDiff",
            display_name="AnimateDiff Motion Module",
            category="MCM/loaders",
            **found_by(*VIDEO, "animatediff", "animate diff", "motion", "mcm"),
            description=(
                "Adds a motion module to a Stable Diffusion 1.5 checkpoint, which then makes "
                "video. LoRAs loaded before this node keep working. A clip is a batch of up to 32 "
                "frames."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "Stable Diffusion 1.5 MODEL from Load Checkpoint, with or without LoRAs "
                        "and patches such as FreeU or PAG."
                    ),
                ),
                io.Combo.Input(
                    "motion_module",
                    options=list_motion_modules(),
                    tooltip=(
                        "A file in models/animatediff_models or models/motion_modules "
                        "(mm_sd_v15_v2, v3_sd15_mm, ...), or a diffusers MotionAdapter folder "
                        "there or in models/diffusers. Press R after adding one."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="Text-to-video MODEL for KSampler and LoRA loaders.")],
        )

    @classmethod
    def execute(cls, model: object, motion_module: str) -> io.NodeOutput:
        from ..trainer.models.motion_module import read_motion_module
        from .native.animatediff import apply_motion_module

        module = read_motion_module(resolve_motion_module(motion_module))
        return io.NodeOutput(apply_motion_module(model, module))


NODES = (AnimateDiff,)
