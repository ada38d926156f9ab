"""Load Video Model: a diffusers text-to-video folder becomes native MODEL, CLIP and VAE."""

from __future__ import annotations

from comfy_api.latest import io

from .native.catalog import list_models, resolve_model_name
from .native.core import VIDEO, found_by

WEIGHT_DTYPES = ["default", "fp32", "fp16", "bf16", "fp8_e4m3fn"]


class LoadVideoModel(io.ComfyNode):
    """``mini`` is part of this pack; others lie in models/diffusers or extra_model_paths."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MCM_LoadVideoModel",
            display_name="Load Video Model",
            category="MCM/loaders",
            **found_by(*VIDEO, "video model", "modelscope", "zeroscope", "diffusers", "mcm"),
            description=(
                "Loads a diffusers text-to-video model (ModelScopeT2V, ZeroScope, or the included "
                "'mini') for ComfyUI's own nodes: CLIP Text Encode, KSampler, VAE Decode. A clip "
                "is a batch of frames."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=list_models(),
                    tooltip=(
                        "'mini' needs no download (Apache-2.0, 64 px). Others are diffusers "
                        "folders in models/diffusers; press R after adding one. ModelScopeT2V and "
                        "ZeroScope are CC-BY-NC-4.0: no commercial use."
                    ),
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=WEIGHT_DTYPES,
                    default=WEIGHT_DTYPES[0],
                    tooltip=(
                        "Precision of the UNet's weights. 'default' lets ComfyUI choose; fp8 "
                        "halves the memory of fp16 but loses some quality; fp32 keeps the text "
                        "encoder in fp32 too."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The video UNet, for KSampler and LoRA loaders."),
                io.Clip.Output(tooltip="The text encoder, for CLIP Text Encode."),
                io.Vae.Output(tooltip="The autoencoder, for VAE Decode and VAE Encode."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        """ComfyUI does not check V3 combos itself. None means that another node supplies it."""
        try:
            return model_name is None or bool(resolve_model_name(model_name))
        except ValueError as error:
            return str(error)

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        from .native.bundle import load_video_model

        return io.NodeOutput(*load_video_model(resolve_model_name(model_name), weight_dtype))


NODES = (LoadVideoModel,)
