"""Few-step quality of MCM against LCM, DPM++ and its teacher: from training to the table.

    python benchmarks/quality.py --minutes 5 --json benchmarks/results/quality.json
    python benchmarks/quality.py --styles ink my_style --fresh-style 7 --students lcm 'mcm-*' ...

Every student is trained for the same time from the same warm start, on every other image of a style
(the rest is held out for the style distance), and is measured in 1, 2, 4 and 8 steps by a judge
that no training sees. Trained LoRAs, seen clips and measured rows stay in the work folder: a run
that breaks off continues, and nothing is done twice. Beside the JSON go a Markdown table and a plot
of the same name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from quality_claims import TEACHER_STEPS, claims_text, decide_claims  # noqa: E402
from quality_report import markdown, plot  # noqa: E402
from quality_rows import RowMaker, solvers, student_sources  # noqa: E402
from quality_students import (  # noqa: E402
    Budget,
    Plan,
    Student,
    Style,
    digest,
    files_hash,
    find_style,
    fresh_style,
    plan_student,
    select,
    student_table,
)

from minimaker.truth import JUDGE, PROMPTS  # noqa: E402
from trainer.config import fields  # noqa: E402
from trainer.evaluate.bench import Bench, machine  # noqa: E402
from trainer.evaluate.distances import RESAMPLES  # noqa: E402
from trainer.evaluate.networks import Measuring, judge_network  # noqa: E402
from trainer.evaluate.rows import LEVEL  # noqa: E402
from trainer.evaluate.truth import draw_prompts  # noqa: E402
from trainer.families import load_model  # noqa: E402
from trainer.files import atomic_write, file_sha256  # noqa: E402
from trainer.lora.formats import LoraFile, read_lora  # noqa: E402
from trainer.runs.folder import Run  # noqa: E402
from trainer.runs.state import read_state  # noqa: E402


@dataclass(frozen=True)
class Job:
    """Everything checked and nothing done yet."""

    options: argparse.Namespace
    styles: list[Style]
    plans: list[Plan]
    bench: Bench
    model_hash: str


def prepare(options: argparse.Namespace, network: Measuring | None = None) -> Job:
    """Cut the styles in two, choose the students, load the model; ``network`` replaces the judge.

    Raises ``ValueError`` for what cannot be used: styles, students, settings, counts.
    """
    settings = dict(_setting(text) for text in options.set)
    styles = _styles(options)
    table = student_table(styles, options.work, options.model)
    model = load_model(options.model)
    model_hash = _model_hash(model.path)
    budget = Budget(options.minutes, options.train_steps)
    shared = {"model": options.model, "seed": options.seed, **settings}
    plans = [
        plan_student(student, budget, shared, model_hash, options.work)
        for student in select(table, options.students)
    ]
    captions = draw_prompts(options.count, options.seed, PROMPTS)
    bench = Bench(
        model, network or judge_network(JUDGE), captions, options.seed, progress=_progress
    )
    return Job(options, styles, plans, bench, model_hash)


def make_table(job: Job, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Train what is missing, measure what is missing: rows, claims and meta data."""
    options = job.options
    maker = RowMaker(job.bench, options.work, job.model_hash, options.guidance)
    worlds: list[Style | None] = [None, *job.styles]
    rows = [maker.row(source, style) for source in solvers(options.guidance) for style in worlds]
    trained: dict[str, Any] = {}
    for plan in job.plans:
        run = plan.train(log)
        file = read_lora(run.export_path, job.bench.model.network)
        student = plan.student
        trained[student.name] = _training(run, student, file)
        against = [style for style in worlds if student.style in (None, style and style.name)]
        rows += [maker.row(s, style) for s in student_sources(student, file) for style in against]
    known = [style for style in worlds if style is None or style.look is not None]
    references = [maker.true_row(style) for style in known]
    claims, missing = decide_claims(rows, references)
    found = {"students": trained, "undecided": missing, "references": references}
    return {"rows": rows, "claims": claims, "meta": _meta(job) | found}


def _styles(options: argparse.Namespace) -> list[Style]:
    cut = {"uncaptioned": options.uncaptioned, "images": options.images}
    styles = [find_style(given, options.work, **cut) for given in options.styles]
    styles += [fresh_style(seed, options.work, **cut) for seed in options.fresh_style]
    names = [style.name for style in styles]
    if len(set(names)) < len(names):
        raise ValueError(f"`--styles`: two of {', '.join(names)} have one name; rename a folder.")
    return styles


def _model_hash(folder: Path) -> str:
    """Of the model's weights and prompts; LoRAs that lie beside them are no part of it."""
    parts = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "loras")
    weights = [files_hash(part, "*.safetensors") for part in parts]
    loose = [*folder.glob("*.safetensors"), *folder.glob("prompts.txt")]
    return digest(*weights, *(file_sha256(path) for path in sorted(loose)))


def _setting(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or name not in {record.name for record in fields()}:
        raise ValueError(f"`--set` {text!r}: give NAME=VALUE with a setting such as lora.rank=8.")
    return name, value


def _training(run: Run, student: Student, file: LoraFile) -> dict[str, Any]:
    return {
        "preset": student.preset,
        "changes": dict(student.overrides),
        "style": student.style,
        "images": None if student.images is None else student.images.name,
        "steps": read_state(run).step,
        "run": run.name,
        "lora_sha256": file.hashes.tensors_sha256,
    }


def _meta(job: Job) -> dict[str, Any]:
    options, bench = job.options, job.bench
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(bench.model),
        "minutes": None if options.train_steps else options.minutes,
        "train_steps": options.train_steps,
        "settings": list(options.set),
        "count": options.count,
        "seeds": {"training": options.seed, "prompts": options.seed, "noise": options.seed},
        "teacher": {"guidance_scale": options.guidance, "reference_steps": TEACHER_STEPS},
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "accuracies": "Wilson"},
        "model": {
            "name": bench.model.name,
            "sha256": bench.model.base_hash,
            "files_sha256": job.model_hash[:64],
        },
        "features": {"name": bench.network.name, "sha256": bench.network.hash},
        "styles": {
            style.name: {"held_out_sha256": style.hash, "true_videos": style.look is not None}
            for style in job.styles
        },
    }


def _progress(what: str, done: int, total: int) -> None:
    end = "\n" if done >= total else ""
    print(f"\r{what}: {done}/{total} clips   ", end=end, file=sys.stderr, flush=True)


def save(table: dict[str, Any], path: Path) -> list[Path]:
    """The JSON at ``path``, and beside it the Markdown table and the plot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(path, (text + "\n").encode("utf-8"))
    page = markdown(table["rows"], table["claims"], table["meta"]["references"])
    atomic_write(path.with_suffix(".md"), page.encode("utf-8"))
    plot(table["rows"], path.with_suffix(".png"))
    return [path, path.with_suffix(".md"), path.with_suffix(".png")]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = found.add_argument
    add("--minutes", type=float, default=5.0, help="training time of each student (5)")
    add("--styles", nargs="*", default=["poster", "ink", "neon"], metavar="NAME_OR_DIR",
        help="bundled styles or folders of images; ablations are of the first")  # fmt: skip
    add("--fresh-style", type=int, nargs="*", default=[], metavar="SEED",
        help="also styles drawn at random now")  # fmt: skip
    add("--uncaptioned", action="store_true", help="also each style without its captions")
    add("--images", type=int, metavar="N", help="also each style with only N training images")
    add("--students", nargs="+", metavar="NAME",
        help="only these; * and ? match. lcm-videos and mcm-videos train on rendered public video "
        "in place of the teacher's clips, and only when named")  # fmt: skip
    add("--count", type=int, default=128, help="clips of each row (128)")
    add("--seed", type=int, default=0, help="of training, prompts and noise (0)")
    add("--guidance", type=float, default=3.0, help="the teacher's CFG scale (3.0)")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE",
        help="settings of all students, such as adversarial.ratio=2")  # fmt: skip
    add("--work", type=Path, default=Path("work/quality"), help="LoRAs, seen clips and rows")
    add("--json", type=Path, required=True, metavar="OUT", help="also writes OUT's .md and .png")
    add("--model", default="mini", help=argparse.SUPPRESS)
    add("--train-steps", type=int, help=argparse.SUPPRESS)
    return found


def main() -> None:
    arguments = parser()
    options = arguments.parse_args()
    try:
        job = prepare(options)
    except ValueError as error:
        arguments.error(str(error))
    table = make_table(job)
    print(claims_text(table["claims"], table["meta"]["undecided"]))
    for file in save(table, options.json):
        print(f"Wrote {file}")


if __name__ == "__main__":
    main()
