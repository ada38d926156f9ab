"""Few-step quality of MCM against LCM, DPM++, its teacher and what artists do today: from training
to the table.

    python benchmarks/quality.py --minutes 5 --json benchmarks/results/quality.json
    python benchmarks/quality.py --styles ink my_style --fresh-style 7 --students lcm 'mcm-*' ...
    python benchmarks/quality.py --styles 8 --seeds 3 --json any_style.json

Every student is trained for the same time from the same warm start, plain style LoRAs for the same
time from nothing, on every other image of a style (the rest is held out for the style distance),
and is measured in 1, 2, 4 and 8 steps by a judge that no training sees. A number among the styles
draws so many new ones. Trained LoRAs, seen clips and measured rows stay in the work folder: a run
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

from quality_claims import (  # noqa: E402
    ARTISTS,
    TEACHER_STEPS,
    claims_text,
    decide_claims,
    worst_rows,
)
from quality_report import markdown, plot  # noqa: E402
from quality_rows import Row, RowMaker, pooled, solvers, student_sources  # noqa: E402
from quality_students import (  # noqa: E402
    Budget,
    Plan,
    StillsPlan,
    Student,
    Trained,
    plan_all,
    select,
    student_table,
)
from quality_styles import (  # noqa: E402
    JUDGE,
    PROMPTS,
    Style,
    digest,
    drawn_seeds,
    files_hash,
    find_style,
    fresh_style,
)

from trainer.config import fields  # noqa: E402
from trainer.evaluate.bench import Bench, machine  # noqa: E402
from trainer.evaluate.distances import RESAMPLES  # noqa: E402
from trainer.evaluate.networks import Measuring, judge_network  # noqa: E402
from trainer.evaluate.rows import LEVEL  # noqa: E402
from trainer.evaluate.truth import draw_prompts  # noqa: E402
from trainer.families import VideoModel, load_model  # noqa: E402
from trainer.files import atomic_write, file_sha256  # noqa: E402
from trainer.lora.formats import LoraFile, read_lora  # noqa: E402


@dataclass(frozen=True)
class Trial:
    """The students of one seed and what they are measured with: prompts and noise of that seed."""

    seed: int
    bench: Bench
    plans: list[Plan | StillsPlan]


@dataclass(frozen=True)
class Job:
    """Everything checked and nothing done yet."""

    options: argparse.Namespace
    styles: list[Style]
    trials: list[Trial]
    model_hash: str

    def maker(self, trial: Trial) -> RowMaker:
        options = self.options
        return RowMaker(trial.bench, options.work, self.model_hash, options.guidance)


def prepare(options: argparse.Namespace, network: Measuring | None = None) -> Job:
    """Cut the styles in two, choose the students, load the model; ``network`` replaces the judge.

    Raises ``ValueError`` for what cannot be used: styles, students, settings, counts.
    """
    settings = dict(_setting(text) for text in options.set)
    if options.seeds < 1:
        raise ValueError(f"`--seeds`={options.seeds}: give the number of seeds, 1 or more.")
    styles = _styles(options)
    table = student_table(styles, options.work, options.model)
    model = load_model(options.model)
    network = network or judge_network(JUDGE)
    model_hash = _model_hash(model.path)
    budget = Budget(options.minutes, options.train_steps)
    chosen = select(table, options.students)

    def trial(seed: int) -> Trial:
        shared = {"model": options.model, "seed": seed, **settings}
        plans = plan_all(chosen, table, budget, shared, model_hash, options.work)
        captions = draw_prompts(options.count, seed, PROMPTS)
        return Trial(seed, Bench(model, network, captions, seed, progress=_progress), plans)

    seeds = range(options.seed, options.seed + options.seeds)
    return Job(options, styles, [trial(seed) for seed in seeds], model_hash)


@dataclass
class Found:
    """Rows of one seed, those of true videos, and what was trained for them by student."""

    rows: list[Row]
    references: list[Row]
    trained: dict[str, dict[str, Any]]


def make_table(job: Job, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Train what is missing, measure what is missing: rows, claims and meta data."""
    found = [_measure(job, trial, log) for trial in job.trials]
    rows = [pooled(same) for same in zip(*(f.rows for f in found), strict=True)]
    references = [pooled(same) for same in zip(*(f.references for f in found), strict=True)]
    claims, missing = decide_claims(rows, references)
    students = {
        plan.student.name: {
            **_about(plan.student),
            "runs": [f.trained[plan.student.name] for f in found],
        }
        for plan in job.trials[0].plans
    }
    told = {"students": students, "undecided": missing, "references": references}
    return {
        "rows": rows,
        "claims": claims,
        "worst": worst_rows(rows),
        "meta": _meta(job) | told,
    }


def _measure(job: Job, trial: Trial, log: Callable[[str], None]) -> Found:
    guidance, maker = job.options.guidance, job.maker(trial)
    worlds: list[Style | None] = [None, *job.styles]
    rows = [maker.row(source, style) for source in solvers(guidance) for style in worlds]
    trained: dict[str, dict[str, Any]] = {}
    for plan in trial.plans:
        student, made = plan.student, plan.train(log)
        files = [read_lora(path, trial.bench.model.network) for path in made.loras]
        trained[student.name] = _training(trial.seed, made, files)
        against = [style for style in worlds if student.style in (None, style and style.name)]
        sources = student_sources(student, files, guidance)
        rows += [maker.row(source, style) for source in sources for style in against]
    known = [style for style in worlds if style is None or style.look is not None]
    return Found(rows, [maker.true_row(style) for style in known], trained)


def _styles(options: argparse.Namespace) -> list[Style]:
    cut = {"uncaptioned": options.uncaptioned, "images": options.images}
    named = [given for given in options.styles if not given.isdecimal()]
    styles = [find_style(given, options.work, **cut) for given in named]
    styles += [fresh_style(seed, options.work, **cut) for seed in options.fresh_style]
    for count in (int(given) for given in options.styles if given.isdecimal()):
        seeds = drawn_seeds(count, options.seed)
        styles += [fresh_style(seed, options.work, **cut, drawn=True) for seed in seeds]
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


def _about(student: Student) -> dict[str, Any]:
    return {
        "method": student.method,
        "preset": None if student.method in ARTISTS else student.preset,
        "changes": dict(student.overrides),
        "style": student.style,
        "images": None if student.images is None else student.images.name,
    }


def _training(seed: int, made: Trained, files: list[LoraFile]) -> dict[str, Any]:
    return {
        "seed": seed,
        "steps": made.steps,
        "batch": made.batch,
        "run": made.run,
        "lora_sha256": [file.hashes.tensors_sha256 for file in files],
    }


def _meta(job: Job) -> dict[str, Any]:
    options = job.options
    model, network = job.trials[0].bench.model, job.trials[0].bench.network
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(model),
        "minutes": None if options.train_steps else options.minutes,
        "train_steps": options.train_steps,
        "settings": list(options.set),
        "count": options.count,
        "seeds": [trial.seed for trial in job.trials],
        "teacher": {"guidance_scale": options.guidance, "reference_steps": TEACHER_STEPS},
        "intervals": _intervals(len(job.trials)),
        "model": _model(model, job.model_hash),
        "features": {"name": network.name, "sha256": network.hash},
        "styles": {
            style.name: {
                "held_out_sha256": style.hash,
                "true_videos": style.look is not None,
                "drawn": style.drawn,
            }
            for style in job.styles
        },
    }


def _intervals(seeds: int) -> dict[str, Any]:
    found: dict[str, Any] = {"level": LEVEL, "resamples": RESAMPLES, "accuracies": "Wilson"}
    return found if seeds == 1 else {**found, "seeds": "Student's t, at least that of the clips"}


def _model(model: VideoModel, model_hash: str) -> dict[str, str]:
    return {"name": model.name, "sha256": model.base_hash, "files_sha256": model_hash[:64]}


def _progress(what: str, done: int, total: int) -> None:
    end = "\n" if done >= total else ""
    print(f"\r{what}: {done}/{total} clips   ", end=end, file=sys.stderr, flush=True)


def save(table: dict[str, Any], path: Path) -> list[Path]:
    """The JSON at ``path``, and beside it the Markdown table and the plot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(path, (text + "\n").encode("utf-8"))
    page = markdown(table["rows"], table["claims"], table["meta"]["references"], table["worst"])
    atomic_write(path.with_suffix(".md"), page.encode("utf-8"))
    plot(table["rows"], path.with_suffix(".png"))
    return [path, path.with_suffix(".md"), path.with_suffix(".png")]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = found.add_argument
    add(
        "--minutes",
        type=float,
        default=5.0,
        help="training time of each student and each plain LoRA (5)",
    )
    add("--styles", nargs="*", default=["poster", "ink", "neon"], metavar="STYLE",
        help="bundled styles, folders of images, or a number: so many styles drawn at random; "
        "ablations are of the first that is not drawn")  # fmt: skip
    add("--fresh-style", type=int, nargs="*", default=[], metavar="SEED",
        help="also the random styles of these seeds")  # fmt: skip
    add("--uncaptioned", action="store_true", help="also each style without its captions")
    add("--images", type=int, metavar="N", help="also each style with only N training images")
    add("--students", nargs="+", metavar="NAME",
        help="only these; * and ? match. lcm-videos and mcm-videos train on rendered public video "
        "in place of the teacher's clips, and only when named")  # fmt: skip
    add("--count", type=int, default=128, help="clips of each row (128)")
    add("--seed", type=int, default=0, help="of training, prompts and noise (0)")
    add("--seeds", type=int, default=1, help="repeat all with so many seeds, from --seed on (1)")
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
