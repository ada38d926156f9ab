"""Files to download by hand: name, size, licence, source, and the folder to put them in.

Repositories are those of Hugging Face. The program itself never downloads anything.

It also recognises a file by its first bytes: downloads are often not what their names say.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Download:
    """A file or folder; ``size`` in GB or MB (10^9, 10^6 bytes), ``folder`` below ComfyUI's."""

    name: str
    size: str
    licence: str
    repository: str
    folder: str

    def text(self) -> str:
        return (
            f"{self.name} ({self.size}, {self.licence}) from {self.repository}, into "
            f"ComfyUI/{self.folder} or any folder"
        )


@dataclass(frozen=True)
class Need:
    """A part that a base model lacks. ``setting`` takes its path; ``text`` says what it is for."""

    part: str
    setting: str
    text: str
    downloads: tuple[Download, ...] = ()


MOTION_MODULES = (
    Download("mm_sd_v15_v2.ckpt", "1.8 GB", "Apache-2.0", "guoyww/animatediff",
             "models/animatediff_models"),
    Download("motion_module/mm_sd15_v2.safetensors", "0.9 GB", "Apache-2.0",
             "conrevo/AnimateDiff-A1111", "models/animatediff_models"),
)  # fmt: skip
VAES = (
    Download("vae-ft-mse-840000-ema-pruned.safetensors", "0.33 GB", "MIT",
             "stabilityai/sd-vae-ft-mse-original", "models/vae"),
)  # fmt: skip
IMAGE_MODELS = (
    Download("v1-5-pruned-emaonly.safetensors", "4.3 GB", "CreativeML Open RAIL-M",
             "stable-diffusion-v1-5/stable-diffusion-v1-5", "models/checkpoints"),
)  # fmt: skip
VIDEO_MODELS = (
    Download("text-to-video-ms-1.7b (the folder)", "3.7 GB in fp16",
             "CC-BY-NC-4.0: no commercial use", "ali-vilab/text-to-video-ms-1.7b",
             "models/diffusers"),
)  # fmt: skip
TEXT_ENCODERS = (
    Download("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "6.7 GB", "Apache-2.0",
             "Comfy-Org/Wan_2.1_ComfyUI_repackaged", "models/text_encoders"),
    Download("umt5_xxl_fp16.safetensors", "11.4 GB", "Apache-2.0",
             "Comfy-Org/Wan_2.1_ComfyUI_repackaged", "models/text_encoders"),
)  # fmt: skip
WAN_VAES = (
    Download("wan_2.1_vae.safetensors", "0.25 GB", "Apache-2.0",
             "Comfy-Org/Wan_2.1_ComfyUI_repackaged", "models/vae"),
)  # fmt: skip
TINY_VAES = (
    Download("taew2_1.safetensors", "22.7 MB", "MIT", "Kijai/WanVideo_comfy",
             "models/vae_approx"),
    Download("lighttaew2_1.safetensors", "45 MB", "Apache-2.0", "lightx2v/Autoencoders",
             "models/vae_approx"),
)  # fmt: skip
WAN_EXPERTS = tuple(
    Download(f"wan2.2_t2v_{which}_noise_14B_fp8_scaled.safetensors", "14.3 GB", "Apache-2.0",
             "Comfy-Org/Wan_2.2_ComfyUI_Repackaged", "models/diffusion_models")
    for which in ("high", "low")
)  # fmt: skip
FEATURE_NETWORKS = (
    Download("config.json and model.safetensors", "88 MB", "Apache-2.0", "facebook/dinov2-small",
             "models/dinov2/dinov2-small"),
    Download("models/image_encoder/model.safetensors (CLIP vision)", "2.5 GB", "Apache-2.0",
             "h94/IP-Adapter", "models/clip_vision"),
)  # fmt: skip


AGAIN = "Download it again."

# Other contents of files named like weights, by their first bytes, and what to do.
FOREIGN = (
    (b"version https://git-lfs", "only a git-lfs pointer, not the weights",
     "Run `git lfs pull` in its folder, or download the file with a browser."),
    (b"<", "a web page, not weights",
     "Download the file itself: most pages have a button for it or a link that ends in its name."),
    *((start, "an error message that was saved in place of the weights",
       "Download it again, logged in where the page asks for it.")
      for start in (b"{", b"Invalid username", b"Access to")),
    (b"GGUF", "a GGUF file", "Use the model's .safetensors file."),
    (b"Rar!", "a RAR archive", "Unpack it first."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it first."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"%PDF", "a PDF document", AGAIN),
    (b"\x89HDF", "a Keras or TensorFlow file (HDF5)", "Use the model's .safetensors file."),
)  # fmt: skip
FIRST_BYTES = 64
MAX_HEADER = 2**32  # bytes of a safetensors header; text at its place is far more
PICKLES = (b"PK\x03\x04", b"\x80")
"""A PyTorch file is a zip since version 1.6, a plain pickle before."""


def begins_as_safetensors(first: bytes) -> bool:
    """A length and the bracket of a header; also where the length looks like a zip or a pickle."""
    return first[8:9] == b"{" and int.from_bytes(first[:8], "little") < MAX_HEADER


def foreign(first: bytes) -> tuple[str, str] | None:
    """What a file that begins with ``first`` is, when it holds no weights at all, and what to do
    then; None for any other.
    """
    text = first.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, what, advice in FOREIGN:
        if first.startswith(magic) or text.startswith(magic):
            return what, advice
    return None
