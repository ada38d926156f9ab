"""Attempts to get out of the allowed folders, over every door that the page has."""

from __future__ import annotations

import json
import shutil
import stat
import struct
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

import pytest
from webtrainer import ROOT, WebTrainer

SECRET = "the-secret-that-must-stay-here"
NAMES = (
    "../../secret.txt",
    "..\\..\\secret.txt",
    "/etc/passwd",
    "C:\\Windows\\win.ini",
    "\\\\evil.example\\share",
    "//evil.example/share",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "....//....//etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "runs/../../../../etc",
    "~root/.ssh",
    "x\x00.png",
    "x\n--prompt=y",
    "--help",
    "-rf",
    "; touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "| touch pwned",
    "<script>window.pwned=1</script>",
    "${7*7}{{7*7}}",
    "con",
    ".",
    "..",
    "",
    "a" * 5000,
)
DOORS = (
    "gradio_api/file=", "file=", "gradio_api/file/", "gradio_api/proxy=", "proxy=",
    "gradio_api/stream/", "static/", "assets/", "svelte/", "custom_component/",
)  # fmt: skip
UNUSED = (
    "gradio_api/info", "gradio_api/openapi.json", "gradio_api/runs", "monitoring",
    "gradio_api/vibe-code", "gradio_api/deep_link", "gradio_api/dev/reload",
)  # fmt: skip
UNUSED_POSTS = (
    "gradio_api/component_server", "gradio_api/call/start", "gradio_api/api/start",
    "gradio_api/vibe-edit", "gradio_api/process_recording",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Places with one picture folder, beside a folder with a secret that no root holds."""
    from ui.places import Places
    from ui.site import Site

    home = tmp_path_factory.mktemp("site")
    (home / "pictures" / ".hidden").mkdir(parents=True)
    (home / "outside").mkdir()
    (home / "outside" / "secret.txt").write_text(SECRET, encoding="utf-8")
    if sys.platform != "win32":
        (home / "pictures" / "way-out").symlink_to(home / "outside")
    return Site(Places(ROOT, home / "runs", (home / "pictures",)))


def snapshot(folder: Path, without: Path) -> dict[str, bytes]:
    return {
        str(file): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.is_relative_to(without)
    }


@pytest.mark.parametrize("text", [*NAMES, "way-out", ".hidden", "../outside", "../runs"])
def test_no_text_names_a_path_outside_the_roots(site, text):
    from ui.places import PlaceError

    pictures = site.places.roots[0]
    for attempt in (text, f"{pictures}/{text}", f"{pictures}/x/../{text}"):
        try:
            found = site.places.read(attempt)
        except PlaceError:
            continue
        assert found.is_relative_to(pictures.resolve()), attempt
        assert not found.exists() or found == pictures.resolve()


@pytest.mark.parametrize("text", NAMES)
def test_a_run_name_is_a_name_and_nothing_else(site, text):
    from ui.places import PlaceError

    with pytest.raises(PlaceError):
        site.places.run(text)
    if text.strip():
        made = site.places.new_run(text)
        assert made.parent == site.places.runs
        assert made.resolve().parent == site.places.runs.resolve()
        assert made != site.places.web and made.name not in (".", "..")


def write_zip(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def link_entry() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("link.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    "entries, reason",
    [
        ([("../../evil.png", b"x")], "outside itself"),
        ([("/tmp/evil.png", b"x")], "outside itself"),
        ([("..\\evil.png", b"x")], "outside itself"),
        ([("C:evil.png", b"x")], "outside itself"),
        ([("good.png", b"x"), ("a/../../evil.png", b"x")], "outside itself"),
        ([(link_entry(), b"/etc/passwd")], "link"),
        ([("bomb.png", b"\0" * 60_000_000)], "hundred times"),
        ([("readme.md", b"x"), (".hidden.png", b"x")], "no images"),
    ],
)
def test_a_harmful_zip_is_refused_whole(site, tmp_path, entries, reason):
    from ui.places import PlaceError
    from ui.uploads import receive

    file = write_zip(tmp_path / "x.zip", *entries)
    before = snapshot(site.places.runs.parent, site.places.web / "nothing")
    with pytest.raises(PlaceError, match=reason):
        receive([file], "x", site.places.uploads)
    assert snapshot(site.places.runs.parent, site.places.web / "nothing") == before
    assert not any(tmp_path.rglob("evil*"))


def test_a_zip_that_lies_about_its_sizes_is_refused(site, tmp_path):
    from ui.places import PlaceError
    from ui.uploads import receive

    file = write_zip(tmp_path / "liar.zip", ("liar.png", b"\0" * 60_000_000))
    content = bytearray(file.read_bytes())
    small = struct.pack("<I", 100)  # the claimed size, in the local and the central header
    content[22:26] = small
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = small
    file.write_bytes(bytes(content))
    with pytest.raises(PlaceError):
        receive([file], "liar", site.places.uploads)
    assert not (site.places.uploads / "liar").exists()


def test_odd_names_in_a_zip_become_safe_ones(site, tmp_path):
    from ui.uploads import receive

    entries = [("10_set/<b>&x.png", b"1"), ("10_set/con.png", b"2"), ("Ü ö.webp", b"3")]
    made = receive([write_zip(tmp_path / "x.zip", *entries)], "../../set", site.places.uploads)
    assert made.folder.parent == site.places.uploads and made.files == 3
    names = {file.relative_to(made.folder).as_posix() for file in made.folder.rglob("*.*")}
    assert names == {"10_set/b-x.png", "10_set/run-con.png", "Ü-ö.webp"}


def test_more_files_than_allowed_are_refused(site, tmp_path, monkeypatch):
    from ui import uploads
    from ui.places import PlaceError

    monkeypatch.setattr(uploads, "MAX_FILES", 3)
    file = write_zip(tmp_path / "many.zip", *((f"{n}.png", b"x") for n in range(4)))
    with pytest.raises(PlaceError, match="more than 3"):
        uploads.receive([file], "many", site.places.uploads)


def ask(url: str, data: object = None, **headers: str) -> tuple[int, str]:
    """Status and body of a request; ``data`` is posted as JSON."""
    body = None if data is None else json.dumps(data).encode("utf-8")
    request = urllib.request.Request(url, body, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode("utf-8", errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", errors="replace")


@pytest.fixture(scope="module")
def server(tmp_path_factory, pictures):
    web = WebTrainer(tmp_path_factory.mktemp("secure"))
    shutil.copytree(pictures, web.pictures / "poster")
    (web.comfyui / "models" / "loras").mkdir(parents=True)
    (web.home / "secret.txt").write_text(SECRET, encoding="utf-8")
    web.start()
    yield web
    web.stop_everything()


def test_no_file_address_leads_outside(server):
    secret = server.home / "secret.txt"
    runs = server.runs.as_posix()
    paths = [
        secret.as_posix(), f"{runs}/../secret.txt", f"{runs}/..%2fsecret.txt",
        f"{runs}/%2e%2e/secret.txt", f"{runs}//../secret.txt", f"{runs}/..\\secret.txt",
        "/etc/passwd", "/etc/passwd?x=.png", "/etc/passwd%00.png", "ui_gradio.py", "../secret.txt",
        "http://127.0.0.1:1/x.png", "https://evil.example/x.png", "file:///etc/passwd",
        str(ROOT / "trainer" / "assets" / "mini" / "mcm.json"), f"{runs}/_web/draft.json/..",
    ]  # fmt: skip
    for door in DOORS:
        for path in paths:
            status, text = ask(f"{server.url}{door}{path.replace(' ', '%20')}")
            assert status in (400, 403, 404, 405), (door, path, status)
            assert SECRET not in text and "root:" not in text


def test_doors_that_the_page_does_not_use_are_shut(server):
    for path in UNUSED:
        assert ask(server.url + path)[0] in (403, 404), path
    for path in UNUSED_POSTS:
        assert ask(server.url + path, {"data": []})[0] in (403, 404), path


def test_foreign_pages_and_hosts_are_refused(server):
    assert ask(server.url, host="evil.example")[0] == 403
    assert ask(server.url, host=f"evil.example:{server.port}")[0] == 403
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        assert ask(server.url, origin=origin)[0] == 403
        assert ask(f"{server.url}gradio_api/upload", {}, origin=origin)[0] == 403
    own = urllib.request.Request(server.url, headers={"origin": server.url.rstrip("/")})
    with urllib.request.urlopen(own, timeout=60) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_every_text_field_of_every_handler_withstands_every_attempt(server):
    config = json.loads(ask(f"{server.url}config")[1])
    kinds = {part["id"]: part["type"] for part in config["components"]}
    before = snapshot(server.home, server.runs)
    assert len(config["dependencies"]) > 25
    for handler in config["dependencies"]:
        assert handler["api_visibility"] == "private"
        texts = [kinds[part] in ("textbox", "dropdown") for part in handler["inputs"]]
        for name in (*NAMES, f"{server.home}/secret.txt", f"{server.pictures}/../secret.txt"):
            if not any(texts):
                break
            data = [name if is_text else None for is_text in texts]
            body = {"data": data, "fn_index": handler["id"], "session_hash": "attack"}
            status, text = ask(f"{server.url}gradio_api/run/predict", body)
            assert status in (200, 400, 422, 500), status
            assert SECRET not in text and "root:x:" not in text
            assert not text.startswith("<"), "an answer must never be a page"
    assert snapshot(server.home, server.runs) == before | {
        str(server.home / "server.txt"): (server.home / "server.txt").read_bytes()
    }
    assert not list(server.home.rglob("pwned")) and not (ROOT / "pwned").exists()
    assert [entry.name for entry in server.runs.iterdir()] == ["_web"]


@pytest.mark.parametrize(
    "options", [["--listen", "0.0.0.0"], ["--listen", "0.0.0.0", "--auth", "a:b"]]
)
def test_the_page_is_never_open_to_a_network_without_a_password(options):
    from ui.server import OptionError, credentials, parser

    with pytest.raises(OptionError, match="--auth"):
        credentials(parser().parse_args(options))


def test_a_listening_page_reads_no_home_folder():
    from ui.server import parser, places_of

    options = parser().parse_args(["--listen", "0.0.0.0", "--auth", "me:long-enough"])
    assert Path.home() not in places_of(options).readable


def test_captions_are_never_written_into_the_examples(site):
    from ui.places import PlaceError

    example = ROOT / "trainer" / "assets" / "mini" / "styles" / "poster" / "x.png"
    with pytest.raises(PlaceError, match="Make an editable copy"):
        site.places.write_captions(example)
