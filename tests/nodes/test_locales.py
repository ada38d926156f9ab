"""Every text of every node in every language, and none that no node has."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from browser import frontend

FOLDER = Path(__file__).resolve().parents[2] / "locales"
LANGUAGES = ("de", "zh")
CONTROL = "control_after_generate"
SAME_IN_GERMAN = {"Videos", "Seed", "CFG"}
"""Words that are German as they stand."""


def definitions(language):
    return json.loads((FOLDER / language / "nodeDefs.json").read_text(encoding="utf-8"))


def texts(node, path=()):
    """(path, text) of every text of a node."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from texts(value, (*path, key))
        else:
            yield (*path, key), value


@pytest.fixture(scope="module")
def english(comfy_server):
    spec = importlib.util.spec_from_file_location("locales_build", FOLDER / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build.english(comfy_server.get("/object_info"))


def test_english_is_what_the_nodes_say(english):
    assert definitions("en") == english, "Run: python locales/build.py"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated_and_no_other(english, language):
    translated = definitions(language)
    assert set(translated) == set(english)
    for name, node in english.items():
        wanted = {path for path, _ in texts(node)}
        found = {path for path, _ in texts(translated[name]) if CONTROL not in path}
        assert found == wanted, name


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_in_their_language(english, language):
    for name, node in definitions(language).items():
        originals = dict(texts(english[name]))
        for path, text in texts(node):
            place = f"{name}: {'.'.join(path)}: {text}"
            if language == "zh":
                assert re.search(r"[\u4e00-\u9fff]", text) or text in ("CFG", "K"), place
            else:
                same = text.casefold() == str(originals.get(path)).casefold()
                assert not same or text in SAME_IN_GERMAN, place


@pytest.mark.parametrize("language", ("en", *LANGUAGES))
def test_no_text_has_a_sign_that_the_frontend_reads_as_syntax(language):
    for name, node in definitions(language).items():
        for path, text in texts(node):
            assert not set(text) & set("{}@|"), f"{name}: {'.'.join(path)}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_file_names_and_values_are_those_of_the_english_text(english, language):
    wanted = re.compile(r"\d+(?:\.\d+)?|\b[a-z]+_[a-z0-9_]+\b|models/\w+|`[^`]+`")
    for name, node in definitions(language).items():
        originals = dict(texts(english[name]))
        for path, text in texts(node):
            if path[-1] != "name" and path in originals:
                want, found = (set(wanted.findall(each)) for each in (originals[path], text))
                assert want == found, f"{name}: {'.'.join(path)}"


def test_the_server_gives_every_language_to_the_frontend(comfy_server):
    served = comfy_server.get("/i18n")
    for language in ("en", *LANGUAGES):
        assert definitions(language).items() <= served[language]["nodeDefs"].items()
        assert served[language]["templateWorkflows"]["category"]["mcm-video"]


NAMES = """() => {
    app.graph.clear();
    const node = LiteGraph.createNode("MCM_LoadLora");
    app.graph.add(node);
    const output = LiteGraph.createNode("MCM_LoraInfo").outputs[0];
    return [node.title, node.widgets.map(each => each.label), output.localized_name];
}"""


WANTED = {
    "zh": ["加载 MCM LoRA", ["LoRA名称", "强度"], "步数"],
    "de": ["MCM-LoRA laden", ["LoRA-Datei", "Stärke"], "Schritte"],
}


def names_in(server, language):
    server.post("/settings", {"Comfy.Locale": language})
    try:
        with frontend(server) as page:
            return page.evaluate(NAMES)
    finally:
        server.post("/settings", {"Comfy.Locale": "en"})


def test_names_show_in_the_language_of_the_browser(comfy_server):
    """Frontend 1.32.9 forgets a pack's words in the languages that it has itself; 1.49.6 and 1.58.1
    have no German."""
    shown = {language: names_in(comfy_server, language) for language in WANTED}
    assert any(shown[language] == WANTED[language] for language in WANTED), shown
