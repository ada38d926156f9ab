"""Frozen blocks that wait in main memory and are fetched to the card one ahead of their use.

For a network larger than the card, in training and in sampling. Two places on the card take turns:
while one block computes, the next is copied into the other place by a stream of its own. Backward
passes must recompute each block (`checkpointing`), so that its weights are there for its gradient.
Trained weights, such as those of LoRA layers, and those that keep fp32 stay on the card.

diffusers' `apply_group_offloading` is for inference: it takes a block's weights away as soon as its
forward ends, also that of a recomputation, before the gradient reads them, and it puts LoRA weights
back to what they were before the optimizer's step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checkpointing import blocks

PLACES = 2
ALIGNMENT = 512  # bytes, as the allocator's: each weight begins where kernels like it


@dataclass(frozen=True)
class Weight:
    """A frozen weight: the module that has it, its name there, and where it begins in the block's
    bytes.
    """

    module: nn.Module
    name: str
    begin: int

    @property
    def value(self) -> Any:
        return self.module._parameters[self.name]

    def inside(self, block: Tensor) -> Tensor:
        """The weight as a view of ``block``, the block's bytes."""
        value = self.value
        part = block[self.begin : self.begin + value.numel() * value.element_size()]
        return part.view(value.dtype).as_strided(value.shape, value.stride())


def swapped_blocks(
    network: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    count: int,
    setting: str = "hardware.blocks_to_swap",
) -> list[nn.Module]:
    """``count`` of the blocks of ``network`` of ``kinds``, spread evenly: while those between them
    compute, the next is fetched. Raises ValueError, which names the ``setting``, for more than
    there are.
    """
    found = list(blocks(network, kinds))
    if count > len(found):
        raise ValueError(
            f"`{setting}`={count} is more than the {len(found)} blocks of this base "
            f"model; use 0 to {len(found)}."
        )
    return [found[index * len(found) // count] for index in range(count)]


def swapped_bytes(chosen: list[nn.Module], exact: Callable[[str], bool]) -> tuple[int, int]:
    """Bytes of the blocks ``chosen`` in main memory, and of the places on the card for them."""
    sizes = [_size(list(_weights(block, exact))) for block in chosen]
    return sum(sizes), max(sizes, default=0) * min(PLACES, len(sizes))


class BlockSwap:
    """Keeps the frozen weights of the blocks ``chosen`` in main memory.

    From the start they stay behind when the network is moved; after `start` they are fetched. Not
    for a network on "meta". ``exact`` takes the names of weights that keep fp32.
    """

    def __init__(self, chosen: list[nn.Module], exact: Callable[[str], bool]):
        self.chosen = chosen
        self.weights = [list(_weights(block, exact)) for block in chosen]
        self.device = torch.device("cpu")
        self.hosts: list[Tensor] = []
        self.own: list[list[Any]] = []
        self.places: list[Tensor] = []
        self.held: list[int | None] = [None] * PLACES
        self.ready: list[Any] = [None] * PLACES
        self.stream: Any = None
        self.last = 0
        for index, block in enumerate(chosen):
            block._apply = functools.partial(self._move, index)  # type: ignore[method-assign]

    def start(self, device: torch.device) -> None:
        """Pack the weights, which lie in main memory, and fetch blocks to ``device`` from now on.

        Call it when the LoRA layers are there, before `enable_checkpointing`.
        """
        self.device, on_card = device, device.type == "cuda"
        self.hosts = _main_memory([_size(weights) for weights in self.weights], on_card)
        for host, weights in zip(self.hosts, self.weights, strict=True):
            for weight in weights:
                inside = weight.inside(host)
                weight.value.data = inside.copy_(weight.value.data)
            self.own.append([weight.value for weight in weights])
        size = max(map(len, self.hosts), default=0)
        count = min(PLACES, len(self.hosts))
        self.places = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(count)]
        self.stream = torch.cuda.Stream(device) if on_card else None
        for index, block in enumerate(self.chosen):
            forward = functools.partial(self._forward, index, block.forward)
            block.forward = forward  # type: ignore[method-assign]

    def rest(self) -> None:
        """All weights are in main memory, to be read or changed there; passes fetch them again."""
        for place in range(PLACES):
            self._back(place)

    def _forward(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._put(index)
        following = self._following(index)
        if following is not None and following not in self.held:
            self._fetch(following, 1 - self.held.index(index))
        return forward(*args, **kwargs)

    def _following(self, index: int) -> int | None:
        """The block to be needed next: the one after, or, where gradients go back, before."""
        back = torch.is_grad_enabled() and index <= self.last and index > 0
        self.last = index
        following = index - 1 if back else (index + 1) % len(self.chosen)
        if not back and not following and torch.is_grad_enabled():
            return None  # the way back begins with the blocks that are there
        return following if len(self.places) == PLACES else None

    def _put(self, index: int) -> None:
        """Let the block compute with the weights on the card."""
        if index not in self.held:
            free = len(self.places) - 1 if self.held[0] == self.last else 0
            self._fetch(index, free)
        place = self.held.index(index)
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_event(self.ready[place])
        for weight, own in zip(self.weights[index], self.own[index], strict=True):
            if weight.value is own:
                view = weight.inside(self.places[place])
                weight.module._parameters[weight.name] = nn.Parameter(view, requires_grad=False)

    def _fetch(self, index: int, place: int) -> None:
        self._back(place)
        host = self.hosts[index]
        target = self.places[place][: len(host)]
        self.held[place] = index
        if self.stream is None:
            target.copy_(host)
            return
        # Whatever still reads this place was queued before now.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(host, non_blocking=True)
            self.ready[place] = self.stream.record_event()

    def _back(self, place: int) -> None:
        """The block in ``place`` has its weights in main memory again."""
        index = self.held[place]
        if index is None:
            return
        for weight, own in zip(self.weights[index], self.own[index], strict=True):
            weight.module._parameters[weight.name] = own
        self.held[place] = None

    def _move(self, index: int, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """`Module._apply` of a block, which changes the type of what waits, never its device."""
        for place, held in enumerate(self.held):
            if held == index:
                self._back(place)
        waiting = {id(weight.value) for weight in self.weights[index]}

        def moved(value: Tensor) -> Tensor:
            if id(value) not in waiting:
                return fn(value)
            return value if self.hosts else value.to(fn(value.new_empty(0, device="cpu")).dtype)

        block = self.chosen[index]
        return type(block)._apply(block, moved, recurse)


def _weights(block: nn.Module, exact: Callable[[str], bool]) -> Iterator[Weight]:
    begin = 0
    for path, module in block.named_modules():
        for name, value in module._parameters.items():
            # Small ones stay on the card: whole differences change them in place (`lora.whole`).
            small = value is None or value.ndim < 2
            if small or value.requires_grad or exact(f"{path}.{name}"):
                continue
            yield Weight(module, name, begin)
            begin += -(-value.numel() * value.element_size() // ALIGNMENT) * ALIGNMENT


def _main_memory(sizes: list[int], pinned: bool) -> list[Tensor]:
    """Bytes in main memory of these sizes. PyTorch rounds pinned memory up to a power of two, so
    blocks share pieces that are one already.
    """
    found: list[Tensor] = []
    while rest := sizes[len(found) :]:
        room = max(1 << (sum(rest).bit_length() - 1), 1 << (rest[0] - 1).bit_length())
        piece = torch.empty(room if pinned else rest[0], dtype=torch.uint8, pin_memory=pinned)
        for size in rest:
            if size > len(piece):
                break
            found.append(piece[:size])
            piece = piece[-(-size // ALIGNMENT) * ALIGNMENT :]
    return found


def _size(weights: list[Weight]) -> int:
    if not weights:
        return 0
    last = weights[-1]
    return last.begin + last.value.numel() * last.value.element_size()
