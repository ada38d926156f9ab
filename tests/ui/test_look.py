"""What the page looks like to people: readable text, a header that stays, a narrow telephone."""

from __future__ import annotations

import pytest
from browsing import opened, tab

TABS = ("Data", "Train", "Monitor", "Samples", "Export", "Runs", "First style")
FAINT = """() => {
    const parse = text => (text.match(/[\\d.]+/g) ?? []).map(Number);
    const over = (top, below) => {
        const a = top[3] ?? 1;
        return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a));
    };
    const behind = element => {
        const layers = [];
        for (let each = element; each; each = each.parentElement)
            layers.push(parse(getComputedStyle(each).backgroundColor));
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    const light = colour => {
        const parts = colour.slice(0, 3).map(value => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const faint = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const text = walker.currentNode.textContent.trim();
        if (!text || !element.offsetParent || element.closest(":disabled, svg, .spoken")) continue;
        const style = getComputedStyle(element);
        const below = behind(element);
        const above = over(parse(style.color), below);
        const [low, high] = [light(below), light(above)].sort((a, b) => a - b);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
        const ratio = (high + 0.05) / (low + 0.05);
        if (ratio < (large ? 3 : 4.5)) faint.add(`${ratio.toFixed(1)} ${text.slice(0, 60)}`);
    }
    return [...faint];
}"""
WIDER = """() => [...document.querySelectorAll("#component-0 *, .gradio-container *")]
    .filter(each => each.checkVisibility({visibilityProperty: true, opacityProperty: true}))
    .filter(each => each.getBoundingClientRect().right > innerWidth + 1)
    .filter(each => !each.closest("table, .log, .tab-wrapper, pre"))
    .map(each => `${each.tagName} ${each.id} ${each.className}`.slice(0, 80))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(trainer, chromium, scheme):
    """WCAG 2.1 AA: 4.5 to 1, 3 to 1 for large text."""
    with opened(chromium, trainer.url, scheme=scheme) as page:
        page.get_by_text("images used").wait_for()
        for name in TABS:
            tab(page, name)
            page.wait_for_timeout(300)  # colours of the tab fade in
            assert page.evaluate(FAINT) == [], name


def test_the_header_stays_in_sight_and_messages_leave_it_free(trainer, chromium):
    with opened(chromium, trainer.url, height=500) as page:
        page.get_by_text("images used").wait_for()
        page.evaluate("() => window.scrollTo(0, 700)")
        page.wait_for_function("() => window.scrollY > 100")
        box = page.locator("#head").bounding_box()
        assert box is not None and box["y"] <= 1
        page.locator("#stop").wait_for()
        tab(page, "Runs")
        page.locator("#clone").click()  # there is no run yet
        message = page.locator(".toast-body").first
        message.wait_for()
        shown, stop = message.bounding_box(), page.locator("#stop").bounding_box()
        assert shown["y"] >= stop["y"] + stop["height"]


def test_a_telephone_shows_everything_within_its_width(trainer, chromium):
    with opened(chromium, trainer.url, width=390, height=844) as page:
        page.get_by_text("images used").wait_for()
        for name in TABS:
            choice = page.get_by_role("tab", name=name, exact=True)
            if not choice.is_visible():
                page.locator(".overflow-menu > button").click()
                page.locator(".overflow-dropdown button", has_text=name).click()
            else:
                choice.click()
            assert page.evaluate(WIDER) == [], name


def test_a_screen_reader_finds_headings_and_names(trainer, chromium):
    with opened(chromium, trainer.url) as page:
        assert page.get_by_role("heading", level=1).all_inner_texts() == ["MCM trainer"]
        for name in TABS:
            tab(page, name)
            nameless = page.evaluate(
                """() => [...document.querySelectorAll("button, input, textarea, select")]
                    .filter(each => each.offsetParent && each.type !== "file")
                    .filter(each => !(each.ariaLabel || each.title || each.innerText?.trim()
                        || each.labels?.length || each.getAttribute("aria-labelledby")
                        || each.closest("label")))
                    .map(each => each.outerHTML.slice(0, 120))"""
            )
            assert nameless == [], name
