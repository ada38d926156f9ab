"""Recognises a file by its first bytes: downloads are often not what their names say."""

from __future__ import annotations

AGAIN = "Download it again."

# Other contents of files named like weights, by their first bytes, and what to do.
FOREIGN = (
    (b"version https://git-lfs", "only a git-lfs pointer, not the weights",
     "Run `git lfs pull` in its folder, or download the file with a browser."),
    (b"<", "a web page, not weights",
     "Download the file itself: most pages have a button for it or a link that ends in its name."),
    *((start, "an error message that was saved in place of the weights",
       "Download it again, logged in where the page asks for it.")
      for start in (b"{", b"Invalid username", b"Access to")),
    (b"GGUF", "a GGUF file", "Use the model's .safetensors file."),
    (b"Rar!", "a RAR archive", "Unpack it first."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it first."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"%PDF", "a PDF document", AGAIN),
    (b"\x89HDF", "a Keras or TensorFlow file (HDF5)", "Use the model's .safetensors file."),
)  # fmt: skip
FIRST_BYTES = 64
MAX_HEADER = 2**32  # bytes of a safetensors header; text at its place is far more
PICKLES = (b"PK\x03\x04", b"\x80")
"""A PyTorch file is a zip since version 1.6, a plain pickle before."""


def begins_as_safetensors(first: bytes) -> bool:
    """A length and the bracket of a header; also where the length looks like a zip or a pickle."""
    return first[8:9] == b"{" and int.from_bytes(first[:8], "little") < MAX_HEADER


def foreign(first: bytes) -> tuple[str, str] | None:
    """What a file that begins with ``first`` is, when it holds no weights at all, and what to do
    then; None for any other.
    """
    text = first.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, what, advice in FOREIGN:
        if first.startswith(magic) or text.startswith(magic):
            return what, advice
    return None
