"""The way to a real model on the page: what is missing, pointing at it, the test, a training."""

from __future__ import annotations

import shutil

import torch
from browsing import load_settings, opened, start, tab, wait_status
from safetensors.torch import save_file
from sd15_files import build_parts
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from trainer.models.motion_module import convert_keys, original_state

SETTINGS = """
model = '{model}'
images = '{images}'
steps = 2
[data]
height = 64
width = 64
frames = 4
library_clips = 2
batch_size = 1
frames_per_clip = 1
[trajectory]
ddim_timesteps = 8
[adversarial]
features = 'dinov2'
[lora]
rank = 2
[preview]
every = 0
[checkpoint]
every = 2
"""


def write_models(trainer):
    """A checkpoint without VAE where ComfyUI keeps it, the rest among other downloads."""
    parts, models = build_parts(), trainer.comfyui / "models"
    downloads = trainer.pictures / "downloads"
    for folder in (models / "checkpoints", models / "clip_vision", downloads):
        folder.mkdir(parents=True)
    weights = {key: value.contiguous() for key, value in parts.checkpoint().items()}
    vae = {k: v for k, v in weights.items() if k.startswith("first_stage_model.")}
    rest = {k: v for k, v in weights.items() if k not in vae}
    save_file(rest, models / "checkpoints" / "sd15.safetensors")
    save_file({k.removeprefix("first_stage_model."): v for k, v in vae.items()},
              downloads / "vae.safetensors")  # fmt: skip
    module = original_state(convert_keys(dict(parts.adapter.state_dict()), "mm"))
    torch.save(module, downloads / "mm.ckpt")
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 1,
             "image_size": 28, "patch_size": 7}  # fmt: skip
    vision = CLIPVisionModel(CLIPVisionConfig(intermediate_size=64, **sizes)).state_dict()
    named = {f"vision_model.{k.removeprefix('vision_model.')}": v.contiguous()
             for k, v in vision.items()}  # fmt: skip
    save_file(named, models / "clip_vision" / "clip_vision.safetensors")
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(downloads / "dinov2")
    return models, downloads


def point_at(page, setting: str, path) -> None:
    box = page.locator(f"#find-{setting} input")
    box.fill(str(path))
    box.press("Enter")
    page.locator(f"#find-{setting}").wait_for(state="hidden")


def test_a_real_model_from_missing_parts_to_a_lora(trainer, chromium, tmp_path):
    models, downloads = write_models(trainer)
    settings = tmp_path / "real.toml"
    model = models / "checkpoints" / "sd15.safetensors"
    text = SETTINGS.format(model=model, images=trainer.pictures / "poster")
    settings.write_text(text, encoding="utf-8")
    with opened(chromium, trainer.url) as page:
        load_settings(page, settings)
        readiness = page.locator("#readiness")
        readiness.locator(".notice.bad", has_text="3 things are missing").wait_for()
        assert page.locator("#start").is_disabled() and not page.locator("#anyway").is_visible()
        said = readiness.inner_text()
        for word in ("mm_sd_v15_v2.ckpt", "1.8 GB", "Apache-2.0", "guoyww/animatediff",
                     "models/animatediff_models", "vae-ft-mse", "models/vae",
                     "facebook/dinov2-small", "clip_vision.safetensors"):  # fmt: skip
            assert word in said, word
        point_at(page, "motion-module", downloads / "mm.ckpt")
        point_at(page, "vae", downloads / "vae.safetensors")
        page.locator("#find-adversarial-features input").click()
        page.get_by_role("option", name="clip_vision.safetensors").click()
        page.locator("#readiness .notice[data-ready=true]").wait_for()

        page.locator("#preflight").click()
        page.locator("#tested .notice.live").wait_for()
        page.locator("#stop-preflight").click()
        page.locator("#tested .notice", has_text="You stopped it").wait_for()

        start(page, "real")
        assert wait_status(page, "finished", "failed") == "finished"
        assert (trainer.runs / "real" / "real.safetensors").is_file()

        # another size: what it cannot have is said, and the old result goes
        tab(page, "Train")
        page.get_by_role("button", name="Clips and images").click()
        height = page.locator("#field-data-height input")
        height.fill("72")
        height.press("Tab")
        page.locator("#readiness .notice.bad", has_text="use 64 or 80").wait_for()
        assert page.locator("#start").is_disabled()
        page.locator("#tested", has_text="other settings").wait_for()
        height.fill("64")
        height.press("Tab")
        page.wait_for_function("() => !document.querySelector('#start').disabled")
    shutil.rmtree(trainer.pictures / "downloads")
