"""Networks of tiny size in the files of real ones: DINOv2, CLIP, VideoMAE, a captioner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def write_blip(folder: Path) -> None:
    """A BLIP of a few thousand parameters, saved into ``folder`` as a real one is."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "blue", "star"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor = BlipProcessor(BlipImageProcessor(size=size), tokenizer)
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2}  # fmt: skip
    text = {**layers, "vocab_size": len(words), "encoder_hidden_size": 16, "projection_dim": 8,
            "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}  # fmt: skip
    vision = {**layers, "image_size": 32, "patch_size": 16, "projection_dim": 8}
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
    config.image_text_hidden_size = 8
    BlipForConditionalGeneration(config).eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def tiny_dinov2() -> Any:
    """A DINOv2 of four layers with random weights."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=28,
        patch_size=7,
    )  # fmt: skip
    return Dinov2Model(config).eval()


def tiny_clip() -> Any:
    """A CLIP of tiny width with the vocabulary of the published ones."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    half = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 1, "hidden_act": "quick_gelu"}  # fmt: skip
    text = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407,
            "pad_token_id": 49407}  # fmt: skip
    vision = {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=half | text, vision_config=half | vision, projection_dim=24)
    return CLIPModel(config).eval()


def tiny_videomae() -> Any:
    """A VideoMAE for 8 frames with random weights."""
    from transformers import VideoMAEConfig, VideoMAEModel

    torch.manual_seed(0)
    config = VideoMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=16, num_frames=8,
    )  # fmt: skip
    return VideoMAEModel(config).eval()
