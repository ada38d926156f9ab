"""Captions beside images and videos: `x.png` is described by `x.txt` or `x.caption`, in UTF-8.

Nothing is guessed. A caption that cannot be read is an error of that file, a caption that is empty
or too long is a problem that the report lists, and what the model will see is exactly
:attr:`Caption.text`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..runs.files import atomic_write
from .records import DataError

CAPTION_SUFFIXES = (".txt", ".caption", ".TXT", ".CAPTION")
TRIGGER_TOKEN = "[trigger]"
DEFAULT_TEMPLATE = "{trigger}"
MAX_CAPTION_BYTES = 64 * 1024


@dataclass(frozen=True)
class Caption:
    """What the model is told about one file.

    `text` is the prompt, white space collapsed. `source` is "txt" or "caption" (a sidecar),
    "template" (no sidecar, or an empty one: the prompt template was used) or "neutral" (the same,
    but without a trigger word the template has nothing to say, and the prompt is ""). `problems`
    are for a person to read. `error` is set when a sidecar exists but cannot be read; `text` is
    then "" and must not be used.
    """

    text: str
    source: str
    problems: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class CaptionRules:
    """How captions become prompts.

    Args:
        trigger: the word that replaces `[trigger]` in captions and `{trigger}` in the template; may
            be "".
        prompt_template: the prompt for files without a caption.
        count_tokens: length of a prompt in tokens, in the same counting as `max_tokens` (both or
            neither).
        max_tokens: longest prompt that the text encoder reads.

    Raises:
        DataError: for a template with an unknown `{field}`, or only one of the two token arguments.
    """

    trigger: str = ""
    prompt_template: str = DEFAULT_TEMPLATE
    count_tokens: Callable[[str], int] | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        unknown = set(re.findall(r"\{(.*?)\}", self.prompt_template)) - {"trigger"}
        if unknown:
            raise DataError(
                f"`prompt_template`={self.prompt_template!r} uses {{{sorted(unknown)[0]}}}; "
                "the only field is {trigger}. Remove the braces or use {trigger}."
            )
        if (self.count_tokens is None) != (self.max_tokens is None):
            raise DataError("`count_tokens` and `max_tokens` belong together; give both or none.")

    def read(self, path: Path, root: Path | None = None) -> Caption:
        """The caption of the image or video at `path`; see :func:`read_caption`."""
        sidecar = find_sidecar(path)
        if sidecar is None:
            return self._from_template(())
        source = sidecar.suffix.lower().lstrip(".")
        raw, error = _read_sidecar(sidecar, root or path.parent)
        if error is not None:
            return Caption("", source, error=error)
        problems = _overshadowed(path, sidecar)
        if not raw.strip():
            return self._from_template((*problems, f"{sidecar.name} is empty, not used"))
        if TRIGGER_TOKEN in raw and not self.trigger:
            problems = (*problems, f"{sidecar.name} uses {TRIGGER_TOKEN}, but no trigger is set")
        text = insert_trigger(raw, self.trigger)
        return Caption(text, source, (*problems, *self._length_problem(text)))

    def _from_template(self, problems: tuple[str, ...]) -> Caption:
        text = fill_template(self.prompt_template, self.trigger)
        source = "template" if text else "neutral"
        return Caption(text, source, (*problems, *self._length_problem(text)))

    def _length_problem(self, text: str) -> tuple[str, ...]:
        if self.count_tokens is None or self.max_tokens is None:
            return ()
        tokens = self.count_tokens(text)
        if tokens <= self.max_tokens:
            return ()
        return (f"too long: {tokens} tokens, only {self.max_tokens} of them are read",)


def read_caption(
    path: Path,
    *,
    trigger: str = "",
    prompt_template: str = DEFAULT_TEMPLATE,
    count_tokens: Callable[[str], int] | None = None,
    max_tokens: int | None = None,
) -> Caption:
    """The caption of the file `x` at `path`: from `x.txt`, else `x.caption`, else the template.

    Line breaks and runs of blanks become one blank (text encoders do not see them). A sidecar that
    is not UTF-8 (with or without a byte order mark), or a link that leaves the folder, gives
    `Caption.error`.

    Raises:
        DataError: see :class:`CaptionRules`.
    """
    return CaptionRules(trigger, prompt_template, count_tokens, max_tokens).read(Path(path))


def write_caption(path: Path, text: str) -> Path:
    """Write `text` as the caption of the image or video at `path`; returns the sidecar.

    The sidecar that :func:`read_caption` reads is replaced (`x.txt` if there is none yet), so that
    an edit is never hidden by an older file. It is written atomically, in UTF-8 without a byte
    order mark, one line break at the end.

    Raises:
        DataError: if `text` cannot be stored as UTF-8 or holds NUL characters.
        OSError: if the folder cannot be written.
    """
    path = Path(path)
    sidecar = find_sidecar(path) or path.with_suffix(".txt")
    try:
        data = (text.strip() + "\n").encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"The caption of {path.name} is no valid text: {error}.") from error
    if b"\0" in data:
        raise DataError(f"The caption of {path.name} holds a NUL character; remove it.")
    atomic_write(sidecar, data)
    return sidecar


def find_sidecar(path: Path) -> Path | None:
    """The caption file of `path` that is read: `.txt` goes before `.caption`."""
    for suffix in CAPTION_SUFFIXES:
        sidecar = path.with_suffix(suffix)
        if sidecar.is_file() or sidecar.is_symlink():
            return sidecar
    return None


def insert_trigger(text: str, trigger: str) -> str:
    """Replace every `[trigger]` and collapse white space; without a trigger its commas go, too."""
    text = text.replace(TRIGGER_TOKEN, trigger)
    text = " ".join(text.split())
    if not trigger:
        text = re.sub(r",(\s*,)+", ",", text).strip(" ,")
    return text


def fill_template(prompt_template: str, trigger: str) -> str:
    """The prompt without a caption; "" if the template asks for a trigger and there is none.

    >>> fill_template("a painting in {trigger} style", "zorn")
    'a painting in zorn style'
    """
    if "{trigger}" in prompt_template and not trigger:
        return ""
    return insert_trigger(prompt_template.replace("{trigger}", trigger), trigger)


def _read_sidecar(sidecar: Path, root: Path) -> tuple[str, str | None]:
    """The text of a caption file, or the reason why it cannot be used."""
    if not sidecar.resolve().is_relative_to(root.resolve()):
        return "", f"{sidecar.name} is a link that leaves the folder; put the caption itself there"
    try:
        with sidecar.open("rb") as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
    except OSError as error:
        return "", f"{sidecar.name} cannot be read ({error.strerror or error})"
    if len(data) > MAX_CAPTION_BYTES:
        return "", f"{sidecar.name} is larger than {MAX_CAPTION_BYTES // 1024} KiB: not a caption"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return "", f"{sidecar.name} is not UTF-8 (byte {error.start + 1}); save it as UTF-8"
    if "\0" in text:
        return "", f"{sidecar.name} is not UTF-8 text (it holds NUL bytes); save it as UTF-8"
    return text, None


def _overshadowed(path: Path, sidecar: Path) -> tuple[str, ...]:
    other = path.with_suffix(".caption")
    if sidecar.suffix.lower() == ".txt" and other.is_file():
        return (f"both {sidecar.name} and {other.name} exist; {sidecar.name} is used",)
    return ()
