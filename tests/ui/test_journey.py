"""From a fresh start to a LoRA in ComfyUI, and everything that may happen on the way."""

from __future__ import annotations

import json
import zipfile
from contextlib import contextmanager
from typing import Any

import psutil
from browsing import load_settings, opened, ready, start, tab, toast, wait_status
from patience import wait_until
from playwright.sync_api import Route
from webtrainer import tiny_settings

from trainer.lora.formats import read_lora
from trainer.runs.events import read_events
from trainer.runs.folder import Run
from trainer.runs.state import read_state

LONG = 5000


def wait_for(page, condition):
    """Let the page live until ``condition()`` holds."""
    wait_until(condition, "what the page was asked for", pause=lambda _: page.wait_for_timeout(100))


@contextmanager
def answer_held(page, text):
    """Hold back what the page asks with ``text`` in it, until the end of the block."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        if text in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.route("**/queue/join*", hold)
    yield
    wait_for(page, lambda: held)
    for route in held:
        route.continue_()
    page.unroute("**/queue/join*")


def test_from_a_fresh_start_to_a_lora_in_comfyui_by_clicking(trainer, chromium, tmp_path):
    with opened(chromium, trainer.url) as page:
        # An example style is filled in and looked at, and the form is complete.
        page.get_by_text("96 images used").wait_for()
        assert page.locator("#pictures img").count() > 10
        tab(page, "Train")
        assert page.locator("#run-name input, #run-name textarea").input_value() == "my-style"

        load_settings(page, tiny_settings(tmp_path, trainer.pictures / "poster", 4))
        start(page, "first")
        assert wait_status(page, "finished", "failed") == "finished"
        run = Run.open(trainer.runs / "first")
        assert "mcm.steps" in read_lora(run.export_path).metadata

        tab(page, "Monitor")
        page.locator("#monitor .chart circle").first.wait_for()
        assert page.locator("#monitor .chart").count() == 3
        page.get_by_role("button", name="Losses, for experts").click()
        page.locator("#losses .chart polyline").first.wait_for()
        exported = read_events(run.events_path, "export")[-1]["step"]
        assert f"is from step {exported}" in page.locator("#monitor").inner_text()
        assert "Exported" in page.locator("#log").inner_text()

        tab(page, "Samples")
        page.locator("#samples video").first.wait_for()
        page.wait_for_function(
            "() => [...document.querySelectorAll('#samples video')].every(v => v.readyState > 1)"
        )
        titles = page.locator("#samples .clip span").all_inner_texts()
        many = run.config().preview.teacher_steps
        assert titles[:3] == [f"original, {many} steps", "yours, 1 step", "yours, 2 steps"]
        assert page.locator("#samples .references img").count() == 6
        assert f"step {exported}" in page.locator("#samples .over").inner_text()

        tab(page, "Export")
        page.locator("#lora-about", has_text="Use it").wait_for()
        page.locator("#lora-about summary").click()
        page.locator("#lora-about", has_text="AutoV2").wait_for()
        with page.expect_download() as download:
            page.locator("#get-lora").click()
        assert download.value.suggested_filename == "first.safetensors"
        with page.expect_download() as download:
            page.locator("#get-workflow").click()
        workflow = json.loads(download.value.path().read_text(encoding="utf-8"))
        assert {"MCM_LoadLora", "KSampler"} <= {node["type"] for node in workflow["nodes"]}

        copied = trainer.comfyui / "models" / "loras" / "first.safetensors"
        page.locator("#copy-comfyui").click()
        page.get_by_text("Press R in ComfyUI").wait_for()
        assert copied.read_bytes() == run.export_path.read_bytes()
        page.locator("#copy-comfyui").click()
        toast(page, "choose another name")

        page.locator("#export-checkpoint").click()
        older = run.path / "first-step00000004.safetensors"
        wait_for(page, older.is_file)


def test_stop_saves_resume_goes_on_and_every_tab_sees_it(trainer, chromium, tmp_path):
    with opened(chromium, trainer.url) as page, opened(chromium, trainer.url) as second:
        load_settings(page, tiny_settings(tmp_path, trainer.pictures / "poster", LONG, LONG))
        start(page, "long")
        wait_status(page, "running")
        run = Run.open(trainer.runs / "long")

        page.reload()
        ready(page)
        assert wait_status(page, "running") == "running"
        assert "long" in page.locator("#status").inner_text()
        tab(page, "Train")
        assert page.locator("#field-steps input").input_value() == str(LONG)

        second.reload()  # it looked at an older run before this one began
        ready(second)
        wait_for(second, lambda: "long" in second.locator("#status").inner_text())
        wait_status(second, "running")
        second.locator("#stop").click()
        wait_status(page, "stopped")
        assert run.export_path.is_file()
        stopped_at = read_state(run).step
        assert 0 < stopped_at < LONG

        page.locator("#resume").click()
        wait_status(second, "running")
        wait_for(page, lambda: read_state(run).step > stopped_at)
        page.locator("#stop").click()
        wait_status(page, "stopped")
        assert f"Resumed at step {stopped_at}" in run.log_path.read_text(encoding="utf-8")


def test_a_restart_of_the_web_app_loses_neither_training_nor_queue(trainer, chromium, tmp_path):
    settings = tiny_settings(tmp_path, trainer.pictures / "poster", LONG, LONG)
    with opened(chromium, trainer.url) as page:
        load_settings(page, settings)
        start(page, "through")
        wait_status(page, "running")
        start(page, "next")
        wait_status(page, "waiting")
    run = Run.open(trainer.runs / "through")
    before = read_state(run)
    trainer.stop()
    assert psutil.pid_exists(before.pid)
    trainer.start()
    with opened(chromium, trainer.url) as page:
        wait_for(page, lambda: read_state(run).step > before.step)
        assert read_state(run).pid == before.pid
        tab(page, "Runs")
        wait_for(page, lambda: "waiting" in page.locator("#queue").inner_text())
        assert "through" in page.locator("#queue li").first.inner_text()
        run.request_stop()
        wait_for(page, lambda: read_state(Run.open(trainer.runs / "next")).status == "running")
        Run.open(trainer.runs / "next").request_stop()
        wait_for(page, lambda: read_state(Run.open(trainer.runs / "next")).status == "stopped")


def goes_back(page) -> bool:
    """To the Runs tab, again if the page's own change of tabs comes after the click."""
    tab(page, "Runs")
    page.wait_for_timeout(500)
    return page.locator("#delete").is_visible()


def test_check_first_sample_now_clone_and_delete(trainer, chromium, tmp_path):
    with opened(chromium, trainer.url) as page:
        load_settings(page, tiny_settings(tmp_path, trainer.pictures / "poster", 2))
        page.locator("#run-name input, #run-name textarea").fill("side")
        page.locator("#preflight").click()
        page.locator(".notice.good", has_text="It fits: side").wait_for()
        start(page, "side")
        assert wait_status(page, "finished", "failed") == "finished"
        run = Run.open(trainer.runs / "side")

        tab(page, "Samples")
        before = len(read_events(run.events_path, "preview"))
        page.locator("#sample-now").click()
        wait_for(page, lambda: len(read_events(run.events_path, "preview")) == before + 1)
        # The event comes before the process ends, and one preview is made at a time.
        page.locator(".notice.live", has_text="Sampling side").wait_for(state="hidden")
        page.get_by_role("button", name="Your own prompts").click()
        page.locator("#own-prompts textarea").fill("--a red star, growing")
        page.locator("#make-clips").click()
        page.locator("#samples h3", has_text="--a red star, growing").wait_for()
        wait_for(page, lambda: not page.get_by_text("Sampling side").is_visible())
        page.locator("#compare-strengths").click()
        page.locator("#samples .clip", has_text="strength 0.75").wait_for()
        shown = page.locator("#samples .samples .clip span").all_inner_texts()
        assert shown == ["strength 0", "strength 0.5", "strength 0.75", "strength 1"]
        page.locator(".notice.live", has_text="Sampling side").wait_for(state="hidden")

        tab(page, "Runs")
        page.locator("#clone").click()
        name = page.locator("#run-name input, #run-name textarea")
        name.wait_for()
        wait_for(page, lambda: name.input_value() == "side-2")
        wait_for(page, lambda: goes_back(page))
        asked: list[str] = []
        answers = iter((False, True))

        def answer(dialog):
            asked.append(dialog.message)
            dialog.accept() if next(answers) else dialog.dismiss()

        page.on("dialog", answer)
        held: list[Any] = []
        page.route("**/queue/join*", lambda route: held.append(route))
        page.locator("#delete").click()
        wait_for(page, lambda: len(asked) == 1 and held)
        assert '"side"' in asked[0] and run.path.exists()
        page.locator("#delete").click()  # while the first answer is still on its way
        wait_for(page, lambda: len(held) == 2)
        for route in held:
            route.continue_()
        page.unroute("**/queue/join*")
        wait_for(page, lambda: not run.path.exists())
        wait_for(page, lambda: "side" not in page.locator("#runs").inner_text())


def test_a_pasted_run_name_outlives_a_reload(trainer, chromium):
    with opened(chromium, trainer.url) as page:
        tab(page, "Train")
        name = page.locator("#run-name input, #run-name textarea")
        name.fill("pasted at once")
        name.press("Tab")
        draft = trainer.runs / "_web" / "draft.json"
        wait_for(page, lambda: draft.is_file() and "pasted at once" in draft.read_text())
        page.reload()
        ready(page)
        tab(page, "Train")
        assert name.input_value() == "pasted at once"


def test_a_folder_that_cannot_be_used_says_why(trainer, chromium):
    (trainer.pictures / "texts").mkdir()
    (trainer.pictures / "texts" / "note.txt").write_text("no picture", encoding="utf-8")
    cases = {
        str(trainer.pictures / "missing"): "does not exist",
        str(trainer.pictures / "texts"): "No usable images",
        "/etc": "outside the folders",
        str(trainer.pictures / ".." / "runs"): "outside the folders",
    }
    with opened(chromium, trainer.url) as page:
        box = page.locator("#field-images input, #field-images textarea")
        for folder, reason in cases.items():
            box.fill(folder)
            page.locator("#check-folder").click()
            page.locator(".notice.bad", has_text=reason).wait_for()
        # What comes while a folder is being read counts: a folder picked, and a second click.
        with answer_held(page, "/etc"):
            box.fill("/etc")
            page.locator("#check-folder").click()
            page.locator("#known-folders input").click()
            page.get_by_role("option", name="example: poster").click()
            wait_for(page, lambda: box.input_value() != "/etc")
        page.get_by_text("96 images used").wait_for()
        box.fill(str(trainer.pictures / "missing"))
        page.locator("#check-folder").click()
        page.locator(".notice.bad", has_text="does not exist").wait_for()
        with answer_held(page, "/etc"):
            box.fill("/etc")
            page.locator("#check-folder").click()
            box.fill(str(trainer.pictures / "poster"))  # kept for the tests that follow
            page.locator("#check-folder").click()
        page.get_by_text("images used").wait_for()


def test_uploaded_pictures_get_captions_that_are_kept(trainer, chromium, tmp_path):
    archive = tmp_path / "Mein Stil.zip"
    files = sorted((trainer.pictures / "poster").glob("*.png"))[:3]
    with zipfile.ZipFile(archive, "w") as packed:
        for file in files:
            packed.write(file, f"set/{file.name}")
    with opened(chromium, trainer.url) as page:
        page.get_by_text("images used").wait_for()  # of the folder that a new page opens with
        with page.expect_file_chooser() as chooser:
            page.locator("#upload-images").click()
        chooser.value.set_files(str(archive))
        page.get_by_text("3 images used").wait_for()
        page.get_by_text("3 without a caption").wait_for()
        page.locator("#pictures button.thumbnail-item").first.click()
        page.locator("#caption-text textarea").wait_for()
        page.get_by_text("The model reads: (nothing)").wait_for()
        page.locator("#caption-text textarea").fill("ein Kreis, [trigger]")
        page.locator("#save-caption").click()
        page.get_by_text("2 without a caption").wait_for()
        page.get_by_text("The model reads: ein Kreis").wait_for()
    saved = list((trainer.runs / "_web" / "uploads").rglob("*.txt"))
    assert [file.read_text(encoding="utf-8") for file in saved] == ["ein Kreis, [trigger]\n"]
