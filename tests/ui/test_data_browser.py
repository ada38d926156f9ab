"""The Data tab in a browser: dropping, captions, sets, the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from browsing import opened, toast
from PIL import Image

DROP = """([input, files]) => {
  const moved = new DataTransfer();
  for (const [name, bytes] of files) moved.items.add(new File([new Uint8Array(bytes)], name));
  input.dispatchEvent(new DragEvent("drop", { dataTransfer: moved, bubbles: true }));
}"""


def pictures(folder: Path, count: int, captions: dict[int, str] | None = None) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number:03}.png")
        if number in (captions or {}):
            (folder / f"{number:03}.txt").write_text(captions[number], encoding="utf-8")
    return folder


def open_folder(page, folder: Path, used: int) -> None:
    page.get_by_text("images used").wait_for()  # of the folder that a new page opens with
    page.locator("#field-images input, #field-images textarea").fill(str(folder))
    page.locator("#check-folder").click()
    page.get_by_text(f"{used} images used").wait_for()


def caption(page):
    return page.locator("#caption-text textarea")


def expect_text(page, text: str) -> None:
    page.wait_for_function(
        "text => document.querySelector('#caption-text textarea').value === text", arg=text
    )


def picture(page, number: int):
    return page.locator("#pictures button.thumbnail-item").nth(number)


def test_dropped_files_become_a_set_that_grows_shrinks_and_goes(trainer, chromium, tmp_path):
    source = pictures(tmp_path / "three", 3, {0: "zero"})
    (source / "letter.pdf").write_bytes(b"%PDF-1.7")
    uploads = trainer.runs / "_web" / "uploads"
    with opened(chromium, trainer.url) as page:
        page.get_by_text("96 images used").wait_for()
        files = [[path.name, list(path.read_bytes())] for path in sorted(source.iterdir())]
        zone = page.locator("#upload-images button").first.element_handle()
        page.evaluate(DROP, [zone, files])
        page.get_by_text("3 images and 1 caption received in 'my-images'").wait_for()
        page.get_by_text("letter.pdf: not an image or a caption (it is a PDF)").wait_for()
        page.get_by_text("3 images used").wait_for()

        page.get_by_label("Add to the open set").check()
        page.locator("#upload-images input[type=file]").set_input_files(str(source / "000.png"))
        page.get_by_text("4 images used").wait_for()
        assert (uploads / "my-images" / "000-2.png").is_file()

        page.on("dialog", lambda dialog: dialog.accept())
        picture(page, 1).click()  # after 000-2.png
        expect_text(page, "zero")
        page.locator("#remove-picture").click()
        page.get_by_text("3 images used").wait_for()
        assert not (uploads / "my-images" / "000.txt").exists()
        page.locator("#delete-set").click()
        page.get_by_text("96 images used").wait_for()
        assert not (uploads / "my-images").exists()
        page.locator("#delete-set").click()
        toast(page, "was not made on this page")


def test_keys_turn_the_pictures_and_no_typed_text_is_lost(trainer, chromium):
    folder = pictures(trainer.pictures / "keys", 3, {0: "zero", 1: "one", 2: "two"})
    with opened(chromium, trainer.url) as page:
        open_folder(page, folder, 3)
        picture(page, 0).click()
        expect_text(page, "zero")
        caption(page).fill("zero, typed")
        page.locator("#seen-as", has_text="not saved yet").wait_for()
        page.locator("#seen-as", has_text="The model reads: zero, typed").wait_for()
        caption(page).press("PageDown")
        expect_text(page, "one")
        picture(page, 2).click()
        expect_text(page, "two")
        caption(page).fill("two, typed")
        page.locator("#seen-as", has_text="The model reads: two, typed").wait_for()

        page.reload()
        open_folder(page, folder, 3)
        picture(page, 0).click()
        expect_text(page, "zero, typed")
        caption(page).press("Control+Enter")
        expect_text(page, "one")
        assert (folder / "000.txt").read_text(encoding="utf-8") == "zero, typed\n"
        caption(page).press("PageDown")
        expect_text(page, "two, typed")
        caption(page).press("PageUp")
        expect_text(page, "one")
        assert (folder / "002.txt").read_text(encoding="utf-8") == "two"


def test_captions_are_shown_with_the_trigger_word_and_changed_all_at_once(trainer, chromium):
    captions = {0: "a pink fox", 1: "ink, a bear", 2: "[trigger], a cat"}
    folder = pictures(trainer.pictures / "many", 4, captions)
    with opened(chromium, trainer.url) as page:
        open_folder(page, folder, 4)
        page.locator("#field-trigger input, #field-trigger textarea").fill("ink")
        page.locator("#caption-text textarea").click()  # leaves the field
        page.get_by_text("1 captions without the trigger word").wait_for()
        page.locator("#pictures", has_text="ink, a cat").wait_for()

        page.get_by_role("button", name="Change all captions").first.click()
        page.locator("#change-words textarea, #change-words input").fill("drawn")
        page.get_by_text("3 of 3 captions would change.").wait_for()
        page.locator("#change-all").click()
        page.locator("#pictures", has_text="drawn, a pink fox").wait_for()
        written = [(folder / f"{n:03}.txt").read_text(encoding="utf-8") for n in range(3)]
        assert written == [
            "drawn, a pink fox\n",
            "drawn, ink, a bear\n",
            "drawn, [trigger], a cat\n",
        ]
        assert not (folder / "003.txt").exists()
        page.locator("#undo-change").click()
        page.locator("#pictures", has_text="drawn").wait_for(state="hidden")
        assert (folder / "000.txt").read_text(encoding="utf-8") == "a pink fox\n"
        page.locator("#field-trigger input, #field-trigger textarea").fill("")


def test_a_report_of_many_files_with_long_captions_is_paged(trainer, chromium):
    count = 120
    text = "a wide green valley with houses " * 50
    folder = pictures(trainer.pictures / "long", count, dict.fromkeys(range(count), text))
    with opened(chromium, trainer.url, width=390, height=800) as page:
        open_folder(page, folder, count)
        page.get_by_label("All files").check()
        page.get_by_text(f"1 to 50 of {count} files (page 1 of 3)").wait_for()
        page.locator("#next-files").click()
        page.get_by_text(f"51 to 100 of {count} files (page 2 of 3)").wait_for()
        rows = page.locator("#report tbody tr")
        assert rows.count() == 50
        assert max(row.bounding_box()["height"] for row in rows.all()[:5]) < 300
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
