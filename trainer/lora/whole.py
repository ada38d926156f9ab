"""Whole differences of a network's weights, beside a LoRA: of norms, biases, modulations.

Step LoRAs that were taken from a full model have them. They belong to the student as the adapter
does: they are on with it and off for the teacher, and go into the exported file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .names import module_path
from .pairs import KOHYA_PREFIX, NUMBERS, LoraError, LoraPair

ATTRIBUTE = "_whole_differences"
SHOWN = 3
MODULATION = "modulation"
WHOLE = {".diff": "weight", ".diff_b": "bias", ".diff_m": MODULATION}
"""Ends of keys in LoRA files: which of a layer's weights has a whole difference."""


def known_weight(name: str, part: str) -> str | None:
    """The path of weight ``part`` of the layer called ``name`` in original files or by underscores,
    in families whose exported LoRAs can hold whole differences; None for others.
    """
    from ..families import FAMILIES

    for layers in (family.layers for family in FAMILIES if family.layers.original):
        assert layers.original is not None
        if name.startswith(KOHYA_PREFIX):
            path = module_path(f"{name}_{MODULATION}" if part == MODULATION else name, layers)
            path = path if path and layers.original(path) else None
        else:
            path = layers.path_of(f"{name}.{MODULATION}" if part == MODULATION else name)
        if path is not None:
            return path if layers.bare and path.endswith(layers.bare) else f"{path}.{part}"
    return None


def check_difference(path: str, value: Tensor) -> None:
    """Raise LoraError unless the numbers can be used."""
    if value.dtype not in NUMBERS:
        kind = str(value.dtype).removeprefix("torch.")
        raise LoraError(f"The difference of `{path}` holds {kind}; allowed are fp32, fp16, bf16.")
    if not torch.isfinite(value).all():
        raise LoraError(
            f"The difference of `{path}` holds NaN or infinite values: the file is damaged."
        )


def whole_count(count: int) -> str:
    """ "14 whole differences"."""
    return f"{count} whole difference{'' if count == 1 else 's'}"


def fit_differences(differences: Mapping[str, Tensor], network: nn.Module) -> None:
    """Raise LoraError unless each is of a weight that ``network`` has, and of its shape."""
    strange = []
    for path, value in differences.items():
        module, name = _home(network, path)
        own = None if module is None else _parameter(module, name)
        if own is None:
            strange.append(f"{path} is not there")
        elif own.shape != value.shape:
            strange.append(f"{path} (model {tuple(own.shape)}, LoRA {tuple(value.shape)})")
    if strange:
        raise LoraError(
            f"{len(strange)} of {len(differences)} whole differences of this LoRA do not fit the "
            f"loaded model: {'; '.join(strange[:SHOWN])}. Use a LoRA for this base model."
        )


def _home(network: nn.Module, path: str) -> tuple[nn.Module | None, str]:
    """The module that has the weight at ``path``, a LoRA's wrapper included, and its name there."""
    parent, _, name = path.rpartition(".")
    try:
        return network.get_submodule(parent), name
    except AttributeError:
        return None, name


def _parameter(module: nn.Module, name: str) -> Any:
    return _base(module)._parameters.get(name)


def _base(module: nn.Module) -> nn.Module:
    """The layer inside PEFT's wrapper."""
    return getattr(module, "base_layer", module)


class Whole:
    """``differences``, by path of the weight, on ``network`` at a strength that can be changed.

    What they add to a Linear is computed beside it, so that fp8 weights and weights that are
    fetched when they are needed may stay as they are; other weights are changed in place, and
    strength 0 puts back exactly what was there.
    """

    def __init__(self, network: nn.Module, differences: Mapping[str, Tensor]):
        fit_differences(differences, network)
        self.differences = dict(differences)
        self.strength = 0.0
        self.changed: list[tuple[nn.Module, str, Tensor, Tensor]] = []
        beside: dict[str, dict[str, Tensor]] = {}
        for path, value in differences.items():
            parent, _, name = path.rpartition(".")
            module, _ = _home(network, path)
            assert module is not None
            own = _parameter(module, name)
            if isinstance(_base(module), nn.Linear):
                beside.setdefault(parent, {})[name] = value.to(own.device)
            else:
                base = own.detach().clone()
                self.changed.append((module, name, base, value.to(own.device)))
        self.hooks = [
            network.get_submodule(path).register_forward_hook(self._adding(parts))
            for path, parts in beside.items()
        ]

    def _adding(self, parts: dict[str, Tensor]) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            if not self.strength:
                return None
            for name, value in parts.items():  # moves with the network
                if value.device != output.device:
                    parts[name] = value.to(output.device)
            weight, bias = parts.get("weight"), parts.get("bias")
            if weight is not None:
                both = inputs[0].to(output.dtype), weight.to(output.dtype)
                output = output + F.linear(*both) * self.strength
            return output if bias is None else output + bias.to(output.dtype) * self.strength

        return hook

    @torch.no_grad()
    def set(self, strength: float) -> None:
        """Act at ``strength`` times what they are; 0 is the base model."""
        if strength == self.strength:
            return
        self.strength = strength
        for module, name, base, value in self.changed:
            own = _parameter(module, name)
            # Through `data`: what a pass keeps for its gradient is put back before it is read.
            total = base.float() + value.to(base.device).float() * strength if strength else base
            own.data.copy_(total)

    def remove(self) -> None:
        """Leave the network as it was found."""
        self.set(0.0)
        for hook in self.hooks:
            hook.remove()
        self.hooks = []


def add_whole(network: nn.Module, differences: Mapping[str, Tensor]) -> None:
    """Put ``differences`` on ``network`` with its adapter, in place of others there; none if empty.

    Those that are zero everywhere, which some files have, are left out. Raises LoraError.
    """
    if (before := whole_of(network)) is not None:
        before.remove()
        delattr(network, ATTRIBUTE)
    kept = {path: value for path, value in differences.items() if value.is_meta or value.any()}
    if kept:
        found = Whole(network, kept)
        setattr(network, ATTRIBUTE, found)
        found.set(1.0)


def whole_of(network: nn.Module) -> Whole | None:
    """What `add_whole` put there."""
    return getattr(network, ATTRIBUTE, None)


def merged(
    pairs: Mapping[str, LoraPair], differences: Mapping[str, Tensor]
) -> tuple[dict[str, LoraPair], dict[str, Tensor]]:
    """The same update with one entry for each weight: a pair whose weight has a difference too
    becomes part of that, in fp32. ComfyUI reads only one of the two.
    """
    kept, whole = dict(pairs), dict(differences)
    for path in pairs:
        if (value := whole.get(f"{path}.weight")) is not None:
            delta = kept.pop(path).delta()
            whole[f"{path}.weight"] = value.to(delta.device).float() + delta
    return kept, whole
