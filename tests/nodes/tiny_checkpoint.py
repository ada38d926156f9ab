"""A custom node for the test server: a Stable Diffusion 1.5 of few channels with random weights.

It stands in for Load Checkpoint, whose detection knows the full widths only. The text is 768 wide
as in the full model; the autoencoder is a TAESD.
"""

import torch

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "adm_in_channels": None,
    "legacy": False,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 768,
    "num_hidden_layers": 1,
    "num_attention_heads": 12,
    "intermediate_size": 64,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "eos_token_id": 49407,
}


class TinyCheckpoint:
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def load(self):
        import comfy.model_management as management
        import comfy.model_patcher
        import comfy.sd
        import comfy.supported_models
        from comfy.taesd.taesd import TAESD

        with torch.inference_mode(False):
            torch.manual_seed(0)
            config = comfy.supported_models.SD15(dict(UNET))
            config.set_inference_dtype(torch.float32, None)
            model = randomise(config.get_model({}, ""))
            patcher = comfy.model_patcher.ModelPatcher(
                model, management.get_torch_device(), management.unet_offload_device()
            )
            vae = comfy.sd.VAE(sd=randomise(TAESD()).state_dict())
            return patcher, clip(), vae


def randomise(module):
    """Weights whose layers keep the scale of what goes through them."""
    for parameter in module.parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(0.5)
    return module


def clip():
    import comfy.sd
    from comfy import sd1_clip
    from comfy.supported_models_base import ClipTarget

    class TinyText(sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=TEXT,
                model_options=model_options or {},
            )

    class TinyClip(sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(device, dtype, model_options or {}, clip_model=TinyText)

    found = comfy.sd.CLIP(ClipTarget(sd1_clip.SD1Tokenizer, TinyClip))
    randomise(found.cond_stage_model)
    return found


NODE_CLASS_MAPPINGS = {"TinyCheckpoint": TinyCheckpoint}
