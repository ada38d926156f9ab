"""Where the time, the memory and the arithmetic of a step go."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import psutil
import torch
from reference_step import ReferenceDistiller
from step_setup import VARIANTS, Setting, Variant, build_variant
from torch.utils.flop_counter import FlopCounterMode

from trainer.adversarial.features import FeatureNetwork
from trainer.adversarial.heads import Discriminator
from trainer.distill import step as judging
from trainer.distill.student import Student
from trainer.families import VideoModel
from trainer.families.codec import FrameCodec
from trainer.motion.sources import Replay

MIB = 2**20
PARTS = (
    "student forward", "backward", "teacher", "target", "own prediction", "encode", "decode",
    "features", "heads", "data", "host",
)  # fmt: skip
SAMPLING_SECONDS = 0.002
MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD


def synchronise() -> None:
    """Wait for the graphics card, where there is one in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, the graphics card's work included."""
    begun = clock()
    call()
    return clock() - begun


def clock() -> float:
    """Seconds, read when the graphics card has done what it was given."""
    synchronise()
    return time.perf_counter()


class PartTimer:
    """What ``reading`` grows by in each part: seconds, or operations.

    A part that runs inside another takes its share out of the outer one.
    """

    def __init__(self, reading: Callable[[], float] = clock) -> None:
        self.reading = reading
        self.spent: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        now = self.reading()
        if self._open:
            self.spent[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def wrap(self, owner: Any, attribute: str, name: str, outermost: bool) -> Any:
        """A patch under which ``owner.attribute`` counts as part ``name``.

        With ``outermost`` only where no part is open: a prediction inside the target is the
        target's, and the discriminator's own backward belongs to the heads.
        """
        original = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if outermost and self._open:
                return original(*args, **kwargs)
            with self.part(name):
                return original(*args, **kwargs)

        return patch.object(owner, attribute, timed)

    @contextmanager
    def watching(self, variant: Variant) -> Iterator[PartTimer]:
        """Inside, the parts of ``variant``'s step are timed."""
        s = variant.distiller.session
        features: Any = FeatureNetwork if s.parts.features is None else type(s.parts.features)
        inner = [
            (Student, "target", "target"), (Student, "generate", "own prediction"),
            (Student, "teacher_step", "teacher"), (ReferenceDistiller, "teacher_step", "teacher"),
            (FrameCodec, "encode_frames", "encode"), (FrameCodec, "decode_frames", "decode"),
            (FeatureNetwork, "forward", "features"), (features, "score_captions", "features"),
            (judging, "discriminator_losses", "heads"),
            (Discriminator, "forward", "heads"),
            (VideoModel, "encode_text", "data"), (type(s.motions), "points", "data"),
            (type(s.frames), "batch", "data"), (Replay, "add", "data"),
        ]  # fmt: skip
        outer = [
            (Student, "predict", "student forward"),
            (torch.Tensor, "backward", "backward"), (torch.autograd, "grad", "backward"),
        ]  # fmt: skip
        with ExitStack() as patches:
            for targets, outermost in ((inner, False), (outer, True)):
                for owner, attribute, name in targets:
                    patches.enter_context(self.wrap(owner, attribute, name, outermost))
            yield self


def breakdown(variant: Variant) -> dict[str, float]:
    """Mean seconds of a round by part; "host" is what no part accounts for."""
    timer = PartTimer()
    count = _enough_rounds(variant, 2)
    with timer.watching(variant):
        total = sum(seconds_of(partial(variant.run, number)) for number in range(count))
    known = {part: timer.spent[part] / count for part in PARTS[:-1]}
    return known | {"host": total / count - sum(known.values())}


def _enough_rounds(variant: Variant, enough: int) -> int:
    """All rounds of the recipe, which differ in how many points are replayed; else ``enough``."""
    recipe = VARIANTS[variant.name].recipe
    return len(variant.rounds) if recipe else min(enough, len(variant.rounds))


def operations(variant: Variant) -> dict[str, float]:
    """Mean GFLOP of a round by part as torch counts them, recomputed ones included."""
    count = _enough_rounds(variant, 1)
    with FlopCounterMode(display=False) as counter:
        timer = PartTimer(counter.get_total_flops)
        with timer.watching(variant):
            for number in range(count):
                variant.run(number)
        total = counter.get_total_flops()
    known = {part: timer.spent[part] / count / 1e9 for part in PARTS[:-1]}
    return known | {"host": total / count / 1e9 - sum(known.values())}


def peak_memory(name: str, setting: Setting, timed: int = 0) -> dict[str, float]:
    """Peak MiB of a step with all its models, and the median seconds of ``timed`` rounds.

    On a graphics card what torch has allocated there; else the growth of the resident memory since
    the imports. To be called in a fresh process.
    """
    before = resident()
    variant = build_variant(name, setting)
    frames: Any = variant.distiller.session.frames

    def run_twice() -> None:
        variant.run(0)
        variant.run(1)

    with tight_allocation():
        for start in range(0, setting.images, 64):  # every image has been read when steps begin
            frames.images.batch(range(start, min(start + 64, setting.images)))
        gc.collect()
        if variant.distiller.session.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            run_twice()
            peak = torch.cuda.max_memory_allocated() / MIB
        else:
            with PeakResident() as sampler:
                run_twice()
            peak = (sampler.peak - before) / MIB
    times = [seconds_of(partial(variant.run, number)) for number in range(timed)]
    return {"mib": peak} | ({"seconds": median(times)} if times else {})


def resident() -> int:
    """Bytes of this process in memory."""
    return psutil.Process().memory_info().rss


class PeakResident:
    """Samples the resident memory from a thread of its own; ``peak`` in bytes."""

    def __enter__(self) -> PeakResident:
        self.peak = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(SAMPLING_SECONDS):
            self.peak = max(self.peak, resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@contextmanager
def tight_allocation() -> Iterator[None]:
    """With glibc, tensors over 64 KiB go back to the system when they are freed.

    Otherwise its heap keeps what fragments, and the resident memory says more about the order of
    allocations than about what a step needs. Does nothing elsewhere.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    usable = hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")
    if usable:
        libc.malloc_trim(0)
        libc.mallopt(MMAP_THRESHOLD, 64 * 1024)
    try:
        yield
    finally:
        if usable:
            libc.mallopt(MMAP_THRESHOLD, 32 * MIB)


def plot(parts: Mapping[str, Mapping[str, float]], path: Path) -> bool:
    """One stacked bar a variant; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("No plot: `python -m pip install matplotlib` (in requirements-dev.txt) makes one.")
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 1.6 + 0.5 * len(parts)), layout="constrained")
    names, left = list(parts), [0.0] * len(parts)
    for part, colour in zip(PARTS, pyplot.get_cmap("tab20").colors, strict=False):
        widths = [parts[name].get(part, 0.0) for name in names]
        axes.barh(names, widths, left=left, label=part, color=colour)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds a step")
    figure.legend(ncols=6, loc="outside lower center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
