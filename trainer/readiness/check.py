"""The check that `train`, `preflight` and the page run before long work."""

from __future__ import annotations

from collections.abc import Callable

from ..config import TrainConfig, with_overrides
from ..distill.plan import fitted
from .findings import Finding, Readiness
from .parts import (
    Disk,
    feature_finding,
    image_findings,
    model_findings,
    prompt_finding,
    video_finding,
)
from .room import (
    disk_findings,
    is_small,
    memory_finding,
    optimizer_finding,
    size_findings,
    speed_finding,
    step_memory,
)
from .torch_card import Machine, card_finding, this_machine

__all__ = ["Disk", "check", "require_ready"]


def check(
    config: TrainConfig,
    disk: Disk | None = None,
    *,
    machine: Machine | None = None,
    memory: bool = True,
) -> Readiness:
    """Check in seconds everything that a training of ``config`` needs.

    Weights are read by their headers only. With ``memory`` one step is taken on shapes alone,
    where the model is large and nothing else is missing; it takes some seconds more. Raises nothing
    for what is missing or wrong: that is what it reports.
    """
    disk, machine = disk or Disk.here(), machine or this_machine()
    found = [card_finding(config.hardware.device, machine)]
    about, model = model_findings(config, disk)
    found += about
    config = config if model is None else fitted(config, model)
    found.append(feature_finding(config, model, disk))
    seen, folder = image_findings(config, model)
    found += seen + prompt_finding(config, model, folder) + video_finding(config)
    found += optimizer_finding(config, machine)
    if model is None:
        return Readiness(tuple(found))
    sizes = size_findings(config, model)
    found += sizes
    if any(finding.state == "bad" for finding in sizes):
        return Readiness(tuple(found))
    needed = None
    large = not is_small(config, model)
    if large:
        found += speed_finding(machine, config)
    if memory and large and Readiness(tuple(found)).ready:
        try:
            needed = step_memory(config, model, machine)
            found.append(memory_finding(config, needed, machine))
        except (ValueError, RuntimeError) as error:
            text = f"a training step fails with these settings: {error}"
            found.append(Finding("Training step", "bad", text))
    return Readiness((*found, *disk_findings(config, model, needed)))


def require_ready(
    config: TrainConfig,
    say: Callable[[str], None],
    disk: Disk | None = None,
    *,
    resumed: bool = False,
) -> None:
    """Run `check` and pass its findings to ``say``; raises `NotReadyError` unless a training can
    start. One that is ``resumed`` has all from its checkpoint that it started from, and was given
    the advice: then only warnings are passed on.
    """
    say("Checking that nothing is missing ...")
    if not resumed:
        readiness = check(config, disk).require()
        say(readiness.text())
        return
    known = with_overrides(config, {"start_from": "none"})
    warnings = check(known, disk).require().warnings
    say("\n".join([*(finding.report() for finding in warnings), "Nothing is missing."]))
