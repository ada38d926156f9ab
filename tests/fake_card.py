"""A graphics card where there is none: tensors that say they are on "cuda" and compute on the CPU.

PyTorch's own `FakeTensorMode` has no values, so a loop, a sampler or a table stops at the first
number that is read; and where PyTorch is built for CUDA but finds no driver, which is what pip
installs on most machines, it aborts at the first gradient. A `CardTensor` therefore carries its
values in an ordinary tensor. What a card would refuse is refused (tensors of two devices in one
operation, `.numpy()`, a CPU generator for a card's random numbers), and every time the host would
have to wait for the card is written down with the place in our code.

    with FakeCard() as card:
        main(["train", ...])
    assert card.waits == {...}
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, PartialState
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

ROOT = Path(__file__).resolve().parent.parent
CARD = torch.device("cuda", 0)
CPU = torch.device("cpu")
GIB = 1 << 30
aten = torch.ops.aten

COPIES = {aten.copy_.default, aten._foreach_copy_.default}
TAKE_HOST_INDICES = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
"""Operations that a card runs with indices in main memory."""
READ = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
COUNT_FIRST = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
}
"""Operations whose result has a size that only the card knows, unless it is told."""

WAITING = READ | COUNT_FIRST | TAKE_HOST_INDICES | COPIES


class CardError(RuntimeError):
    """What a real card would have refused."""


class CardTensor(torch.Tensor):
    """A tensor "on the card"; ``inner`` holds its values in main memory.

    For PyTorch's own C++ it lies on the CPU, so autograd needs no driver; everything that Python
    asks (`device`, `is_cuda`, `to`) says "cuda".
    """

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> CardTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
        )
        self.inner = inner.detach() if inner.requires_grad else inner
        return self

    device = property(lambda self: CARD)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def get_device(self) -> int:
        return 0

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict, meta: None, size: Any, stride: Any) -> CardTensor:
        return CardTensor(parts["inner"])

    def __deepcopy__(self, memo: dict) -> CardTensor:
        copy = CardTensor(self.inner.clone()).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file holds the values; on which device they were is up to who loads them."""
        return move(self.detach(), False).__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"CardTensor({self.inner!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        _check_devices(func, args, kwargs)
        _note_wait(func, args, kwargs)
        bare = {k: CPU if k == "device" and v is not None else _bare(v) for k, v in kwargs.items()}
        out = func(*_bare(args), **bare)
        if func in COPIES:
            return args[0]
        if _returns_new(func):
            return _wrapped(out)
        return return_and_correct_aliasing(func, args, kwargs, _wrapped(out))


@functools.cache
def _returns_new(func: Any) -> bool:
    """Whether nothing that ``func`` returns shares memory with its arguments."""
    return all(value.alias_info is None for value in func._schema.returns)


def _bare(value: Any) -> Any:
    if isinstance(value, CardTensor):
        return value.inner
    return type(value)(map(_bare, value)) if type(value) in (tuple, list) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return CardTensor(value)
    return type(value)(map(_wrapped, value)) if type(value) in (tuple, list) else value


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif type(value) in (tuple, list):
            yield from _tensors(value)


def _on_card(values: Any) -> bool:
    return any(isinstance(x, CardTensor) for x in _tensors(values))


def _check_devices(func: Any, args: tuple, kwargs: dict) -> None:
    """As `FakeTensor` has it: numbers (0-d) from main memory go with anything, larger tensors only
    into copies and as indices.
    """
    tensors = list(_tensors((*args, *kwargs.values())))
    large = [x for x in tensors if x.dim() and not isinstance(x, CardTensor)]
    if not large or func in COPIES:
        return
    others = (args[0], *args[2:]) if func in TAKE_HOST_INDICES else ()
    if others and all(isinstance(x, CardTensor) or not x.dim() for x in _tensors(others)):
        return
    shapes = [f"{x.device.type} {tuple(x.shape)}" for x in tensors]
    raise CardError(
        f"Expected all tensors to be on the same device: {func} got {', '.join(shapes)} "
        f"at {place()}."
    )


def _note_wait(func: Any, args: tuple, kwargs: dict) -> None:
    card = FakeCard.current
    if card is None or func not in WAITING:
        return
    if func in READ or (func in COUNT_FIRST and kwargs.get("output_size") is None):
        card.note(str(func).split(".")[1])
    elif func in TAKE_HOST_INDICES:
        indices = [x for x in args[1] if x is not None]
        if any(x.dtype in (torch.bool, torch.uint8) and isinstance(x, CardTensor) for x in indices):
            card.note("index by mask")
    elif func in COPIES and not _on_card([args[0]]) and _on_card([args[1]]):
        card.note("copy to host")


def place() -> str:
    """``file:function`` of the innermost frame in our code, seen from the repository's root."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and "tests" not in path.relative_to(ROOT).parts[:1]:
            inside = path.relative_to(ROOT).as_posix()
            if not inside.startswith(".") and not frame.f_code.co_name.startswith("<"):
                return f"{inside}:{frame.f_code.co_name}"  # comprehensions: since 3.12 no frame
        frame = frame.f_back
    return "tests"


class _Move(torch.autograd.Function):
    """Between main memory and card, with a gradient that goes the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, to_card: bool) -> torch.Tensor:
        ctx.to_card = to_card
        if to_card:
            return CardTensor(x.detach().clone())
        return x.inner.clone()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return move(gradient, not ctx.to_card), None


def move(x: torch.Tensor, to_card: bool) -> torch.Tensor:
    """``x`` on the card or in main memory; ``x`` itself where it is there already."""
    if isinstance(x, CardTensor) == to_card:
        return x
    if not to_card and FakeCard.current is not None:
        FakeCard.current.note("copy to host")
    return _Move.apply(x, to_card)


class _Dispatch(TorchDispatchMode):
    """Makes what is asked for on "cuda" there."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        if _on_card((*args, *kwargs.values())):
            return CardTensor.__torch_dispatch__(func, types, args, kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type != CARD.type:
            made = func(*args, **kwargs)
            return _wrapped(made) if _asked_by_autograd(args) else made
        if kwargs.get("generator") is not None:
            raise CardError(f"Expected a 'cuda' device type for generator, got 'cpu' at {place()}.")
        return CardTensor(func(*args, **{**kwargs, "device": CPU}))


def _asked_by_autograd(args: tuple) -> bool:
    """Whether PyTorch's own C++ makes a new tensor for a gradient. To it a `CardTensor` is on the
    CPU; on a card it would ask for the card.
    """
    if any(True for _ in _tensors(args)) or torch._C._current_graph_task_id() < 0:
        return False
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.endswith(("_compile.py", "eval_frame.py")):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


class _Functions(TorchFunctionMode):
    """The few calls that PyTorch answers before it dispatches anything."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(func, *args, **kwargs)
        return func(*args, **kwargs)


def _to(func: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`Tensor.to`: the move by ourselves, type and memory format by PyTorch."""
    named = [*args, *(kwargs.pop(name, None) for name in ("device", "other", "dtype"))]
    device: torch.device | None = None
    for value in named:
        if isinstance(value, torch.Tensor):
            device, kwargs["dtype"] = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            kwargs["dtype"] = value
        elif isinstance(value, (str, torch.device)):
            device = torch.device(value)
    if device is not None and device.type not in (CPU.type, CARD.type):
        return func(x, device, **kwargs)
    moved = x if device is None else move(x, device.type == CARD.type)
    if moved is not x:
        kwargs.pop("copy", None)
    return func(moved, **kwargs) if kwargs else moved


def _tensor(func: Any, data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    device = kwargs.pop("device", None)
    made = func(data, *args, **kwargs)
    return made if device is None else _to(torch.Tensor.to, made, device)


def _new_tensor(func: Any, x: torch.Tensor, data: Any, **kwargs: Any) -> torch.Tensor:
    device = kwargs.pop("device", None) or x.device
    return _tensor(torch.tensor, data, **{"dtype": x.dtype, "device": device, **kwargs})


def _read(func: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if isinstance(x, CardTensor) and FakeCard.current is not None:
        FakeCard.current.note(func.__name__)
    return func(_bare(x), *args, **kwargs)


def _numpy(func: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if isinstance(x, CardTensor):
        raise CardError(f"can't convert cuda:0 device type tensor to numpy at {place()}.")
    return func(x, *args, **kwargs)


def _set_data(func: Any, x: torch.Tensor, value: torch.Tensor) -> None:
    if isinstance(x, CardTensor) != isinstance(value, CardTensor):
        new = value.detach()
        if isinstance(x, torch.nn.Parameter):
            new = torch.nn.Parameter(new, x.requires_grad)
        torch.utils.swap_tensors(x, new)
        return
    func(x, value)
    if isinstance(x, CardTensor):
        x.inner = value.inner  # type: ignore[attr-defined]


_HANDLERS: dict[Any, Any] = {
    torch.Tensor.to: _to,
    torch.Tensor.cpu: lambda func, x, **_: move(x, False),
    torch.Tensor.cuda: lambda func, x, *_, **__: move(x, True),
    torch.tensor: _tensor,
    torch.as_tensor: _tensor,
    torch.asarray: _tensor,
    torch.Tensor.new_tensor: _new_tensor,
    torch.Tensor.tolist: _read,
    torch.Tensor.numpy: _numpy,
    torch.Tensor.__array__: _numpy,
    torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
}


def _grouped(lists: Any, *args: Any) -> Any:
    """PyTorch's own groups of tensors, for foreach, under the device that they say they are on."""
    groups = _GROUPED(lists, *args)
    found: Any = {}
    for (device, dtype), (parts, indices) in groups.items():
        on_card = _on_card(parts[0])
        found[CARD if on_card else device, dtype] = (parts, indices)
    return found


_GROUPED = torch._C._group_tensors_by_device_and_dtype


class _Stream:
    """A stream of a card that has finished whatever it is given."""

    def __init__(self, device: Any = None) -> None: ...
    def wait_event(self, event: None) -> None: ...
    def wait_stream(self, stream: _Stream) -> None: ...
    def record_event(self) -> None: ...


class FakeCard:
    """Inside, this machine has a card of ``gigabytes``; `waits` counts ``(place, what)``."""

    current: FakeCard | None = None

    def __init__(self, gigabytes: int = 24) -> None:
        self.gigabytes = gigabytes
        self.waits: Counter[tuple[str, str]] = Counter()
        self._stack = contextlib.ExitStack()

    def note(self, what: str) -> None:
        self.waits[place(), what] += 1

    def __enter__(self) -> FakeCard:
        enter = self._stack.enter_context
        properties = SimpleNamespace(
            total_memory=self.gigabytes * GIB, name="Fake Card", major=8, minor=6,
            multi_processor_count=1,
        )  # fmt: skip
        answers: dict[str, Any] = {
            "_lazy_init": None,
            "is_available": True,
            "device_count": 1,
            "current_device": 0,
            "set_device": None,
            "is_bf16_supported": True,
            "is_current_stream_capturing": False,
            "get_device_properties": properties,
            "get_device_capability": (8, 6),
            "get_device_name": "Fake Card",
            "max_memory_reserved": GIB,
            "max_memory_allocated": GIB,
            "memory_reserved": GIB,
            "memory_allocated": GIB,
            "mem_get_info": ((self.gigabytes - 1) * GIB, self.gigabytes * GIB),
            "reset_peak_memory_stats": None,
            "synchronize": None,
            "empty_cache": None,
        }
        for name, answer in answers.items():
            enter(mock.patch.object(torch.cuda, name, lambda *a, _answer=answer, **k: _answer))
        enter(mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped))
        enter(mock.patch.object(torch.cuda, "Stream", _Stream))
        enter(mock.patch.object(torch.cuda, "current_stream", _Stream))
        enter(mock.patch.object(torch.cuda, "stream", contextlib.nullcontext))
        if hasattr(torch, "accelerator"):  # from PyTorch 2.6 on
            stream = SimpleNamespace(is_capturing=lambda: False)
            enter(mock.patch.object(torch.accelerator, "current_stream", lambda *_: stream))
        FakeCard.current = self
        self._stack.callback(setattr, FakeCard, "current", None)
        forget_processes()
        self._stack.callback(forget_processes)
        enter(_Functions())
        enter(_Dispatch())
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


def forget_processes() -> None:
    """accelerate keeps the first device it was asked for, for the whole process."""
    AcceleratorState._reset_state()
    PartialState._reset_state()
