"""Few-step sampling: a student's noise levels, and noise drawn in the trainer's order."""

from __future__ import annotations

from comfy_api.latest import io

from .native.core import found_by

ORDERS = ["video", "frames", "core"]
ORDER_TOOLTIP = (
    "Draws the same noise as: video, `python -m trainer sample` and AnimateDiffPipeline (each "
    "video has its own seed); frames, diffusers' TextToVideoSDPipeline; core, KSampler. Choose "
    "the same in {other}."
)


class ModelSampling(io.ComfyNode):
    """For LoRAs loaded with ComfyUI's own loader, which does not read their metadata."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MCM_ModelSampling",
            display_name="MCM Model Sampling",
            category="MCM/sampling",
            **found_by("sampling for few step", "sampling for lcm", "sampling for consistency"),
            description=(
                "Sets the noise levels and the consistency function of few-step LoRAs. Then use "
                "KSampler with sampler 'lcm', scheduler 'simple' and CFG 1. Load MCM LoRA already "
                "does this."
            ),
            inputs=[
                io.Model.Input("model", tooltip="Text-to-video MODEL with a few-step LoRA."),
                io.Float.Input(
                    "timestep_scaling",
                    default=4.0,
                    min=0.01,
                    max=1000.0,
                    step=0.01,
                    tooltip="`mcm.timestep_scaling` in the LoRA's metadata. MCM LoRAs: 4. Plain "
                    "LCM LoRAs: 10.",
                ),
                io.Int.Input(
                    "original_steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="`mcm.original_steps` in the LoRA's metadata: its number of noise "
                    "levels, 50.",
                ),
                io.Float.Input(
                    "shift",
                    default=5.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    optional=True,
                    tooltip="`mcm.shift` in the metadata of a LoRA for Wan: 5. Wan uses this value "
                    "only, other models the two above.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="MODEL for KSampler (lcm, simple, CFG 1).")],
        )

    @classmethod
    def execute(
        cls, model: object, timestep_scaling: float, original_steps: int, shift: float = 5.0
    ) -> io.NodeOutput:
        from .native.sampling import apply_model_sampling

        patched = apply_model_sampling(model, timestep_scaling, original_steps, shift=shift)
        return io.NodeOutput(patched)


class Scheduler(io.ComfyNode):
    """The same levels as KSampler's ``simple`` on this MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MCM_Scheduler",
            display_name="MCM Scheduler",
            category="MCM/sampling",
            **found_by("sigmas for few step", "sigmas for lcm", "sigmas for consistency"),
            description="The noise levels of few-step sampling, for SamplerCustomAdvanced.",
            inputs=[
                io.Model.Input("model", tooltip="MODEL from Load MCM LoRA or MCM Model Sampling."),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps: 1, 2, 4 or 8. More is slower and hardly better.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1, an existing video is changed; lower values change it less.",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustomAdvanced or SamplerCustom.")],
        )

    @classmethod
    def execute(cls, model: object, steps: int, denoise: float) -> io.NodeOutput:
        from .native.sampling import few_step_sigmas

        return io.NodeOutput(few_step_sigmas(model, steps, denoise))


class Sampler(io.ComfyNode):
    """Core's ``lcm`` with a choice of noise order."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MCM_Sampler",
            display_name="MCM Sampler",
            category="MCM/sampling",
            **found_by("sampler for few step", "sampler for lcm", "sampler for consistency"),
            description=(
                "Few-step sampler that draws noise like the trainer or a diffusers pipeline, so "
                "the same seed gives the same clip."
            ),
            inputs=[
                io.Combo.Input(
                    "noise_order",
                    options=ORDERS,
                    default=ORDERS[0],
                    tooltip=ORDER_TOOLTIP.format(other="MCM Noise"),
                )
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, noise_order: str) -> io.NodeOutput:
        from .native.sampling import few_step_sampler

        return io.NodeOutput(few_step_sampler(noise_order))


class Noise(io.ComfyNode):
    """The start noise to use with `Sampler`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MCM_Noise",
            display_name="MCM Noise",
            category="MCM/sampling",
            **found_by("noise for few step", "noise for video", "seed"),
            description="Start noise, drawn like the trainer or a diffusers pipeline.",
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the first video. With the order 'video', the next video uses "
                    "seed + 1.",
                ),
                io.Combo.Input(
                    "noise_order",
                    options=ORDERS,
                    default=ORDERS[0],
                    tooltip=ORDER_TOOLTIP.format(other="MCM Sampler"),
                ),
            ],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, seed: int, noise_order: str) -> io.NodeOutput:
        from .native.sampling import StartNoise

        return io.NodeOutput(StartNoise(seed, noise_order))


NODES = (ModelSampling, Scheduler, Sampler, Noise)
