"""Exported LoRAs of a run: the files, their headers, and where to copy them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from trainer.files import atomic_write
from trainer.lora.files import read_metadata
from trainer.lora.inspect import inspect_file
from trainer.runs.folder import Run, slug

from .places import PlaceError, Places

SUFFIX = ".safetensors"
LONG = 240


def lora_files(run: Run | None) -> list[str]:
    """Names of the exported files of a run, the final one first."""
    if run is None:
        return []
    names = [file.name for file in run.path.glob(f"*{SUFFIX}") if not file.name.startswith(".")]
    return sorted(names, key=lambda name: (name != run.export_path.name, name))


def lora_file(run: Run, name: str | None) -> Path:
    """The exported file called ``name``; `PlaceError` for anything else."""
    if not name or name not in lora_files(run):
        raise PlaceError("Choose one of the exported LoRAs of this run.")
    return run.path / name


def describe(file: Path) -> str:
    """Hashes, format and every line of the header, as HTML."""
    found = inspect_file(file)
    rows = [
        ("Made for", found.base), ("Format", found.format), ("Modules", str(len(found.modules))),
        ("Rank, alpha", f"{found.rank}, {found.alpha}"), ("Size", f"{found.size / 2**20:.2f} MiB"),
        ("sha256", found.sha256), ("AutoV2", found.autov2),
        ("Tensors' sha256", found.tensors_sha256),
    ]  # fmt: skip
    hidden = ("workflow", "modelspec.thumbnail")
    rows += [(k, v) for k, v in sorted(found.metadata.items()) if k not in hidden]
    lines = "".join(
        f"<tr><td>{escape(key)}</td><td><code>{escape(_short(value))}</code></td></tr>"
        for key, value in rows
    )
    thumbnail = found.metadata.get("modelspec.thumbnail", "")
    picture = ""
    if thumbnail.startswith("data:image/jpeg;base64,"):
        picture = f'<img class="thumb" alt="" src="{escape(thumbnail, quote=True)}">'
    header = (
        '<details><summary>All details of the file</summary><div class="card">'
        f'<table class="files fixed">{lines}</table></div></details>'
    )
    return f'<div class="card use">{picture}{_use(found.metadata)}</div>{header}'


def _use(metadata: Mapping[str, str]) -> str:
    """How to use a LoRA, and what to do next."""
    steps = metadata.get("mcm.steps_allowed", "1,2,4,8").replace(",", ", ")
    guidance = metadata.get("mcm.guidance_scale", "1").removesuffix(".0")
    trigger = metadata.get("modelspec.trigger_phrase", "")
    rows = [
        ("Strength", metadata.get("mcm.strength", "1").removesuffix(".0")),
        ("Steps", f"{metadata.get('mcm.steps', '4')} ({steps} work)"),
        ("CFG", guidance),
        ("Sampler, scheduler", f"{metadata.get('mcm.sampler', 'lcm')}, simple"),
        ("Trigger word", trigger or "none is needed"),
    ]
    facts = "".join(f"<div><span>{k}</span><b>{escape(v)}</b></div>" for k, v in rows)
    return (
        f'<div><h3>Use it</h3><div class="facts">{facts}</div><ol>'
        "<li>Copy it to ComfyUI, below, or download it into <code>ComfyUI/models/loras</code>.</li>"
        "<li>Drop the file on ComfyUI's canvas: it opens its own workflow. Press <b>Run</b>.</li>"
        "<li>In a graph of your own: <b>Load MCM LoRA</b> after the model loader, then a plain "
        "KSampler with the values above.</li></ol></div>"
    )


def workflow_file(file: Path) -> Path | None:
    """The workflow of an exported LoRA as a JSON file beside it, to be downloaded."""
    text = read_metadata(file).get("workflow")
    if not text:
        return None
    target = file.with_name(f"{file.stem}-workflow.json")
    content = text.encode("utf-8")
    if not target.is_file() or target.read_bytes() != content:
        atomic_write(target, content)
    return target


def loras_folder(places: Places, typed: str = "") -> Path:
    """ComfyUI's folder of LoRAs: the known ComfyUI's, or that of the ComfyUI at ``typed``.

    Raises `PlaceError` for a folder that is no ComfyUI, or that the page may not use.
    """
    if places.loras is not None:
        return places.loras
    folder = places.folder(typed)
    if not (folder / "models").is_dir():
        raise PlaceError(
            f"'{folder}' is not ComfyUI's folder: it has no folder 'models'. Enter the folder that "
            "contains main.py."
        )
    return folder / "models" / "loras"


def copy_to_comfyui(
    file: Path, name: str, places: Places, overwrite: bool, typed: str = ""
) -> Path:
    """Copy a LoRA to ComfyUI's ``models/loras`` in one piece; see `loras_folder`.

    Raises `PlaceError` for a name that exists unless ``overwrite``.
    """
    folder = loras_folder(places, typed)
    stem = slug(name.strip().removesuffix(SUFFIX) if name else file.stem)
    target = folder / f"{stem}{SUFFIX}"
    if target.exists() and not overwrite:
        raise PlaceError(f"'{target.name}' exists in {folder}; choose another name, or tick "
                         "'Overwrite existing file'.")  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(target, file.read_bytes())
    return target


def _short(value: str) -> str:
    line = " ".join(value.split())
    return line if len(line) <= LONG else f"{line[:LONG]}... ({len(value)} letters)"
