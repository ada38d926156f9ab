"""A custom node for the test server: Wan's text encoder of few layers, by core's own classes.

It stands in for CLIPLoader, which takes a file for UMT5 by the full width of its layers only.
"""

import torch

SIZE = {"vocab_size": 64, "d_model": 4096, "d_kv": 8, "d_ff": 8, "num_heads": 1, "num_layers": 2}


def wan_clip(path):
    """CLIP of the file at ``path``, with the tokenizer inside."""
    import comfy.sd
    import comfy.text_encoders.wan as wan
    import comfy.utils
    from comfy.supported_models_base import ClipTarget

    with torch.inference_mode(False):
        state = comfy.utils.load_torch_file(str(path), safe_load=True)
        clip = comfy.sd.CLIP(
            ClipTarget(wan.WanT5Tokenizer, wan.te(dtype_t5=torch.float32)),
            tokenizer_data={"spiece_model": state.pop("spiece_model")},
            model_options={"umt5xxl_model_config": SIZE},
        )
        missing, unexpected = clip.load_sd(state)
        assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight", "logit_scale"}
        return clip


class TinyWanText:
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"clip_name": ("STRING", {})}}

    def load(self, clip_name):
        import folder_paths

        return (wan_clip(folder_paths.get_full_path_or_raise("text_encoders", clip_name)),)


NODE_CLASS_MAPPINGS = {"TinyWanText": TinyWanText}
