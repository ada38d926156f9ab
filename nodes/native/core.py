"""All parts of ComfyUI that this pack uses and that change between versions.

| of core | since | what stands in where it is missing or other |
|---|---|---|
| `model_patcher.CoreModelPatcher` (dynamic VRAM on NVIDIA cards) | 0.12 | `ModelPatcher` |
| `ModelPatcher.cached_patcher_init`: how to load a MODEL, CLIP or VAE once more (several GPUs, hooks) | 0.15 | an attribute nobody reads |
| `default_noise_sampler` draws from seed + 1 on the CPU | 0.7 | `_with_step_seed` in sampling.py adds the 1 |
| `quant_config` of a checkpoint (before: `layer_quant_config`, `scaled_fp8`) | 0.4 | whichever the config has |
| wrappers `OUTER_SAMPLE`, `PREPARE_SAMPLING`, `SAMPLER_SAMPLE`, `CALC_COND_BATCH`, `DIFFUSION_MODEL` | before 0.3.60 | - |
| `io.Schema.search_aliases` (test_found_browser.py) | 0.11 | no search words |
| `optimized_attention(q, k, v, heads)` | before 0.3.60 | - |
| `WeightAdapterBase.__init__(loaded_keys, weights)` | before 0.3.60 | - |

Core's context windows are not used: their handler changed three times in a year (context.py).
tests/nodes/test_core_contract.py checks the behaviour of each row on the ComfyUI it runs with.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from comfy_api.latest import io

QUANTISED = ("quant_config", "layer_quant_config", "scaled_fp8", "custom_operations")
"""Config attributes for quantised layers, by version of ComfyUI."""


def new_patcher(base_model: Any, loader: tuple | None = None, disable_dynamic: bool = False) -> Any:
    """As `core_patcher`, with `VideoPatcher`'s two methods."""
    patcher = core_patcher(base_model, loader, disable_dynamic)
    # A dynamic patcher makes plain ones for the CPU, so the class is known only now.
    patcher.__class__ = video_patcher_class(type(patcher))
    return patcher


def core_patcher(
    base_model: Any, loader: tuple | None = None, disable_dynamic: bool = False
) -> Any:
    """MODEL (ModelPatcher) of BaseModel `base_model` on ComfyUI's devices, of the class that core
    uses for its own models.

    `loader` is ``(function, arguments)`` that loads the same MODEL again and takes
    ``disable_dynamic``; core calls it for a second GPU. None where that is not possible.
    """
    from comfy import model_management
    from comfy.model_patcher import ModelPatcher

    try:
        from comfy.model_patcher import CoreModelPatcher
    except ImportError:  # before 0.12
        CoreModelPatcher = ModelPatcher
    patcher = (ModelPatcher if disable_dynamic else CoreModelPatcher)(
        base_model,
        load_device=model_management.get_torch_device(),
        offload_device=model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = loader
    return patcher


@lru_cache
def video_patcher_class(kind: type) -> type:
    """`kind` (a ModelPatcher class) whose layers also answer to core's block names, for merging."""
    from .blocks import from_core_key, to_core_key

    class VideoPatcher(kind):
        """Core's merge nodes know input, middle and output blocks by the names of its own UNet."""

        def get_key_patches(self, filter_prefix=None):
            found = super().get_key_patches(filter_prefix)
            if not filter_prefix:
                return found
            return {to_core_key(key, self.model.diffusion_model): v for key, v in found.items()}

        def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
            own = {_renamed(key, from_core_key): key for key in patches}
            taken = super().add_patches(
                {key: patches[given] for key, given in own.items()}, strength_patch, strength_model
            )
            lost = [given for key, given in own.items() if key not in set(taken)]
            if lost and isinstance(patches[lost[0]], list):  # whole weights: a merge
                raise ValueError(
                    f"These MODELs cannot be merged: only one of them has the layer {lost[0]}. "
                    "Merge video models of the same kind; merge image models before AnimateDiff "
                    "Motion Module."
                )
            return [own[key] for key in taken]

    return VideoPatcher


def _renamed(key: Any, rename: Callable[[str], str]) -> Any:
    """A patch's key is a name, or a tuple that starts with one."""
    return rename(key) if isinstance(key, str) else (rename(key[0]), *key[1:])


def quantised_as(model_config: Any) -> str:
    """The name of the attribute by which `model_config` says that its layers are quantised; ""."""
    known = {**vars(type(model_config)), **vars(model_config)}
    for base in type(model_config).__mro__:
        known = {**vars(base), **known}
    return next((name for name in QUANTISED if known.get(name)), "")


@lru_cache(1)
def core_moves_step_seed() -> bool:
    """Whether core's samplers draw the noise of their steps from another seed than the start noise.

    Before, the first noise of a step on the CPU was the start noise again.
    """
    from comfy.k_diffusion.sampling import default_noise_sampler

    drawn = default_noise_sampler(torch.zeros(8), seed=0)(None, None)
    return not torch.equal(drawn, torch.randn(8, generator=torch.Generator().manual_seed(0)))


def wrap(model: Any, place: str, key: str, function: Callable[..., Any]) -> None:
    """Wrap `function` around the call named `place` (a name in `WrappersMP`), on MODEL `model` and
    its later clones. It replaces an earlier wrapper with the same `key`.
    """
    from comfy.patcher_extension import WrappersMP

    kind = getattr(WrappersMP, place)
    model.remove_wrappers_with_key(kind, key)
    model.add_wrapper_with_key(kind, key, function)


VIDEO = ("video", "text to video", "t2v")
FEW_STEP = ("few step", "lcm", "consistency", "turbo", "lightning", "fast", "distill")


def found_by(*words: str) -> dict[str, list[str]]:
    """Keyword arguments for `io.Schema`; empty before ComfyUI 0.11, which has no such field.

    When no node's name matches a query, the frontend ranks whole-word matches in this list first
    and matches late in a phrase after them. Loaders start a graph, so they have "lcm"; nodes
    further along have "sampler for lcm".
    """
    if "search_aliases" not in io.Schema.__dataclass_fields__:
        return {}
    return {"search_aliases": list(words)}
