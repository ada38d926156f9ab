"""Few-step LoRAs: load one with its sampling settings, and read what it recommends."""

from __future__ import annotations

from comfy_api.latest import io

from .native.core import FEW_STEP, found_by
from .native.lora import fingerprint, list_loras


def _name_input() -> io.Combo.Input:
    return io.Combo.Input(
        "lora_name",
        options=list_loras(),
        tooltip=(
            "A .safetensors file (from this trainer, or in diffusers or kohya format) or a PEFT "
            "folder in models/loras. Press R after adding one."
        ),
    )


class LoadLora(io.ComfyNode):
    """Applies the whole LoRA or nothing. ComfyUI's own loader skips layers that do not fit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MCM_LoadLora",
            display_name="Load MCM LoRA",
            category="MCM/loaders",
            **found_by(*FEW_STEP, "style", "motion consistency", "mcm"),
            description=(
                "Applies a few-step LoRA with the noise levels it was trained for. Then use "
                "KSampler with sampler 'lcm', scheduler 'simple', CFG 1 and 1 to 8 steps."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "MODEL from Load Video Model, AnimateDiff Motion Module, or a Wan from "
                        "Load Diffusion Model."
                    ),
                ),
                _name_input(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip=(
                        "The LoRA was trained for 1. 0 switches it and its few-step sampling off, "
                        "to compare with the base model."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="MODEL for KSampler: lcm, simple, CFG 1.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_other: object) -> str:
        return fingerprint(lora_name)

    @classmethod
    def execute(cls, model: object, lora_name: str, strength: float) -> io.NodeOutput:
        from .native.lora import load_lora

        return io.NodeOutput(load_lora(model, lora_name, strength))


class LoraInfo(io.ComfyNode):
    """The recommended settings as values that can be connected to other nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MCM_LoraInfo",
            display_name="MCM LoRA Info",
            category="MCM/utils",
            **found_by("settings for few step", "settings for style", "trigger word"),
            description=(
                "Outputs the settings that a few-step LoRA recommends, for KSampler and Empty "
                "Latent Video. Other LoRAs recommend no steps, CFG or size; a node connected to "
                "these outputs then stops with a message."
            ),
            inputs=[_name_input()],
            outputs=[
                io.Int.Output("steps", display_name="steps", tooltip="Recommended sampling steps."),
                io.Float.Output(
                    "cfg", display_name="cfg", tooltip="Recommended guidance scale; 1 means none."
                ),
                io.String.Output(
                    "trigger",
                    display_name="trigger",
                    tooltip="Words to put into the prompt; may be empty.",
                ),
                io.Int.Output("width", display_name="width", tooltip="Pixels it was trained on."),
                io.Int.Output("height", display_name="height", tooltip="Pixels it was trained on."),
                io.Int.Output("frames", display_name="frames", tooltip="Frames it was trained on."),
                io.Float.Output(
                    "strength", display_name="strength", tooltip="Recommended strength."
                ),
                io.String.Output(
                    "summary",
                    display_name="summary",
                    tooltip="All of this as text, for Preview Any.",
                ),
                io.Int.Output("fps", display_name="fps", tooltip="Frames per second of its clips."),
                io.Float.Output(
                    "shift",
                    display_name="shift",
                    tooltip="For ModelSamplingSD3, if ComfyUI's own node loads a LoRA for Wan.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str) -> str:
        return fingerprint(lora_name)

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        from .native.lora_info import lora_info, no_value

        found, summary = lora_info(lora_name)
        size = (found.width, found.height, found.frames)
        values = (found.steps, found.guidance_scale, found.trigger, *size, found.strength, summary)
        values += (found.fps, found.sampling.get("shift"))
        return io.NodeOutput(
            *(no_value(lora_name, found) if value is None else value for value in values)
        )


NODES = (LoadLora, LoraInfo)
