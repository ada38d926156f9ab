"""The student's LoRA on a diffusers video UNet: add, switch off (that is the teacher), read, load,
merge.

`UNet3DConditionModel` has no adapter methods of its own, so PEFT's `inject_adapter_in_model` does
the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .match import fit_pairs
from .pairs import LoraError, LoraPair, base_modules, lora_targets
from .whole import Whole, whole_of

ADAPTER = "default"


def add_lora(
    unet: nn.Module,
    rank: int,
    alpha: float,
    seed: int = 0,
    adapter_name: str = ADAPTER,
    ranks: Mapping[str, int] | None = None,
) -> None:
    """Freeze `unet` and put a trainable LoRA on every module of `lora_targets(unet)`, in place.

    `ranks` are those of modules that have another; their alpha is their rank, and modules that
    `lora_targets` leaves out have a LoRA too if they are among them. The new model equals the
    frozen base exactly, because `up` starts at zero. (A base that still requires gradients may
    differ in the last bit: torch picks other convolution kernels for it.) The adapter is fp32
    whatever the base's dtype, keeps the base's train/eval mode, and its start depends on `seed`
    alone: the global random state is neither read nor changed. Raises LoraError for a bad rank or
    alpha, when a LoRA is there already, or when nothing can be adapted.
    """
    _check_arguments(unet, rank, alpha)
    others = {path: other for path, other in (ranks or {}).items() if other != rank}
    targets = sorted({*lora_targets(unet), *(ranks or {})})
    if not targets:
        raise LoraError(
            f"{type(unet).__name__} has no Linear or Conv2d to adapt; pass a diffusers video UNet."
        )
    # `^`: PEFT matches patterns at the end of a path.
    patterns = {f"^{path}": other for path, other in others.items()}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=targets,
        rank_pattern=patterns,
        alpha_pattern=dict(patterns),
    )
    with torch.random.fork_rng(
        devices=[]
    ):  # PEFT's own initialisation draws from the global generator
        inject_adapter_in_model(config, unet, adapter_name)
    unet.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for _, layer in _lora_layers(unet):
        layer.register_forward_pre_hook(_input_as_positional, with_kwargs=True)
        layer.train(layer.get_base_layer().training)  # PEFT's new layers start in train mode
        _initialise(layer, adapter_name, generator)


def _check_arguments(unet: nn.Module, rank: int, alpha: float) -> None:
    if rank < 1:
        raise LoraError(f"`rank`={rank}; allowed is 1 or more (the reference uses 64).")
    if not (math.isfinite(alpha) and alpha > 0):
        raise LoraError(
            f"`alpha`={alpha}; a positive number is needed (the reference uses alpha = rank)."
        )
    if _lora_layers(unet):
        raise LoraError(
            "This model carries a LoRA already; use load_lora_state, or start from a fresh model."
        )


def _input_as_positional(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """AnimateDiff's motion modules call `proj_in(input=...)`, an argument name that PEFT's layers
    do not accept.
    """
    if args or "input" not in kwargs:
        return None
    rest = {key: value for key, value in kwargs.items() if key != "input"}
    return (kwargs["input"],), rest


def _initialise(layer: Any, adapter_name: str, generator: torch.Generator) -> None:
    """`down` as nn.Linear starts (uniform, bound 1/sqrt(fan_in), as PEFT does), `up` zero; both
    fp32, trainable.
    """
    down, up = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
    for part in (down, up):
        part.to(torch.float32).requires_grad_(True)
    bound = 1 / math.sqrt(down.weight[0].numel())
    start = torch.empty(down.weight.shape, dtype=torch.float32, device="cpu")
    start.uniform_(-bound, bound, generator=generator)
    with torch.no_grad():
        down.weight.copy_(start)
        up.weight.zero_()


def _lora_layers(unet: nn.Module) -> list[tuple[str, Any]]:
    return sorted((name, m) for name, m in unet.named_modules() if isinstance(m, LoraLayer))


def lora_parameters(unet: nn.Module, adapter_name: str = ADAPTER) -> list[nn.Parameter]:
    """The adapter's parameters in sorted path order, `down` before `up`: what an optimizer or an
    EMA takes.
    """
    return [
        part[adapter_name].weight
        for _, layer in _lora_layers(unet)
        if adapter_name in layer.lora_A
        for part in (layer.lora_A, layer.lora_B)
    ]


@contextmanager
def adapter_disabled(unet: nn.Module) -> Iterator[None]:
    """Inside, the UNet is the frozen teacher: exactly the base model, whole differences off. May
    be nested; restores what it found.

    PEFT's own switch also rewrites `requires_grad` of every adapter, so those flags are saved and
    put back.
    """
    layers = [(layer, bool(layer.disable_adapters)) for _, layer in _lora_layers(unet)]
    flags = [(p, p.requires_grad) for layer, _ in layers for p in layer.parameters()]
    whole = whole_of(unet)
    before = 0.0 if whole is None else whole.strength
    try:
        for layer, _ in layers:
            layer.enable_adapters(False)
        if whole is not None:
            whole.set(0.0)
        yield
    finally:
        if whole is not None:
            whole.set(before)
        for layer, was_disabled in layers:
            layer.enable_adapters(not was_disabled)
        for parameter, required in flags:
            parameter.requires_grad_(required)


@contextmanager
def adapter_at(unet: nn.Module, strength: float, adapter_name: str = ADAPTER) -> Iterator[None]:
    """Inside, the adapter acts at ``strength`` times what it was trained to."""
    layers = [layer for _, layer in _lora_layers(unet)]
    kept = [layer.scaling[adapter_name] for layer in layers]
    whole = whole_of(unet)
    before = 0.0 if whole is None else whole.strength
    for layer, scaling in zip(layers, kept, strict=True):
        layer.scaling[adapter_name] = scaling * strength
    try:
        if whole is not None:
            whole.set(before * strength)
        yield
    finally:
        if whole is not None:
            whole.set(before)
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling[adapter_name] = scaling


def lora_state(unet: nn.Module, adapter_name: str = ADAPTER) -> dict[str, LoraPair]:
    """A copy of the adapter as {module path: LoraPair}, on the adapter's device, safe to keep while
    training goes on.
    """
    pairs: dict[str, LoraPair] = {}
    for path, layer in _lora_layers(unet):
        if adapter_name in layer.lora_A:
            down = layer.lora_A[adapter_name].weight.detach().clone()
            up = layer.lora_B[adapter_name].weight.detach().clone()
            pairs[path] = LoraPair(down, up, float(layer.lora_alpha[adapter_name]))
    if not pairs:
        raise LoraError(f"This model carries no LoRA named {adapter_name!r}; call add_lora first.")
    return pairs


def load_lora_state(
    unet: nn.Module, pairs: Mapping[str, LoraPair], strict: bool = True, adapter_name: str = ADAPTER
) -> None:
    """Copy `pairs` into the adapter that `add_lora` made, dtype and device of the adapter kept;
    alpha comes along.

    `strict=False` allows pairs for a part of the adapter only. A pair without a place, or of
    another rank, is refused either way with LoraError, before anything is changed.
    """
    layers = {path: layer for path, layer in _lora_layers(unet) if adapter_name in layer.lora_A}
    fitted = fit_pairs(pairs, unet, complete=strict)
    for path, pair in fitted.items():
        if path not in layers:
            raise LoraError(
                f"`{path}` carries no LoRA named {adapter_name!r}; call add_lora first."
            )
        rank = layers[path].lora_A[adapter_name].weight.shape[0]
        if pair.rank != rank:
            raise LoraError(
                f"`{path}` has rank {pair.rank}, the model's adapter {rank}; "
                f"add_lora(rank={pair.rank})."
            )
    with torch.no_grad():
        for path, pair in fitted.items():
            layer = layers[path]
            layer.lora_A[adapter_name].weight.copy_(pair.down)
            layer.lora_B[adapter_name].weight.copy_(pair.up)
            layer.lora_alpha[adapter_name] = pair.alpha
            layer.scaling[adapter_name] = pair.alpha / pair.rank


@torch.no_grad()
def start_from(
    unet: nn.Module,
    pairs: Mapping[str, LoraPair],
    adapter_name: str = ADAPTER,
    complete: bool = True,
) -> None:
    """Start the new adapter of `add_lora` from `pairs`, which have its rank or a lower one.

    The update is the same exactly: further rows of `down` keep their start and those of `up` are
    zero, so that they can learn. The adapter keeps its alpha: `up` takes what the pairs' differs
    by. Without `complete`, layers without a pair keep their start, which adds nothing. Raises
    LoraError, with nothing changed, unless the pairs cover the adapter and none has a higher rank.
    """
    fitted = fit_pairs(pairs, unet, complete=complete)
    layers = dict(_lora_layers(unet))
    for path, pair in fitted.items():
        rank = layers[path].lora_A[adapter_name].weight.shape[0] if path in layers else 0
        if pair.rank > rank:
            raise LoraError(
                f"`{path}`: the LoRA has rank {pair.rank}, the adapter {rank}; "
                f"add_lora({pair.rank})."
            )
    for path, pair in fitted.items():
        layer = layers[path]
        layer.lora_A[adapter_name].weight[: pair.rank].copy_(pair.down)
        scale = pair.alpha / pair.rank / layer.scaling[adapter_name]
        layer.lora_B[adapter_name].weight[:, : pair.rank].copy_(pair.up * scale)


@torch.no_grad()
def apply_lora(
    unet: nn.Module,
    pairs: Mapping[str, LoraPair],
    strength: float = 1.0,
    differences: Mapping[str, Tensor] | None = None,
    for_good: bool = False,
) -> Callable[[], None]:
    """Merge `strength * delta` into the base weights, and whole `differences` with it, and return a
    function that puts the old weights back.

    The undo is exact because the old weights are kept, on their device: as much memory again as the
    updated weights take. ``for_good`` keeps none: the undo is then not to be called. Undo several
    LoRAs in reverse order; a second call of one undo does nothing. Weights stored in fp8 stay as
    they are: their update is computed beside them. A LoRA that does not fit as a whole raises
    LoraError and changes nothing. fp32 merges equal PEFT's bit for bit.
    """
    if not math.isfinite(strength):
        raise LoraError(f"`strength`={strength}; a finite number is needed, usually 0 to 1.5.")
    fitted = fit_pairs(pairs, unet) if pairs or not differences else {}
    modules = base_modules(unet)
    kept: list[tuple[Tensor, Tensor]] = []
    hooks: list[RemovableHandle] = []
    whole = Whole(unet, differences or {})

    def undo() -> None:
        whole.remove()
        while hooks:
            hooks.pop().remove()
        while kept:
            weight, before = kept.pop()
            weight.copy_(before)

    try:
        for path, pair in fitted.items():
            weight = modules[path].weight.data
            moved = LoraPair(pair.down.to(weight.device), pair.up.to(weight.device), pair.alpha)
            if not weight.is_floating_point():
                hooks.append(modules[path].register_forward_hook(_beside(moved, strength)))
                continue
            delta = moved.delta(strength)
            if not for_good:
                kept.append((weight, weight.clone()))
            weight.add_(delta)
        whole.set(strength)
    except BaseException:
        undo()  # no half-applied LoRA, even when memory runs out in the middle
        raise
    return undo


def _beside(pair: LoraPair, strength: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A forward hook of a Linear that adds the update of ``pair`` to what it gives."""
    scale = pair.alpha / pair.rank * strength
    matrices = [pair.down, pair.up]

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if matrices[0].device != output.device:  # the weight itself may wait in main memory
            matrices[:] = [matrix.to(output.device) for matrix in matrices]
        down, up = (matrix.to(output) for matrix in matrices)
        return output + F.linear(F.linear(inputs[0], down), up) * scale

    return hook
