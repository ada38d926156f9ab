"""The prompt for an image or a video: its caption, with the trigger word filled in.

A caption that cannot be read, is empty or too long is a problem that the report lists; the picture
is still used. The model sees exactly `Caption.text`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import atomic_write
from .records import DataError
from .sidecars import find_sidecar, find_sidecars, forget_listings, read_sidecar, table_caption

TRIGGER_TOKEN = "[trigger]"
DEFAULT_TEMPLATE = "[trigger]"
_TOKEN = re.compile(r"\[trigger\]|\{trigger\}", re.IGNORECASE)


@dataclass(frozen=True)
class Caption:
    """The prompt for one file.

    `text` is the prompt, white space collapsed. `source` is "txt" or "caption" (a sidecar), "table"
    (an entry of `metadata.jsonl` or a similar file), "template" (none of them, or an empty one: the
    prompt template was used) or "neutral" (the same, but the template needs a trigger word and
    there is none, so the prompt is ""). `problems` are for a person to read.
    """

    text: str
    source: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptionRules:
    """How captions become prompts.

    `trigger`: the word that replaces `[trigger]` (or `{trigger}`, in any case of letters) in
    captions and in the template; may be "". `prompt_template`: the prompt for files without a
    caption. `count_tokens`: length of a prompt in tokens, in the same counting as `max_tokens`
    (both or neither). `max_tokens`: longest prompt that the text encoder reads.

    Raises DataError for a template with an unknown `{field}`, or only one of the two token
    arguments.
    """

    trigger: str = ""
    prompt_template: str = DEFAULT_TEMPLATE
    count_tokens: Callable[[str], int] | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        unknown = re.findall(r"\{(.*?)\}", _TOKEN.sub("", self.prompt_template))
        if unknown:
            raise DataError(
                f"`prompt_template`={self.prompt_template!r} uses {{{unknown[0]}}}; "
                "the only field is [trigger]. Remove the braces or use [trigger]."
            )
        if (self.count_tokens is None) != (self.max_tokens is None):
            raise DataError("`count_tokens` and `max_tokens` belong together; set both or none.")

    def read(self, path: Path, root: Path | None = None) -> Caption:
        """The caption of the image or video at `path`; see `read_caption`."""
        return self.prompt(*_raw(path, root or path.parent))

    def prompt(self, raw: str, source: str = "txt", problems: tuple[str, ...] = ()) -> Caption:
        """The prompt for the written caption ``raw``, with its `source` and `problems`."""
        if not raw.strip():
            return self._from_template(problems)
        if _TOKEN.search(raw) and not self.trigger:
            problems = (*problems, f"it uses {TRIGGER_TOKEN}, but no trigger is set")
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
        return (f"too long: {tokens} tokens, but the model reads only {self.max_tokens}",)


def read_caption(
    path: Path,
    *,
    trigger: str = "",
    prompt_template: str = DEFAULT_TEMPLATE,
    count_tokens: Callable[[str], int] | None = None,
    max_tokens: int | None = None,
) -> Caption:
    """The caption of the file at `path`: from its caption file, else a table (`sidecars`), else the
    template.

    Line breaks and runs of blanks become one blank (text encoders do not see them).

    Raises DataError as `CaptionRules`.
    """
    return CaptionRules(trigger, prompt_template, count_tokens, max_tokens).read(Path(path))


def write_caption(path: Path, text: str) -> Path:
    """Write `text` as the caption of the image or video at `path`; returns the sidecar.

    The file that `read_caption` reads is replaced (`x.txt` if there is none yet), so that no
    older file hides an edit. It is written atomically, in UTF-8 without a byte order mark, with one
    line break at the end.

    Raises DataError if `text` cannot be stored as UTF-8 or holds NUL characters; OSError if the
    folder cannot be written.
    """
    return write_captions([(Path(path), text)])[0]


def write_captions(captions: Sequence[tuple[Path, str]]) -> list[Path]:
    """`write_caption` for many; all are checked before the first is written."""
    staged = [(find_sidecar(p) or p.with_suffix(".txt"), _stored(p, text)) for p, text in captions]
    try:
        for sidecar, data in staged:
            atomic_write(sidecar, data)
    finally:
        forget_listings()
    return [sidecar for sidecar, _ in staged]


def _stored(path: Path, text: str) -> bytes:
    try:
        data = (text.strip() + "\n").encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"The caption of {path.name} is not valid text: {error}.") from error
    if b"\0" in data:
        raise DataError(f"The caption of {path.name} holds a NUL character; remove it.")
    return data


def raw_caption(path: Path, root: Path) -> str:
    """The caption of `path` as written, for editing; "" if there is none."""
    return _raw(path, root)[0]


def _raw(path: Path, root: Path) -> tuple[str, str, tuple[str, ...]]:
    """The written caption ("" for none), its source, and problems."""
    sidecars = find_sidecars(path)
    problems: list[str] = []
    if len(sidecars) > 1:
        names = " and ".join(sidecar.name for sidecar in sidecars)
        problems.append(f"{names} exist; {sidecars[0].name} is used")
    for sidecar in sidecars[:1]:
        text, remark = read_sidecar(sidecar, root)
        problems += [remark] if remark else []
        if text.strip():
            return text.strip(), sidecar.suffix.lower().lstrip("."), tuple(problems)
        problems += [] if remark else [f"{sidecar.name} is empty and not used"]
    listed, remark = table_caption(path, root)
    problems += [remark] if remark else []
    return (listed or "").strip(), "table", tuple(problems)


def has_token(text: str) -> bool:
    """Whether `[trigger]`, in any spelling, stands in `text`."""
    return _TOKEN.search(text) is not None


def insert_trigger(text: str, trigger: str) -> str:
    """Replace every `[trigger]` and collapse white space; without a trigger its commas go, too."""
    text = _TOKEN.sub(lambda _: trigger, text)
    text = " ".join(text.split())
    if not trigger:
        text = re.sub(r",(\s*,)+", ",", text).strip(" ,")
    return text


def fill_template(prompt_template: str, trigger: str) -> str:
    """The prompt without a caption; "" if the template asks for a trigger and there is none.

    >>> fill_template("a painting in [trigger] style", "zorn")
    'a painting in zorn style'
    """
    if _TOKEN.search(prompt_template) and not trigger:
        return ""
    return insert_trigger(prompt_template, trigger)
