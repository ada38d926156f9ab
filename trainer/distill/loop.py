"""The training loop.

It repeats the step and keeps a run folder that viewers can follow and any process can resume.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from ..config import TrainConfig
from ..files import DiskFullError, disk_full
from ..runs.checkpoints import (
    checkpoint_path,
    checkpoint_steps,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from ..runs.events import EventLog, best_step, read_events
from ..runs.folder import Run
from ..runs.guards import NanGuard, StopRequested, StopSignal
from ..runs.lock import RunLock
from ..runs.progress import Progress, RunLog, memory_gib
from ..runs.state import RunState, StateBoard, Status
from ..words import quoted
from .batch import Session
from .distiller import Distiller, StepReport
from .export import export_run, how_to_use
from .preview import Previewer, preview_prompts, style_of
from .session import build_session
from .sources import stored_adapter
from .waits import FIRST_PREVIEW, PREVIEW, SAVING, Waits

STATE_SECONDS = 1.0
NO_STEP = "No training step was done yet: there is nothing to export, and the next start begins "
"from zero."
BAR_VALUES = ("consistency", "adversarial", "caption")

Check = Callable[..., None]
"""Called with the config and a log, and whether the run goes on from a checkpoint (``resumed``);
raises if something is missing.
"""


@dataclass
class Loop:
    """One process training one run. Only the main process of several writes to the folder."""

    run: Run
    config: TrainConfig
    session: Session
    distiller: Distiller
    previewer: Previewer
    events: EventLog
    log: RunLog
    stop: StopSignal
    board: StateBoard
    step: int = 0
    trained_seconds: float = 0.0
    stopping: bool = False
    _state_written: float = field(default=0.0, repr=False)

    def resume(self, folder: Path | None) -> None:
        """Continue from the checkpoint in ``folder``, if there is one."""
        if folder is None:
            self.log("No checkpoint yet: the run starts from the beginning.")
            return
        found = load_checkpoint(folder, self.session.model.device)
        self.distiller.load(found.tensors, found.torch_state)
        self.distiller.guard.last_checkpoint = folder
        self.step, self.trained_seconds = found.step, float(found.state["trained_seconds"])
        self.log(f"Resumed at step {self.step} from {folder.name}.")

    def train(self) -> str:
        """Train until the goal, the time limit or a stop; the final status."""
        with Progress(self.config.steps, self.run.name, self.step, log=self.log) as progress:
            while not self._is_over():
                begun = time.monotonic()
                report = self.distiller.step(self.step, self.done)
                self.step += 1
                self.trained_seconds += time.monotonic() - begun
                shown = {k: report.values[k] for k in BAR_VALUES if k in report.values}
                progress.update(1, **shown)
                self._follow_the_clock(progress)
                self._record(report, progress)
                self._occasionally()
        if self.stopping:
            reason = self.stop.reason or "another process was asked to"
            self.log(f"Stopping at step {self.step} ({reason}): saving and exporting.")
            return "stopped"
        return "finished"

    def _follow_the_clock(self, progress: Progress) -> None:
        """With a time budget the goal is the number of steps that will fit into it."""
        if self.config.minutes is None or not progress.seconds_per_step:
            return
        left = max(60 * self.config.minutes - self.trained_seconds, 0.0)
        fitting = self.step + int(left / progress.seconds_per_step)
        progress.set_total(min(self.config.steps, max(fitting, self.step)))

    @property
    def done(self) -> float:
        """Share of the run that is over, by its steps or its time, whichever is further: 0 to 1."""
        minutes, by_steps = self.config.minutes, self.step / self.config.steps
        by_time = 0.0 if minutes is None else self.trained_seconds / (60 * minutes)
        return min(max(by_steps, by_time), 1.0)

    def _is_over(self) -> bool:
        self._agree()
        return self.stopping or self.done >= 1

    def _agree(self) -> None:
        """Make all processes stop at the same step.

        If one stopped alone, the others would wait for its gradients.
        """
        self.stopping, accelerator = self.stop.requested, self.session.accelerator
        if accelerator.num_processes > 1:
            mine = torch.tensor([self.stopping, self.trained_seconds], device=accelerator.device)
            asked, self.trained_seconds = accelerator.reduce(mine, reduction="mean").tolist()
            self.stopping = asked > 0

    def _record(self, report: StepReport, progress: Progress) -> None:
        if not self.session.accelerator.is_main_process:
            return
        values = {k: float(f"{v:.6g}") for k, v in report.values.items()}
        self.events.append("step", step=self.step, **values)
        if not report.taken:
            self.log(f"Step {self.step}: a loss or gradient is not finite; the step was skipped.")
            self.events.append("skipped", step=self.step)
        now = time.monotonic()
        if now - self._state_written > STATE_SECONDS:
            self._state_written = now
            self.update(
                step=self.step, steps=progress.total, eta_seconds=progress.eta_seconds,
                memory_gib=memory_gib(), seconds_per_step=progress.seconds_per_step,
            )  # fmt: skip

    def _occasionally(self) -> None:
        """Make a preview and a checkpoint when due; the end of the run makes its own."""
        over = self.done >= 1 or self.stop.requested
        if over or not self.session.accelerator.is_main_process:
            return
        every = self.config.preview.every
        if self.run.take_preview_request() or (every and self.step % every == 0):
            self.preview()
        if self.step % self.config.checkpoint.every == 0:
            self.checkpoint()

    def first_preview(self) -> None:
        """A preview of the untrained student, so that there is something to see before the first
        step.
        """
        wanted = self.config.preview.every and not self.step and not self.stop.requested
        if wanted and self.session.accelerator.is_main_process:
            self.preview(FIRST_PREVIEW)

    def preview(self, what: str = PREVIEW, stop: Callable[[], bool] | None = None) -> Path | None:
        """Write a preview; one that fails is reported and never ends the run.

        ``stop`` says whether to abort it; by default, if the run was asked to stop.
        """
        folder = self.run.samples / f"step-{self.step:06d}"
        waits = Waits(self.log, self.update, stop or (lambda: self.stop.requested))
        try:
            made = self.previewer.make(folder, lambda done, total: waits(what, done, total))
        except StopRequested:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        except Exception as error:  # no error in a preview may end the run
            reason = disk_full(error, folder) or error
            self.log(f"The preview at step {self.step} failed: {reason}")
            self.log.exception(error)
            return None
        finally:
            waits.over()
        self.events.append("preview", step=self.step, folder=folder.name, **made.event())
        if made.alarm and self.step:
            self.events.append("alarm", step=self.step, message=made.alarm)
            self.log(f"Warning: {made.alarm}")
        return folder

    def checkpoint(self) -> None:
        saved = save_checkpoint(
            self.run,
            self.step,
            self.distiller.tensors(),
            {"trained_seconds": self.trained_seconds},
            self.config.checkpoint.keep,
            self.distiller.optimizer_states(),
            self._best(),
        )
        self.distiller.guard.last_checkpoint = saved
        self.events.append("checkpoint", step=self.step, folder=saved.name)

    def _best(self) -> int | None:
        """Step of the checkpoint whose preview is best, by motion and style together."""
        previews = read_events(self.run.events_path, "preview")
        return best_step(previews, checkpoint_steps(self.run))

    def _take_the_best(self) -> int:
        """Load the averaged adapter of the best checkpoint for the export.

        Returns its step: the last one, unless previews show that an earlier one is better.
        """
        best = self._best()
        if best is None or best == self.step:
            return self.step
        found = load_checkpoint(checkpoint_path(self.run, best), self.session.model.device)
        self.session.ema.load_state_dict(found.tensors["ema"])
        self.log(
            f"Step {best} is exported: its previews have more motion and style than those of step "
            f"{self.step}. To export the last step, run `python -m trainer export "
            f"{quoted(self.run.path)} --checkpoint {self.step}`."
        )
        return best

    def update(self, **changes: object) -> None:
        self.board.update(**changes)

    def finish(self, status: str) -> None:
        """Checkpoint, preview and export, then the final state; just that before the first step."""
        if not self.step or not self.session.accelerator.is_main_process:
            self.update(status=status, message=NO_STEP)
            return
        self.update(status="stopping", step=self.step, eta_seconds=None)
        self.checkpoint()
        if self.config.preview.every:
            self.preview(SAVING, stop=lambda: False)
        step = self._take_the_best()
        folder = self.run.samples / f"step-{step:06d}"
        exported = export_run(self.run, self.session, step, folder)
        self.events.append("export", step=step, file=exported.path.name, sha256=exported.sha256)
        self.log(how_to_use(exported, step, self.run, self.config, status))
        self.update(status=status, step=self.step, message=f"LoRA: {exported.path.name}")


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Device and processes by accelerate; they wait for the first one's previews and saving.

    Raises ValueError when the run asks for a card and there is none.
    """
    wanted = config.hardware.device
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    found = Accelerator(mixed_precision="no", cpu=wanted == "cpu", kwargs_handlers=[patience])
    if wanted not in ("auto", found.device.type):
        raise ValueError(
            f"The device {wanted} is not available: PyTorch finds only {found.device.type}. "
            "Install a PyTorch built for your card (README, Install), or set the device to auto."
        )
    return found


def train(run: Run, check: Check | None, *, resume: bool = False) -> RunState:
    """Train the run at ``run`` to its end in this process and return its last state.

    ``check`` raises if something is missing (`readiness.require_ready`); None if that was checked a
    moment ago. Any failure is written to ``state.json`` and ``log.txt`` before it is raised again;
    checkpoints stay.
    """
    config = run.config()
    accelerator = make_accelerator(config)
    main = accelerator.is_main_process
    log = RunLog(run.log_path) if main else RunLog(None, silent=True)
    board = StateBoard(run, RunState.of_this_process(config.steps), main)
    with _locked(run, main), StopSignal(run.stop_path) as stop:
        if main:
            run.clear_stop()
        board.update()
        try:
            newest = latest_checkpoint(run) if resume else None
            if main and check is not None:
                check(config, log, resumed=newest is not None)
            return _train_locked(run, config, accelerator, log, stop, board, resume, newest)
        except StopRequested as request:
            log(str(request))
            board.update(status="stopped", eta_seconds=None, message=f"{request} {NO_STEP}")
            return board.state
        except BaseException as error:
            _note_failure(error, run, log, board)
            raise


def _note_failure(error: BaseException, run: Run, log: RunLog, board: StateBoard) -> None:
    """Write the traceback to the log and the reason to the state; a full disk is reported as
    such.
    """
    reason = disk_full(error, run.path) or error
    status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    with suppress(DiskFullError):  # then there is no room for the log either
        log.exception(error)
    board.update(status=status, eta_seconds=None, error=f"{type(reason).__name__}: {reason}")


def _locked(run: Run, main: bool) -> AbstractContextManager[object]:
    return RunLock(run) if main else nullcontext()


def _train_locked(
    run: Run,
    config: TrainConfig,
    accelerator: Accelerator,
    log: RunLog,
    stop: StopSignal,
    board: StateBoard,
    resume: bool,
    newest: Path | None,
) -> RunState:
    waits = Waits(log if board.writes else lambda _: None, board.update, _stop_for_all(run, stop))
    stored, lists = stored_adapter(newest), run.path if board.writes else None
    session = build_session(config, accelerator, log, waits, stored=stored, lists=lists)
    waits.over()
    distiller = Distiller(session, NanGuard())
    chosen = preview_prompts(config, session.prompts)
    previewer = Previewer(session, chosen, style=style_of(session))
    resume_step = int(newest.name.rpartition("-")[2]) if newest else 0
    with EventLog(run.events_path, resume_step if resume else None) as events:
        loop = Loop(run, config, session, distiller, previewer, events, log, stop, board)
        if resume:
            loop.resume(newest)
        events.append(
            "start", step=loop.step, device=str(session.model.device), resumed=resume,
            processes=accelerator.num_processes,
        )  # fmt: skip
        loop.update(step=loop.step)
        loop.first_preview()
        loop.update(status="running")
        status = loop.train()
        loop.finish(status)
    return board.state


def _stop_for_all(run: Run, stop: StopSignal) -> Callable[[], bool]:
    """Whether to stop; a signal to one process becomes the stop file that all of them see."""

    def asked() -> bool:
        if stop.signal_name is not None and not run.stop_path.exists():
            run.request_stop()
        return stop.requested

    return asked
