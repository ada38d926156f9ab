"""Clips of a run: the original beside the student, and the student over the course of training."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from trainer.runs.folder import Run

_FOLDER = re.compile(r"(step|own)-(\d{6,})(?:-(\d{3,}))?")
_CLIP = re.compile(r"prompt-(\d+)-(?:(teacher)|(steps|strength)-(\d+))\.mp4")
PAUSE = '<button type="button" class="pause">Pause clips</button>'
"""The page's script handles this button and sets its label."""
Method = tuple[int, int]
"""What made a clip, in the order of columns: (0, 0) the original, (1, sampling steps) the student,
(2, percent) the student at that strength of its LoRA."""


def sample_folders(run: Run | None, exported: int | None = None) -> list[tuple[str, str]]:
    """(label, folder name) of every preview with clips in it, the newest first; those of the
    ``exported`` step are marked.
    """
    found = []
    entries = [] if run is None or not run.samples.is_dir() else list(run.samples.iterdir())
    for entry in entries:
        match = _FOLDER.fullmatch(entry.name)
        if match and (entry / "prompts.json").is_file():
            step, number = int(match[2]), int(match[3] or 0)
            own = f", your prompt {number}" if match[1] == "own" else ""
            mark = ", exported" if step == exported else ""
            found.append((entry.stat().st_mtime_ns, f"step {step}{mark}{own}", entry.name))
    return [(label, name) for _, label, name in sorted(found, reverse=True)]


def samples(
    run: Run | None,
    name: str | None,
    references: Sequence[Path] = (),
    exported: int | None = None,
) -> str:
    """The clips of one preview: a row per prompt, a column per method; above them the
    ``references``, pictures of the style. The ``exported`` step is named.
    """
    folders = sample_folders(run, exported)
    if run is None or not folders:
        return (
            '<p class="empty">No clips yet. They appear with the first preview of a training; '
            "press <b>Sample now</b> to get one at once.</p>"
        )
    known = [folder for _, folder in folders]
    folder = run.samples / (name if name in known else known[0])
    prompts, clips = _read(folder)
    methods = sorted({method for _, method in clips})
    original = f"original, {run.config().preview.teacher_steps} steps"
    rows = []
    for number, prompt in enumerate(prompts, 1):
        cells = [
            _cell(clips.get((number, method)), _title(method) or original) for method in methods
        ]
        rows.append(f"<h3>{escape(prompt)}</h3>{_row_of(cells)}")
    above = f'<div class="over">{_which(folder.name, exported)}{PAUSE}</div>'
    shown = f'{_references(references)}{above}<div class="samples">{"".join(rows)}</div>'
    return f"{shown}{_over_time(run, known, exported)}"


def _references(pictures: Sequence[Path]) -> str:
    """What the clips should look like."""
    if not pictures:
        return ""
    cells = "".join(
        f'<img src="{file_address(path)}" alt="Style image {number} of {len(pictures)}">'
        for number, path in enumerate(pictures, 1)
    )
    return f'<h3>Your style images, for comparison</h3><div class="references">{cells}</div>'


def _which(folder: str, exported: int | None) -> str:
    """Which step the clips are of, and whether it is that of the LoRA used in ComfyUI."""
    match = _FOLDER.fullmatch(folder)
    step = int(match[2]) if match else 0
    said = f"These clips are from training step {step:,}"
    if exported == step:
        said += ", the exported LoRA"
    elif exported is not None:
        said += f"; the exported LoRA is from step <b>{exported:,}</b>"
    return f'<p class="quiet">{said}.</p>'


def _over_time(run: Run, names: list[str], exported: int | None) -> str:
    """The first prompt at the usual number of steps, from the oldest preview to the newest."""
    cells = []
    for name in sorted(name for name in names if name.startswith("step-"))[-8:]:
        _, clips = _read(run.samples / name)
        counts = sorted(steps for number, (kind, steps) in clips if number == 1 and kind == 1)
        if counts:
            steps = 4 if 4 in counts else counts[-1]
            step = int(name[5:])
            mark = ", exported" if step == exported else ""
            cells.append(_cell(clips[1, (1, steps)], f"step {step}{mark}"))
    if len(cells) < 2:
        return ""
    return f"<h3>During the training</h3>{_row_of(cells)}"


def _row_of(cells: Sequence[str]) -> str:
    return f'<div class="clips" style="--columns: {len(cells)}">{"".join(cells)}</div>'


def _read(folder: Path) -> tuple[list[str], dict[tuple[int, Method], Path]]:
    """Prompts, and clips by number of the prompt and `Method`."""
    try:
        prompts = [str(text) for text in json.loads((folder / "prompts.json").read_bytes())]
    except (OSError, ValueError):
        prompts = []
    clips = {}
    for file in folder.glob("prompt-*.mp4"):
        match = _CLIP.fullmatch(file.name)
        if match:
            kind = 0 if match[2] else 1 + (match[3] == "strength")
            clips[int(match[1]), (kind, int(match[4] or 0))] = file
    return prompts, clips


def _title(method: Method) -> str:
    kind, number = method
    if kind == 2:
        return f"strength {number / 100:g}"
    return f"yours, {number} step{'s'[: number > 1]}" if kind else ""


def _cell(clip: Path | None, title: str) -> str:
    if clip is None:
        return f'<div class="clip"><div class="none">-</div><span>{escape(title)}</span></div>'
    address = file_address(clip, clip.stat().st_mtime_ns)
    # The script loads it when it is in sight: a page full of open downloads would hold up the rest.
    return (
        f'<div class="clip"><video class="sync" data-src="{address}" aria-label="{escape(title)}" '
        f"muted loop playsinline disablepictureinpicture></video><span>{escape(title)}</span></div>"
    )


def file_address(path: Path, version: int = 0) -> str:
    """Where the page gets a file of the runs folder; ``version`` tells a rewritten one apart."""
    return escape(f"gradio_api/file={quote(path.as_posix(), safe='/:')}?v={version}", quote=True)
