"""A run's state as text: status, progress, time left, and what to do after a failure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from trainer.runs.folder import Run
from trainer.runs.queue import Queue
from trainer.runs.state import RunState, read_state

WORDS = {
    "waiting": ("Waiting", "quiet"),
    "starting": ("Starting", "live"),
    "preflight": ("Checking", "live"),
    "running": ("Training", "live"),
    "stopping": ("Saving", "live"),
    "stopped": ("Stopped", "quiet"),
    "finished": ("Finished", "good"),
    "failed": ("Failed", "bad"),
    "disk full": ("Disk full", "bad"),
    "interrupted": ("Interrupted", "warn"),
    "new": ("Not started", "quiet"),
}
"""Status -> the word that is shown, and its colour."""

ADVICE = (
    ("DiskFullError", "Free some space (old runs and checkpoints are the largest), then press "
     "Resume. Everything up to the last checkpoint is safe."),
    ("OutOfMemory", "The device has too little memory for these settings. On the Train tab, choose "
     "less under Graphics memory, or set Saving memory to tight, and start again."),
    ("TrainingDivergedError", "Training diverged. Press 'Use these settings again' on the Runs "
     "tab, halve the learning rate, and start again."),
    ("RunLockedError", "Another process is training this run. Wait until it ends."),
    ("NotReadyError", "Get or correct what is named above (the Train tab has a field for each "
     "missing file), then press Resume, or 'Use these settings again' on the Runs tab."),
    ("DataError", "Look at the Data tab: it lists every image that cannot be used, and why."),
    ("PromptError", "Give the images captions, or choose a prompts file on the Train tab."),
    ("ModelError", "Choose a base model that is marked ready on the Train tab."),
    ("ConfigError", "Press 'Use these settings again' on the Runs tab and correct the setting "
     "named above."),
)  # fmt: skip
"""Part of an error's name -> what to do."""


@dataclass(frozen=True)
class RunStatus:
    """A run's state as the page shows it; ``place`` is its place in the queue, 0 if not in it."""

    run: Run
    state: RunState
    status: str
    place: int = 0

    @property
    def word(self) -> str:
        return WORDS[self.status][0]

    @property
    def can_stop(self) -> bool:
        """A request to stop is lost before the trainer has the run's lock."""
        return self.status in ("running", "preflight") or (
            self.status == "starting" and self.state.live and self.state.pid is not None
        )

    @property
    def can_resume(self) -> bool:
        return self.status in ("stopped", "failed", "disk full", "interrupted", "new")

    @property
    def busy(self) -> bool:
        return self.status in ("waiting", "starting", "preflight", "running", "stopping")


def run_status(run: Run, queue: Queue) -> RunStatus:
    """The status of ``run``, the queue's view of it included."""
    state = read_state(run)
    jobs = queue.jobs()
    place = next((number for number, job in enumerate(jobs, 1) if job.run == run.name), 0)
    working = state.live and state.pid is not None
    if working:
        stopping = run.stop_path.exists() and state.status == "running"
        return RunStatus(run, state, "stopping" if stopping else state.status, place)
    if place:
        first = place == 1 and queue.busy
        return RunStatus(run, state, "starting" if first else "waiting", place)
    if state.live:
        return RunStatus(run, state, "new")
    full = state.status == "failed" and "DiskFullError" in (state.error or "")
    return RunStatus(run, state, "disk full" if full else state.status)


def chip(status: RunStatus) -> str:
    """A small coloured label."""
    word, colour = WORDS[status.status]
    return f'<span class="chip {colour}">{escape(word)}</span>'


def header(status: RunStatus | None) -> str:
    """The line on top of every tab."""
    if status is None:
        return (
            '<div class="top"><span class="name">No run yet</span><span class="quiet">The form is '
            "filled in: open <b>Train</b> and press <b>Start training</b>.</span></div>"
        )
    state = status.state
    facts = [f"<b>{escape(status.run.name)}</b>", chip(status)]
    if status.status == "waiting":
        facts.append(f"number {status.place} in the queue")
    if state.steps and status.status != "new":
        facts.append(f"step {state.step:,} of {state.steps:,}")
    waiting = state.stage if status.busy else ""
    if waiting:
        count = f" {state.stage_done:,} of {state.stage_total:,}" if state.stage_total else ""
        facts.append(escape(f"{waiting}{count}"))
    if (waiting or status.status == "running") and state.eta_seconds is not None:
        facts.append(f"about {duration(state.eta_seconds)} left")
    if waiting and state.next:
        facts.append(f'<span class="quiet">next: {escape(state.next)}</span>')
    if status.status == "running" and state.memory_gib:
        facts.append(f"{state.memory_gib:.1f} GiB")
    done, total = (state.stage_done, state.stage_total) if waiting else (state.step, state.steps)
    share = 100 * min(done / total, 1) if total else 0
    shown = "".join(f"<span>{fact}</span>" for fact in facts)
    return (
        f'<div class="top" data-status="{status.status}">{shown}</div>'
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuenow="{share:.0f}" '
        f'aria-valuemin="0" aria-valuemax="100"><i style="width:{share:.1f}%"></i></div>'
    )


def problem(status: RunStatus) -> str:
    """The last error in full with what to do about it; empty when there is none."""
    error, kind = status.state.error, status.status
    if kind == "interrupted":
        text = "The process has ended: a crash, a power cut, or somebody stopped it."
        advice = "Press Resume: it continues exactly from the last checkpoint."
        return notice("warn", "Interrupted", text, advice)
    if kind not in ("failed", "disk full") or not error:
        return ""
    general = "The log below has the details. Resume continues from the last checkpoint."
    advice = next((text for name, text in ADVICE if name in error), general)
    return notice("bad", WORDS[kind][0], error, advice)


def notice(colour: str, title: str, text: str, advice: str = "") -> str:
    """A box with a message; line breaks of ``text`` stay."""
    more = f"<p><b>What to do:</b> {escape(advice)}</p>" if advice else ""
    return (
        f'<div class="notice {colour}"><b>{escape(title)}</b><pre>{escape(text)}</pre>{more}</div>'
    )


def duration(seconds: float | None) -> str:
    """ "45 s", "12 min", "3 h 5 min"; a dash when it is not known."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
