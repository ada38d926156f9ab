"""Empty Latent Video: empty latents for one or several clips."""

from __future__ import annotations

from comfy_api.latest import io

from .native.core import found_by


class EmptyLatentVideo(io.ComfyNode):
    """Several videos follow each other in one batch of frames; the LATENT stores how long one is.
    The MODEL output is for LATENTs that do not store it (VAE Encode).
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MCM_EmptyLatentVideo",
            display_name="Empty Latent Video",
            category="MCM/latent",
            **found_by("latent for t2v", "latent for text to video", "frames for animatediff"),
            description=(
                "Starts one or several videos. With `model` connected, the size is checked before "
                "sampling, and a new node takes over the model's size and frames."
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
                        "Frames per video: 8, 16, 24 or 32 for ModelScope, up to 32 for "
                        "AnimateDiff; for more, add MCM Context Windows. For Wan 5, 9, 13, ... or "
                        "121."
                    ),
                ),
                io.Int.Input(
                    "videos",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Number of videos in the batch, each with its own noise.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "Optional. Sets the model's own size and frames and checks them before "
                        "sampling."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="Empty latents (videos x frames) for a sampler."),
                io.Model.Output(
                    tooltip=(
                        "The `model` with `frames` set. Needed when a LATENT from VAE Encode "
                        "holds several videos."
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
