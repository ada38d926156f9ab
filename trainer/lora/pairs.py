"""One LoRA in one form: a dict from module path to a pair of low-rank matrices, whatever file it
came from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..families import Family
    from ..families.record import LayerNames

KOHYA_PREFIX = "lora_unet_"
NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class LoraError(ValueError):
    """A LoRA that cannot be read, does not fit the model, or cannot be written."""


@dataclass(frozen=True, eq=False)
class LoraPair:
    """A low-rank update of one weight, `delta = (alpha / rank) * up @ down` (Hu et al. 2021,
    section 4.1).

    `down` is (rank, in) for a Linear and (rank, in, kh, kw) for a Conv2d; `up` is (out, rank) or
    (out, rank, 1, 1).
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight this pair updates: (out, in) or (out, in, kh, kw)."""
        return (self.up.shape[0], *self.down.shape[1:])

    def delta(self, strength: float = 1.0) -> Tensor:
        """The update in fp32, shape `weight_shape`, on the device of `down`.

        The order of operations is PEFT's (`LoraLayer.get_delta_weight`), so that merges agree bit
        for bit.
        """
        down, up = self.down.float(), self.up.float()
        scale = self.alpha / self.rank * strength
        if down.dim() == 2:
            return up @ down * scale
        if down.shape[2:] == (1, 1):
            return (up[:, :, 0, 0] @ down[:, :, 0, 0])[:, :, None, None] * scale
        return F.conv2d(down.transpose(0, 1), up).transpose(0, 1) * scale


def check_pair(path: str, pair: LoraPair) -> None:
    """Raise LoraError unless the two matrices of `path` belong together, are finite and have a
    usable alpha.
    """
    down, up = pair.down, pair.up
    got = f"down {tuple(down.shape)} and up {tuple(up.shape)}"
    if down.dim() not in (2, 4) or up.dim() != down.dim():
        raise LoraError(
            f"`{path}` has {got}; a LoRA pair has two matrices of 2 or of 4 dimensions."
        )
    if pair.rank < 1 or up.shape[1] != pair.rank or (up.dim() == 4 and up.shape[2:] != (1, 1)):
        raise LoraError(
            f"`{path}` has {got}; `down` must be (rank, in, ...) and `up` (out, rank[, 1, 1])."
        )
    kinds = [str(part.dtype).removeprefix("torch.") for part in (down, up)]
    if not {down.dtype, up.dtype} <= set(NUMBERS):
        raise LoraError(
            f"`{path}` holds {' and '.join(kinds)}; allowed are fp32, fp16 and bf16. Save the LoRA "
            "in one of them: fp8 and whole numbers lose what it has learned."
        )
    if not math.isfinite(pair.alpha):
        raise LoraError(
            f"`{path}` has alpha={pair.alpha}; a finite number is needed. The file is damaged."
        )
    if pair.alpha <= 0:
        raise LoraError(
            f"`{path}` has alpha={pair.alpha:g}, which turns its update off or reverses it; a "
            "positive number is needed. Export the LoRA again."
        )
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise LoraError(
            f"`{path}` holds NaN or infinite values: training diverged or the file is damaged. "
            "Use an earlier checkpoint."
        )


def base_modules(unet: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every Linear and Conv2d of a UNet by its path in the base model, seen through PEFT's
    wrappers.
    """
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, module in unet.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and ".lora_" not in name:
            found[name.removesuffix(".base_layer")] = module
    return found


def weight_shapes(model: nn.Module | Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Path -> weight shape of everything a LoRA can update; a mapping is returned as a plain
    dict.
    """
    if isinstance(model, nn.Module):
        return {path: tuple(module.weight.shape) for path, module in base_modules(model).items()}
    return {path: tuple(shape) for path, shape in model.items()}


def family_of_layers(names: Iterable[str]) -> Family | None:
    """The family that these paths or underscore names belong to; None without a marker of any."""
    from ..families import FAMILIES  # diffusers: only where a LoRA is read

    known = set(names)
    for family in FAMILIES:
        layers = family.layers
        if any(marker in name for name in known for marker in layers.markers) or any(
            name.startswith(layers.starts) for name in known if layers.starts
        ):
            return family
    return None


def layers_of(names: Iterable[str]) -> LayerNames:
    """How the family of these layers names them; an image model's names for those of none."""
    from ..families.unet import IMAGE_LAYERS

    family = family_of_layers(names)
    return family.layers if family else IMAGE_LAYERS


def lora_targets(model: nn.Module | Mapping[str, tuple[int, ...]]) -> list[str]:
    """Sorted paths of the modules the MCM LoRA covers: every Linear and Conv2d but those that the
    family leaves untouched, such as input, output and time.

    Conv3d (the `temp_convs` of ModelScope) is never among them. Source: the key lists of the
    reference checkpoints, 482 modules in ModelScope, 530 in AnimateDiff.
    """
    paths = weight_shapes(model)
    untouched = tuple(f"{start}." for start in layers_of(paths).untouched)
    return sorted(path for path in paths if not f"{path}.".startswith(untouched))


def kohya_name(path: str) -> str:
    """`down_blocks.0.attentions.0.proj_in` -> `lora_unet_down_blocks_0_attentions_0_proj_in`."""
    return KOHYA_PREFIX + path.replace(".", "_")
