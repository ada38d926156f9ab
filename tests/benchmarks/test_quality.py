"""The quality table on a tiny budget: its rows, what is kept, and how claims are decided."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from trainer.config import ConfigError
from trainer.evaluate.networks import Measuring
from trainer.evaluate.rows import MEASURES
from trainer.evaluate.truth import style_pixels
from trainer.mini.networks import build_judge

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import quality  # noqa: E402
import quality_styles  # noqa: E402
from quality_claims import (  # noqa: E402
    ARTISTS,
    STEPS,
    STILLS,
    claims_text,
    decide_claims,
    worst_rows,
)
from quality_report import markdown  # noqa: E402
from quality_rows import pooled  # noqa: E402
from quality_students import select, student_table  # noqa: E402
from quality_styles import drawn_seeds, find_style, fresh_style  # noqa: E402

TINY = [
    "data.library_clips=2", "data.batch_size=2", "data.min_side=16", "lora.rank=2",
    "adversarial.features=efficientnet-lite0", "adversarial.caption_weight=0", "optim.lr=0.01",
    "hardware.device=cpu",
]  # fmt: skip
STUDENTS = ["lcm", "mcm-poster-*-no-mixed", "mcm-fresh-3", "mcm-poster-*-4-images"]
ARTISTS_ROWS = [f"{method}-fresh-3" for method in ARTISTS]


@pytest.fixture(scope="module")
def network() -> Measuring:
    judge = build_judge().eval()
    return Measuring("untrained", "0", judge.frame_features, judge.video_features, judge.hits)


@pytest.fixture(scope="module")
def named(style_images, tmp_path_factory) -> Path:
    """The style folder under a name that needs no quoting, with a picture that is there twice."""
    folder = tmp_path_factory.mktemp("styles") / "poster-x"
    folder.mkdir()
    for file in sorted(style_images.iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())
    first = sorted(folder.glob("*.png"))[0]
    (folder / "98_again.png").write_bytes(first.read_bytes())
    return folder


@pytest.fixture(scope="module")
def options(tiny_model, named, tmp_path_factory):
    work = tmp_path_factory.mktemp("quality")
    given = ["--styles", str(named), "--fresh-style", "3", "--images", "4", "--uncaptioned"]
    given += [
        "--students",
        *STUDENTS,
        *ARTISTS_ROWS,
        "--count",
        "3",
        "--train-steps",
        "2",
        "--set",
        *TINY,
    ]
    given += ["--work", str(work), "--model", str(tiny_model), "--json", str(work / "out.json")]
    return quality.parser().parse_args(given)


@pytest.fixture(scope="module")
def table(options, network):
    told: list[str] = []
    found = quality.make_table(quality.prepare(options, network), told.append)
    assert len(told) == len(STUDENTS) + 2, "the stacked style LoRA is the plain one"
    return found


def test_every_student_is_measured_at_every_step_count_against_its_style(table):
    rows = table["rows"]
    found = {(row["student"] or row["method"], row["style"], row["steps"]) for row in rows}
    assert len(found) == len(rows)
    for style in (None, "poster-x", "fresh-3"):
        assert {("ddim", style, k) for k in (50, 25, 8, 4, 2, 1)} <= found
        for name in ("dpmpp", "lcm"):
            assert {(name, style, k) for k in STEPS} <= found
    for name in ("mcm-poster-x-no-mixed", "mcm-poster-x-4-images"):
        assert {row["style"] for row in rows if row["student"] == name} == {"poster-x"}
    for row in rows:
        teacher = row["method"] == "ddim" and row["steps"] == 50
        missing = {"fd_teacher", "flow_ratio"} if teacher else set()
        missing |= {"clipsim", "both", "camera", *({"style_kid"} if row["style"] is None else ())}
        true = row["style"] == "fresh-3"  # nobody can render true videos of the others
        missing |= set() if true else {"fd_style", "flow_style_ratio"}
        assert {name for name in MEASURES if row[name] is None} == missing
        assert all(f"{name}_ci" in row for name in set(MEASURES) - missing)


def test_claims_and_meta_say_what_was_found_with_what(table):
    texts = [claim["claim"] for claim in table["claims"]]
    assert "lcm < dpmpp in Frechet distance to real videos" in texts
    assert "mcm < lcm in Frechet distance to real videos" in table["meta"]["undecided"]
    assert any(text.startswith("mcm-fresh-3: Frechet distance to true videos") for text in texts)
    assert any(text.startswith("mcm-poster-x-4-images: style distance") for text in texts)
    assert not any("no-mixed:" in text for text in texts), "an ablation has no goals to reach"
    assert all(isinstance(claim["holds"], bool) for claim in table["claims"])
    meta = table["meta"]
    assert meta["train_steps"] == 2 and meta["count"] == 3 and meta["minutes"] is None
    runs = {name: found["runs"] for name, found in meta["students"].items()}
    assert set(runs) == {
        "lcm", "mcm-poster-x-no-mixed", "mcm-fresh-3", "mcm-poster-x-4-images", *ARTISTS_ROWS
    }  # fmt: skip
    assert len({run["lora_sha256"][-1] for (run,) in runs.values()}) == 6
    assert [(row["method"], row["style"]) for row in meta["references"]] == [
        ("public video", None),
        ("true video", "fresh-3"),
    ]


def test_what_artists_do_has_the_budget_of_the_student_and_its_place_in_the_table(table):
    runs = {name: found["runs"][0] for name, found in table["meta"]["students"].items()}
    assert {run["steps"] * run["batch"] for run in runs.values()} == {2 * 2}
    step, plain, stacked, below = (runs[k]["lora_sha256"] for k in ("lcm", *ARTISTS_ROWS))
    assert stacked == [*step, *plain] and below[:1] == step and below[1:] != plain
    for method, name in zip(ARTISTS, ARTISTS_ROWS, strict=True):
        rows = [row for row in table["rows"] if row["student"] == name]
        assert {row["method"] for row in rows} == {method}
        assert {(r["style"], r["trained_on"]) for r in rows} == {("fresh-3", "fresh-3")}
        assert [row["steps"] for row in rows] == ([50] if method == STILLS else list(STEPS))
    texts = [claim["claim"] for claim in table["claims"]]
    for name in ARTISTS_ROWS:
        assert f"mcm-fresh-3 < {name} in style distance" in texts


def test_a_second_run_trains_nothing_and_looks_at_nothing(table, options):
    def never(*given):
        raise AssertionError("a network was asked again")

    blind = Measuring("untrained", "0", never, never, never)
    told: list[str] = []
    again = quality.make_table(quality.prepare(options, blind), told.append)
    assert not told and again["rows"] == table["rows"] and again["claims"] == table["claims"]
    assert again["meta"]["references"] == table["meta"]["references"]


def test_the_files_are_written_beside_each_other(table, options):
    files = quality.save(table, options.json)
    assert [file.suffix for file in files] == [".json", ".md", ".png"]
    assert json.loads(files[0].read_text(encoding="utf-8"))["rows"] == table["rows"]
    page = files[1].read_text(encoding="utf-8")
    assert "### Without style images" in page and "### Style `fresh-3`" in page
    assert "| true video |" in page and "`mcm-fresh-3` | 8 |" in page and "### Claims" in page
    assert files[2].read_bytes().startswith(b"\x89PNG") and files[2].stat().st_size > 10_000


def test_the_halves_of_a_style_share_no_image_not_even_as_a_copy(named, tmp_path):
    style = find_style(str(named), tmp_path, uncaptioned=True, images=3)
    train, held = (style_pixels(folder, 64, 64) for folder in (style.train, style.held_out))
    assert len(train) == 7 and len(held) == 6, "the copy went with its double"
    assert not any((a == b).all() for a in train for b in held)
    assert len(list(style.train.glob("*.txt"))) == 6
    assert not list(style.variants["uncaptioned"].glob("*.txt"))
    assert len(list(style.variants["3-images"].glob("*.png"))) == 3
    assert style.look is None and fresh_style(5, tmp_path).look is not None
    with pytest.raises(ValueError, match="`--images`=9"):
        find_style(str(named), tmp_path, images=9)


def test_kept_rows_are_of_the_model_and_not_of_the_loras_that_lie_beside_it(tmp_path):
    """A LoRA that is exported anew must not make every measured row stale."""
    files = ["unet/x.safetensors", "warm_start.safetensors", "prompts.txt"]
    for name in ("loras/style.safetensors", *files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"before")
    found = [quality._model_hash(tmp_path)]
    (tmp_path / "loras/style.safetensors").write_bytes(b"after")
    assert [quality._model_hash(tmp_path)] == found
    for name in files:
        (tmp_path / name).write_bytes(b"after")
        found.append(quality._model_hash(tmp_path))
    assert len(set(found)) == 4


def test_the_usual_students_are_the_rows_that_the_table_needs(named, tmp_path):
    styles = [find_style(name, tmp_path) for name in ("poster", "ink")]
    table = student_table(styles, tmp_path)
    names = [student.name for student in select(table, None)]
    assert names[:10] == [
        "lcm", "mcm", *(f"{m}-{style}" for style in ("poster", "ink") for m in ("mcm", *ARTISTS))
    ]  # fmt: skip
    assert names[10:] == [
        f"mcm-poster-{change}"
        for change in ("no-disentangling", "no-mixed", "no-discriminator", "low_frequency",
                       "high_frequency", "local_correlation", "global_correlation", "learned",
                       "learned_deep")
    ]  # fmt: skip
    assert styles[0].look is not None
    assert [s.name for s in select(table, ["*-videos"])] == ["lcm-videos", "mcm-videos"]
    with pytest.raises(ValueError, match="'mcm-neon' matches none; there are lcm, mcm,"):
        select(table, ["mcm-neon"])


def test_a_number_of_styles_draws_new_ones_with_the_rows_that_are_compared(options, monkeypatch):
    monkeypatch.setattr(quality_styles, "COUNT", 12)
    given = {"styles": ["2"], "fresh_style": [], "students": None, "images": None}
    asked = type(options)(**{**vars(options), **given, "uncaptioned": False})
    drawn = quality._styles(asked)
    assert [style.name for style in drawn] == [f"fresh-{seed}" for seed in drawn_seeds(2, 0)]
    assert len({*drawn_seeds(2, 0), *drawn_seeds(2, 1)}) == 4, "another seed draws others"
    for style in drawn:
        stills = sorted(style.train.glob("*.png"))
        assert len(stills) == 6 and style.look is not None
        assert all(still.with_suffix(".txt").read_text(encoding="utf-8") for still in stills)
    names = [s.name for s in select(student_table(drawn, options.work), None)]
    own = [f"{method}-{style.name}" for style in drawn for method in ("mcm", *ARTISTS)]
    assert names == ["lcm", *own]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"styles": ["0"]}, "`--styles` 0 draws no style"),
        ({"seeds": 0}, "`--seeds`=0"),
        ({"set": ["lora.rnk=2"]}, "`--set` 'lora.rnk=2'"),
        ({"set": ["lora.rank=0"]}, "`lora.rank`='?0"),
        ({"styles": ["/nowhere"]}, "does not exist"),
        ({"styles": ["poster", "poster"]}, "have one name"),
        ({"count": 1}, "`count`=1"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_trained(options, network, change, message):
    wrong = type(options)(**{**vars(options), "students": ["lcm"], "fresh_style": [], **change})
    with pytest.raises((ValueError, ConfigError), match=message):
        quality.prepare(wrong, network)


# Made-up rows: a student that reaches every goal, and the same with one number changed.

COLUMNS = ("fd_video", "colour", "shape", "motion", "style_kid", "fd_style")
GOOD = {
    "ddim": (300, 0.99, 0.8, 0.6, 12, 400),
    "dpmpp": (280, 0.99, 0.8, 0.6, 12, 400),
    "lcm": (90, 0.99, 0.8, 0.55, 10, 300),
    "mcm": (50, 0.99, 0.8, 0.58, 9, 300),
    "mcm-ink": (200, 0.99, 0.79, 0.6, 2, 100),
    "mcm-ink-no-mixed": (200, 0.5, 0.4, 0.5, 3, 200),
    "mcm-ink-no-disentangling": (200, 0.99, 0.8, 0.5, 5, 200),
    "mcm-ink-no-discriminator": (200, 0.99, 0.8, 0.6, 11, 390),
}


def made_up(changes: dict[tuple[str, str], float] | None = None, spread: float = 0.02, at=STEPS):
    """Rows whose intervals are ``spread`` to either side; ``changes`` apply at the steps ``at``."""
    rows = []
    for name, numbers in GOOD.items():
        student = name if name.startswith(("lcm", "mcm")) else None
        trained_on = "ink" if name.startswith("mcm-") else None
        for style in (None, "ink") if trained_on is None else ("ink",):
            for steps in (*STEPS, 50) if name == "ddim" else STEPS:
                row = {"method": name[:5], "student": student, "trained_on": trained_on}
                row |= {"style": style, "steps": steps}
                goals = dict(zip(COLUMNS, numbers, strict=True))
                for column, value in {**goals, "flow_ratio": 1.0, "watermark": 0.01}.items():
                    if steps in at:
                        value = (changes or {}).get((name, column), value)
                    width = spread * abs(value)
                    row |= {column: value, f"{column}_ci": [value - width, value + width]}
                rows.append(row)
    return rows


def failing(rows) -> set[str]:
    claims, missing = decide_claims(rows)
    assert not missing and len(claims) == 3 + 7 + 3
    return {claim["claim"] for claim in claims if not claim["holds"]}


def test_all_claims_hold_for_a_student_that_reaches_every_goal():
    assert failing(made_up()) == set()


@pytest.mark.parametrize(
    ("name", "column", "value", "claim"),
    [
        ("mcm", "fd_video", 95, "mcm < lcm in Frechet distance to real videos"),
        ("mcm", "fd_video", 88, "mcm < lcm in Frechet distance to real videos"),
        ("mcm-ink", "style_kid", 3.1, "mcm-ink: style distance <= 0.30 x the LCM student's"),
        ("mcm-ink", "colour", 0.9, "mcm-ink: colour >= 0.95 x the teacher's"),
        ("mcm-ink", "shape", 0.6, "mcm-ink: shape >= 0.9 x the teacher's"),
        ("mcm-ink", "motion", 0.5, "mcm-ink: motion >= 0.9 x the teacher's"),
        ("mcm-ink", "flow_ratio", 0.7, "mcm-ink: flow within 0.8 to 1.25 x the teacher's"),
        ("mcm-ink", "flow_ratio", 1.24, "mcm-ink: flow within 0.8 to 1.25 x the teacher's"),
        ("mcm-ink", "watermark", 0.2, "mcm-ink: the watermark is gone (correlation within 0.1)"),
        (
            "mcm-ink",
            "fd_style",
            155,
            "mcm-ink: Frechet distance to true videos in the style <= 0.5 x the LCM student's",
        ),
        (
            "mcm-ink-no-mixed",
            "fd_style",
            100,
            "mcm-ink: without the mixed trajectory `fd_style` is worse",
        ),
        (
            "mcm-ink-no-discriminator",
            "style_kid",
            1,
            "mcm-ink: without the discriminator `style_kid` is worse",
        ),
    ],
)
def test_one_number_beyond_its_goal_fails_that_claim_alone(name, column, value, claim):
    assert failing(made_up({(name, column): value})) == {claim}
    if "without" not in claim:
        assert failing(made_up({(name, column): value}, at=(8,))) == {claim}, "one step count"


def test_numbers_whose_intervals_meet_decide_nothing():
    claims, _ = decide_claims(made_up(spread=0.4))
    first = claims[0]
    assert not first["holds"] and all(part["point"] for part in first["values"].values())
    assert "by value only" in claims_text(claims)


def test_an_idea_must_help_somewhere_and_harm_nowhere():
    text = "mcm-ink: without the mixed trajectory `fd_style` is worse"
    name = "mcm-ink-no-mixed"
    same = made_up({(name, "fd_style"): 101}, at=(1, 2, 4))
    assert failing(same) == set()
    assert failing(made_up({(name, "fd_style"): 60}, at=(1,))) == {text}
    claims, _ = decide_claims(same)
    values = next(claim["values"] for claim in claims if claim["claim"] == text)
    assert [values[str(k)]["verdict"] for k in STEPS] == ["same", "same", "same", "worse"]
    assert values["effects"]["colour"]["1"] == "worse"
    assert "fd_style same/same/same/worse" in claims_text(claims)


def test_what_has_no_rows_is_listed_and_a_folder_without_true_videos_has_no_such_goal():
    rows = [row for row in made_up() if row["student"] != "mcm" and row["steps"] != 8]
    claims, missing = decide_claims(rows)
    assert not claims and "mcm < lcm in Frechet distance to real videos" in missing
    assert "not measured: mcm < lcm" in claims_text(claims, missing)
    blank = [{**row, "fd_style": None} for row in made_up()]
    claims, missing = decide_claims(blank)
    texts = [claim["claim"] for claim in claims]
    assert not missing and len(claims) == 3 + 6 + 3
    assert "mcm-ink: without the mixed trajectory `style_kid` is worse" in texts


def test_flow_is_also_held_against_that_of_true_videos_in_the_style():
    text = "mcm-ink: flow within 0.8 to 1.25 x that of true videos in the style"

    def holds(ratio: float) -> bool:
        own = {"flow_style_ratio": ratio, "flow_style_ratio_ci": [ratio - 0.005, ratio + 0.005]}
        claims, _ = decide_claims([{**row, **own} for row in made_up()])
        (found,) = (claim for claim in claims if claim["claim"] == text)
        return found["holds"]

    assert holds(1.0) and holds(0.81) and not holds(0.8) and not holds(1.25)


def test_the_student_is_held_against_what_artists_do_at_their_own_number_of_steps():
    def artists(method: str, steps: int) -> dict:
        row = {"method": method, "student": f"{method}-ink", "trained_on": "ink", "style": "ink"}
        return {**row, "steps": steps, "style_kid": 2.5, "style_kid_ci": [2.4, 2.6]}

    rows = [artists("stills_lora", 50), *(artists("stills_lora+lcm", k) for k in STEPS)]

    def verdicts(kid: float) -> dict[str, bool]:
        claims, _ = decide_claims([*made_up({("mcm-ink", "style_kid"): kid}), *rows])
        return {c["claim"]: c["holds"] for c in claims if " < stills" in c["claim"]}

    for kid in (2.0, 2.7):
        assert verdicts(kid) == {
            "mcm-ink < stills_lora-ink in style distance": kid < 2.5,
            "mcm-ink < stills_lora+lcm-ink in style distance": kid < 2.5,
        }


def one_measure(value: float, half: float, column: str = "style_kid") -> dict:
    row = {**dict.fromkeys(MEASURES), "method": "mcm", "student": "mcm-ink", "steps": 4}
    return row | {column: value, f"{column}_ci": [value - half, value + half]}


def test_rows_of_several_seeds_become_means_whose_intervals_hold_seeds_and_clips():
    row = pooled([one_measure(value, 0.1) for value in (1.0, 2.0, 3.0)])
    assert row["method"] == "mcm" and row["steps"] == 4 and row["fd_style"] is None
    assert row["style_kid"] == 2.0 and row["style_kid_seeds"] == [1.0, 2.0, 3.0]
    half = 4.302653 / 3**0.5  # Student's t of two degrees of freedom
    assert row["style_kid_ci"] == pytest.approx([2 - half, 2 + half], abs=1e-5)
    agreeing = pooled([one_measure(2.0, 0.3) for _ in range(3)])
    assert agreeing["style_kid_ci"] == pytest.approx([2 - 0.3 / 3**0.5, 2 + 0.3 / 3**0.5])
    shares = pooled([one_measure(value, 0.02, "motion") for value in (0.9, 1.0)])
    assert shares["motion_ci"][1] == 1.0, "no share is above 1"
    alone = one_measure(1.0, 0.1)
    assert pooled([alone]) == alone


def test_the_worst_style_of_a_method_is_named_in_each_column():
    def row(style: str, kid: float, motion: float, flow: float, name: str = "") -> dict:
        values = {"style_kid": kid, "motion": motion, "flow_style_ratio": flow}
        intervals = {f"{k}_ci": [v, v] for k, v in values.items()}
        who = {"method": "mcm", "student": name or f"mcm-{style}", "style": style, "steps": 4}
        return {**who, **values, **intervals}

    rows = [row("a", 0.1, 0.9, 0.5), row("b", 0.3, 1.0, 1.6), row("b", 9, 0, 9, "mcm-b-no-mixed")]
    (worst,) = worst_rows(rows)
    assert worst["styles"] == 2 and worst["style_kid"] == 0.3 and worst["style_kid_style"] == "b"
    assert worst["motion_style"] == "a" and worst["flow_style_ratio_style"] == "a", "half is worse"
    assert "colour" not in worst and worst_rows(rows[:1]) == []
    assert "| mcm | 4 | 2 | 0.300 ± 0.000 (b) |" in markdown([], [], [], [worst])


def test_the_page_shows_each_number_with_half_of_its_interval():
    claims, _ = decide_claims(made_up())
    page = markdown(made_up(), claims, [])
    assert "| `mcm-ink` | 4 | 2.000 ± 0.040 | 100.0 ± 2.0 |" in page
    assert "| teacher, DDIM | 50 |" in page
    short = "2.000 / 2.000 / 2.000 / 2.000 | 100 / 100 / 100 / 100 |"
    (line,) = (line for line in page.splitlines() if line.startswith("| mcm-ink |"))
    assert line.startswith(f"| mcm-ink | 1 / 2 / 4 / 8 | {short}")
    assert line.endswith("| .01 / .01 / .01 / .01 |")
    assert "| mcm-ink: motion >= 0.9 x the teacher's | **yes** | 1, 2, 4, 8 |" in page
