"""The parts of the page without a browser: form, drafts, statuses, charts, event reader."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from patience import wait_until

from trainer.config import ConfigError, TrainConfig, load_config, save_config
from trainer.runs.events import EventLog
from trainer.runs.folder import Run
from trainer.runs.state import RunState, write_state

PACK = Path(__file__).resolve().parents[2]
HARMFUL = '<img src=x onerror="alert(1)">'


@pytest.fixture
def site(tmp_path):
    from ui.places import Places
    from ui.site import Site

    (tmp_path / "pictures").mkdir()
    return Site(Places(PACK, tmp_path / "runs", (tmp_path / "pictures",)))


def make_run(site, name: str, **state) -> Run:
    run = Run.create(site.places.runs / name, load_config(overrides={"run": name}))
    if state:
        write_state(run, RunState(**state))
    return run


def test_every_setting_is_in_the_form_and_comes_back_unchanged(site):
    from trainer.config import fields
    from ui.form import NAMES, NOT_IN_FORM, to_config, to_form

    assert {*NAMES, *NOT_IN_FORM} == {record.name for record in fields()}
    overrides = {"preview.prompts": ("a, b", "c"), "preview.steps": (2, 4), "minutes": 1.5,
                 "run": site.places.runs / "x", "images": site.places.roots[0]}  # fmt: skip
    config = load_config(overrides=overrides)
    assert to_config(to_form(config), site.places, config.run) == config


def test_an_empty_number_and_a_wrong_one_are_named(site):
    from ui.form import to_config, to_form

    values = to_form(TrainConfig())
    with pytest.raises(ConfigError, match="Training steps is empty"):
        to_config({**values, "steps": None}, site.places, Path("x"))
    with pytest.raises(ConfigError, match="`lora.rank`=0 is not allowed; use 1 to 512"):
        to_config({**values, "lora.rank": 0}, site.places, Path("x"))


def test_choosers_change_what_they_propose_and_nothing_else():
    from ui.form import base_values, proposals

    before = ("mini", "recipe", "cpu", "quick", "fast")
    changes = proposals(before, ("mini", "recipe", "cpu", "best", "fast"))
    assert changes["steps"] == 2000 and "lora.rank" not in changes
    changes = proposals(before, ("mini", "paper", "cpu", "quick", "fast"))
    assert changes["motion.representation"] == "learned" and "steps" not in changes
    changes = proposals(before, (*before[:-1], "tight"))
    assert changes["optim.offload"] is True and "steps" not in changes
    assert base_values(*before[:-1])["optim.lr"] == 2e-3  # what the mini model recommends


def test_a_memory_preset_sets_sizes_for_a_large_model(tiny_model, tmp_path):
    import shutil

    from ui.form import proposals

    large = tmp_path / "large"
    shutil.copytree(tiny_model, large)
    (large / "mcm.json").unlink()
    changes = proposals(
        (str(large), "recipe", "cpu", "quick", "fast"), (str(large), "recipe", "8", "quick", "fast")
    )
    assert changes["data.height"] == 256 and changes["hardware.gradient_checkpointing"] is True
    assert changes["memory"] == "tight"


def test_the_draft_survives_and_a_damaged_one_becomes_the_first(site):
    from ui.draft import Drafts

    first = site.drafts.load()
    assert first.values["model"] == "mini" and first.values["images"].endswith("poster")
    first.values["steps"], first.name = 77, "später"
    site.drafts.save(first)
    again = Drafts(site.places).load()
    assert (again.values["steps"], again.name) == (77, "später")
    (site.places.web / "draft.json").write_text('{"values": 3}', encoding="utf-8")
    assert site.drafts.load().name == "my-style"


def test_shared_settings_leave_out_what_is_not_on_this_machine(site, tmp_path):
    file = tmp_path / "shared.toml"
    overrides = {"model": "/home/other/model", "images": "/home/other/images", "steps": 44}
    save_config(load_config(overrides=overrides), file)
    draft, left = site.drafts.from_config(load_config(file), "shared")
    assert draft.values["model"] == "mini" and draft.values["images"] == ""
    assert draft.values["steps"] == 44 and len(left) == 2


@pytest.mark.parametrize(
    "state, word, advice",
    [
        ({"status": "failed", "error": "DiskFullError: no room"}, "Disk full", "Free some space"),
        (
            {"status": "failed", "error": "OutOfMemoryError: x"},
            "Failed",
            "less under Graphics memory",
        ),
        ({"status": "failed", "error": "KeyError: 'x'"}, "Failed", "last checkpoint"),
        ({"status": "running", "pid": 2**22 + 1, "pid_started": 1.0}, "Interrupted", "Resume"),
        ({"status": "stopped"}, "Stopped", ""),
        ({"status": "finished"}, "Finished", ""),
    ],
)
def test_every_end_of_a_run_has_its_word_and_what_to_do(site, state, word, advice):
    from ui.status import header, problem

    make_run(site, "run", step=3, steps=9, **state)
    status = site.status("run")
    assert status.word == word and word in header(status)
    assert advice in problem(status) and bool(problem(status)) == bool(advice)
    assert status.can_resume == (word != "Finished") and not status.can_stop


def test_a_run_in_the_queue_waits_and_one_that_begins_cannot_be_stopped_yet(site):
    runs = [make_run(site, name) for name in ("one", "two")]
    for run in runs:
        site.queue.add(run)
    assert [site.status(run.name).status for run in runs] == ["waiting", "waiting"]
    assert site.status("two").place == 2 and not site.status("one").can_stop
    assert site.chosen(None) in ("one", "two") and site.chosen("two") == "two"


def test_a_look_takes_back_no_choice_that_was_made_meanwhile(site):
    """A look that began before Start ends after it, and knows the new run already."""
    import gradio as gr

    from ui.app import Head
    from ui.watch import Watch

    make_run(site, "first", status="finished")
    with gr.Blocks():
        watch = Watch(site)
        head = Head(site, watch)
    place = watch.components.index(head.choice)

    def choice(asked: str | None) -> dict:
        return watch.look(asked, None, None, {})[place]

    make_run(site, "started by now", status="running")
    update = choice("first")
    assert "value" not in update and set(update["choices"]) == {"first", "started by now"}
    assert choice("deleted")["value"] == "started by now", "the one that trains"
    assert choice(None)["value"] == "started by now"


def test_nothing_that_a_run_says_is_html(site):
    from ui.monitor import log_tail, monitor
    from ui.samples import samples
    from ui.status import header

    run = make_run(site, "run", status="failed", error=HARMFUL, message=HARMFUL, steps=3)
    run.log_path.write_text(HARMFUL, encoding="utf-8")
    folder = run.samples / "step-000001"
    folder.mkdir()
    (folder / "prompts.json").write_text(json.dumps([HARMFUL]), encoding="utf-8")
    with EventLog(run.events_path) as events:
        events.append("preview", step=1, motion_kept={"1": 0.2})
        events.append("alarm", step=1, message=HARMFUL)
    status = site.status("run")
    events = site.events.read(run.events_path)
    training = monitor(replace(status, status="running"), events)
    shown = [training, monitor(status, events), header(status),
             log_tail(run.log_path), samples(run, None)]  # fmt: skip
    assert "Too little movement" in training
    assert "Too little movement" not in shown[1], "of a run that has ended the best step is taken"
    for text in shown:
        assert "<img src=x" not in text


def test_events_are_read_as_they_come_and_again_after_a_resume(tmp_path):
    from ui.events import EventReader

    reader, path = EventReader(), tmp_path / "events.jsonl"
    assert reader.read(path) == []
    with EventLog(path) as log:
        for step in range(1, 6):
            log.append("step", step=step, loss=1.0)
    with path.open("ab") as file:
        file.write(b'{"kind": "torn')
    assert [event["step"] for event in reader.read(path)] == [1, 2, 3, 4, 5]
    with EventLog(path, resume_step=2) as log:
        for step in range(3, 9):
            log.append("step", step=step, loss=2.0)
    assert [event["step"] for event in reader.read(path)] == list(range(1, 9))
    assert [event["loss"] for event in reader.read(path)] == [1.0] * 2 + [2.0] * 6


def test_charts_draw_every_line_and_say_what_is_missing():
    from ui.charts import Level, Line, line_chart, smooth, thinned, ticks

    empty = line_chart("A & B", [Line("x", [])], help_text="why", y_title="", empty="not yet")
    assert "not yet" in empty and "A &amp; B" in empty and "<svg" not in empty
    points = [(step, step % 7) for step in range(5000)]
    assert len(thinned(points)) <= 400 and thinned(points)[-1] == points[-1]
    drawn = line_chart("t", [Line("x", points), Line("y", [(3, 0.5)], 1, dots=True)],
                       help_text="", y_title="height < 3", levels=[Level("here", 1.0)],
                       percent=True)  # fmt: skip
    assert drawn.count("<polyline") == 2 and drawn.count("<circle") == 1 and "here" in drawn
    assert ">training step<" in drawn and ">height &lt; 3<" in drawn, "both axes have titles"
    assert smooth([(1, 4.0), (2, 4.0)]) == [(1, pytest.approx(4.0)), (2, pytest.approx(4.0))]
    assert ticks(0, 1) == [0, 0.5, 1] and ticks(0, 3, whole=True) == [0, 1, 2, 3]


def test_a_task_is_found_again_and_its_failure_is_a_sentence(site, tmp_path):
    from ui.jobs import Tasks

    site.tasks.start("export", "x", ["export", str(tmp_path / "no run")])
    wait_until(lambda: not site.tasks.status("export").running, "the export")
    task = Tasks(site.places.web / "tasks", PACK).status("export")
    assert task.failed and not task.running and "does not exist" in task.problem


def test_a_run_whose_clips_are_being_made_is_not_deleted(site):
    import gradio as gr

    from ui.tabs.runs import RunsTab
    from ui.watch import Watch

    run = make_run(site, "sampled", status="finished")
    with gr.Blocks():
        tab = RunsTab(site, Watch(site))
    folder = site.tasks.folder("preview")
    folder.mkdir(parents=True)
    own = {"pid": os.getpid(), "started": psutil.Process().create_time(), "label": "sampled"}
    (folder / "task.json").write_text(json.dumps({**own, "begun": 0.0}), encoding="utf-8")
    with pytest.raises(ValueError, match="A preview of 'sampled' is being made; wait until"):
        tab._delete("sampled")
    assert run.path.is_dir()
    (folder / "task.json").unlink()
    tab._delete("sampled")
    assert not run.path.exists()
