"""MCM Context Windows: clips longer than the model was made for."""

from __future__ import annotations

from comfy_api.latest import io

from .native.context import FUSE_METHODS, SCHEDULES
from .native.core import found_by


class ContextWindows(io.ComfyNode):
    """ComfyUI's own Context Windows nodes do not support latents that are a batch of frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MCM_ContextWindows",
            display_name="MCM Context Windows",
            category="MCM/sampling",
            **found_by("long video", "longer video", "context for animatediff", "loop"),
            description=(
                "Samples long clips in overlapping windows and blends them in every step. Put it "
                "before Empty Latent Video, connected to that node's `model`."
            ),
            inputs=[
                io.Model.Input("model", tooltip="Text-to-video MODEL, with or without a LoRA."),
                io.Int.Input(
                    "context_length",
                    default=16,
                    min=1,
                    max=32,
                    tooltip="Frames per window. Use the model's own length (mini: 8, others: 16).",
                ),
                io.Int.Input(
                    "context_overlap",
                    default=4,
                    min=0,
                    max=31,
                    tooltip="Frames that neighbouring windows share. More is smoother but slower.",
                ),
                io.Combo.Input(
                    "context_schedule",
                    options=list(SCHEDULES),
                    default="standard_uniform",
                    tooltip=(
                        "standard_uniform moves the windows in every step, standard_static keeps "
                        "them in place, looped_uniform lets them wrap from the end to the "
                        "beginning."
                    ),
                ),
                io.Boolean.Input(
                    "closed_loop",
                    default=False,
                    tooltip="Makes a clip that loops seamlessly. Only with looped_uniform.",
                ),
                io.Combo.Input(
                    "fuse_method",
                    options=list(FUSE_METHODS),
                    default=FUSE_METHODS[0],
                    tooltip="How windows are weighted where they overlap. pyramid favours the "
                    "middle of each window.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="MODEL for clips of any length.")],
        )

    @classmethod
    def execute(cls, model: object, **options: object) -> io.NodeOutput:
        from .native.context import add_context_windows

        return io.NodeOutput(add_context_windows(model, **options))


NODES = (ContextWindows,)
