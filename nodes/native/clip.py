"""The text encoder of a diffusers folder as ComfyUI's CLIP, equal to transformers'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...trainer.models.weights import read_json, read_weights

PREFIX = "text_model."


def load_native_clip(
    folder: Path, dtype: torch.dtype | None = None, disable_dynamic: bool = False
) -> Any:
    """CLIP of ``folder``'s ``text_encoder`` and ``tokenizer``.

    ``dtype`` is what the weights are stored in; None leaves the choice to ComfyUI.
    ``disable_dynamic`` asks for core's plain patcher. Raises ValueError for a text encoder that is
    not CLIP, or whose weights do not fit.
    """
    import comfy.sd
    from comfy.supported_models_base import ClipTarget

    config = read_json(folder / "text_encoder" / "config.json")
    if config.get("model_type", "clip_text_model") != "clip_text_model":
        raise ValueError(
            f"'{folder}' has a text encoder of type {config['model_type']!r}; this node reads "
            "CLIP text models (clip_text_model) only."
        )
    weights = normalise_keys(read_weights(folder / "text_encoder"), config["hidden_size"])
    name = "h" if config["hidden_size"] == 1024 else "l"
    tokenizer = partial(_tokenizer, folder / "tokenizer", config, name)
    tokens = getattr(tokenizer(), f"clip_{name}")
    special = {"start": tokens.start_token, "end": tokens.end_token, "pad": tokens.pad_token}
    model = partial(_text_model, config, special, name)
    clip = filled(
        partial(
            comfy.sd.CLIP,
            ClipTarget(tokenizer, model),
            embedding_directory=embedding_folders(),
            parameters=sum(value.numel() for value in weights.values()),
            model_options={"dtype": dtype} if dtype is not None else {},
        ),
        weights,
        folder / "text_encoder",
        {"disable_dynamic": disable_dynamic},
    )
    clip.patcher.cached_patcher_init = load_clip_patcher, (folder, dtype)
    return clip


def load_clip_patcher(folder: Path, dtype: torch.dtype | None, disable_dynamic: bool = False):
    """The patcher of a CLIP loaded again, for core (hooks, a second GPU)."""
    return load_native_clip(folder, dtype, disable_dynamic).patcher


def normalise_keys(weights: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Keys as in ComfyUI's CLIPTextModel.

    transformers 5 dropped the prefix ``text_model.``, transformers 4 also stored ``position_ids``.
    A missing ``text_projection`` becomes the identity: ComfyUI would leave it uninitialised.
    """
    found = {}
    for key, value in weights.items():
        if key.endswith("position_ids"):
            continue
        plain = key.removeprefix(PREFIX)
        found[plain if plain.startswith("text_projection") else PREFIX + plain] = value
    found.setdefault("text_projection.weight", torch.eye(width))
    return found


def _text_model(
    config: dict[str, Any],
    special_tokens: dict[str, int],
    name: str,
    device: Any = "cpu",
    dtype: torch.dtype | None = None,
    model_options: dict[str, Any] | None = None,
) -> Any:
    """ComfyUI's wrapper with one CLIP text model, that returns the last hidden state."""
    from comfy.sd1_clip import SD1ClipModel, SDClipModel

    def encoder(device: Any, dtype: Any, model_options: dict[str, Any]) -> SDClipModel:
        model = SDClipModel(
            device=device,
            max_length=config["max_position_embeddings"],
            textmodel_json_config=config,
            dtype=dtype,
            special_tokens=special_tokens,
            return_projected_pooled=False,
            model_options=model_options,
        )
        _fit_vocabulary(model, config, device, dtype)
        return model

    return SD1ClipModel(
        device=device,
        dtype=dtype,
        model_options=model_options or {},
        clip_name=name,
        clip_model=encoder,
    )


def _fit_vocabulary(model: Any, config: dict[str, Any], device: Any, dtype: Any) -> None:
    """ComfyUI builds every CLIP with 49408 tokens, whatever its config says."""
    current = model.transformer.get_input_embeddings()
    if current.weight.shape[0] != config["vocab_size"]:
        embeddings = model.operations.Embedding(
            config["vocab_size"], config["hidden_size"], device=device, dtype=dtype
        )
        model.transformer.set_input_embeddings(embeddings.requires_grad_(False))


def _tokenizer(
    folder: Path,
    config: dict[str, Any],
    name: str,
    embedding_directory: Any = None,
    tokenizer_data: dict[str, Any] | None = None,
) -> Any:
    """ComfyUI's tokenizer with this folder's vocabulary, length and padding token."""
    from comfy.sd1_clip import SD1Tokenizer, SDTokenizer
    from transformers import CLIPTokenizer

    try:
        reader = CLIPTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"Cannot read the tokenizer in '{folder}': {error}.") from error
    one = partial(
        SDTokenizer,
        str(folder),
        max_length=min(int(reader.model_max_length), config["max_position_embeddings"]),
        embedding_size=config["hidden_size"],
        embedding_key=f"clip_{name}",
        pad_token=reader.pad_token_id,
    )
    return SD1Tokenizer(
        embedding_directory=embedding_directory,
        tokenizer_data=tokenizer_data or {},
        clip_name=name,
        tokenizer=one,
    )


def embedding_folders() -> list[str]:
    import folder_paths

    return folder_paths.get_folder_paths("embeddings")


def filled(
    build: Callable[..., Any], weights: dict[str, Tensor], source: Path, options: dict[str, Any]
) -> Any:
    """The CLIP that ``build()`` makes, with ``weights``; ``options`` where core has them.

    Current versions may load it into memory at once, and with dynamic VRAM keep what lay there:
    they take the weights before that.
    """
    import comfy.sd

    options = {"state_dict": [weights], **options}
    known = signature(comfy.sd.CLIP.__init__).parameters
    try:
        clip = build(**{name: value for name, value in options.items() if name in known})
        missing, unexpected = clip.load_sd(weights)
    except RuntimeError as error:  # how torch reports another shape
        raise ValueError(
            f"The weights in '{source}' do not fit its config.json: {error}"
        ) from error
    if missing or unexpected:
        raise ValueError(
            f"The weights in '{source}' do not fit its config.json: {len(missing)} missing, "
            f"{len(unexpected)} unexpected ({'; '.join([*missing, *unexpected][:3])}). Download "
            "the model again."
        )
    return clip
