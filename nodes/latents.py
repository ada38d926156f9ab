"""Empty Latent Video: the start of one or several clips."""

from __future__ import annotations

from comfy_api.latest import io

from .native.core import found_by


class EmptyLatentVideo(io.ComfyNode):
    """Latents are frames-as-batch: several videos lie one after another in the batch, and the
    LATENT knows how long one is. The MODEL output is for LATENTs that do not (VAE Encode).
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MCM_EmptyLatentVideo",
            display_name="Empty Latent Video",
            category="MCM/latent",
            **found_by("latent for t2v", "latent for text to video", "frames for animatediff"),
            description=(
                "Empty frames for one or several videos. Connect MODEL and the size is checked "
                "against what it can make; a new node takes over its size and frames."
            ),
            inputs=[
                io.Int.Input(
                    "width", default=256, min=16, max=4096, step=8, tooltip="Pixels, e.g. 256."
                ),
                io.Int.Input(
                    "height", default=256, min=16, max=4096, step=8, tooltip="Pixels, e.g. 256."
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip=(
                        "Frames of one video: 8, 16, 24 or 32 for ModelScope, up to 32 for "
                        "AnimateDiff; more with MCM Context Windows."
                    ),
                ),
                io.Int.Input(
                    "videos",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Videos in one batch, each with its own noise.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "Connect to take over the model's size and frames, and to check them "
                        "before sampling."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="(videos x frames) empty latents, for a sampler."),
                io.Model.Output(
                    tooltip=(
                        "`model` that knows `frames`, also for a LATENT of VAE Encode that holds "
                        "several videos."
                    )
                ),
            ],
        )

    @classmethod
    def execute(
        cls, width: int, height: int, frames: int, videos: int, model: object = None
    ) -> io.NodeOutput:
        from .native.latents import empty_latents, model_for_frames

        latents = empty_latents(width, height, frames, videos, model)
        return io.NodeOutput(latents, model_for_frames(model, frames) if model else None)


NODES = (EmptyLatentVideo,)
