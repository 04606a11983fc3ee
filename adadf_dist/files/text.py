"""Read text files written by users, independently of the locale.

Text is UTF-8, with or without a byte order mark; UTF-16 and UTF-32 are recognized by their byte order mark. Unix,
Windows and old Mac line endings become newlines. Anything else is a `UserError` with the file, line and byte.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import unicodedata
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from adadf_dist.errors import UserError, single_line

_BYTE_ORDER_MARKS = (  # UTF-32 first: its mark starts with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BINARY_FILES = (
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"%PDF-", "a PDF document"),
    (b"{\\rtf", "a rich text document"),
    (b"<!DOCTYPE html", "a web page"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"version https://git-lfs.", "a Git LFS pointer"),
)
TAR_MARK_END = 262
"""Offset in bytes at which a tar archive's five-byte signature `ustar` ends."""
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of unprintable characters: control characters, surrogates, line and paragraph separators."""
_SURROGATE = re.compile("[\udc80-\udcff]")
"""Surrogates that `surrogateescape` produces for bytes that are not UTF-8."""


def read_text(path: Path | str, option: str = "") -> str:
    """Read a complete text file. Raises `UserError` naming the option, the file and the problem."""
    with open_text(path, option) as lines:
        return "".join(lines)


@contextmanager
def open_text(path: Path | str, option: str = "") -> Iterator[Iterator[str]]:
    """Open a text file as an iterator of lines, each with its `\\n`, in bounded memory.

    Raises `UserError` if the file cannot be read or is not valid text.
    """
    where = located(path, option)
    with open_bytes(path, option) as stream, closing(decode_lines(stream, where)) as lines:
        yield lines


@contextmanager
def open_bytes(path: Path | str, option: str = "") -> Iterator[io.BufferedReader]:
    """Open a file for reading bytes. Raises `UserError` if it cannot be read."""
    where = located(path, option)
    try:
        stream = open(path, "rb")  # noqa: SIM115 - errors on opening and in the block differ
    except FileNotFoundError:
        raise UserError(f"{where}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or a name that the locale cannot encode
        raise UserError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or single_line(error)})") from None
    with stream:
        try:
            yield stream
        except OSError as error:
            if error.errno is None or error.filename is not None:  # not from this stream
                raise
            raise UserError(f"{where}: cannot be read ({error.strerror})") from None


def located(path: Path | str, option: str = "") -> str:
    """Format a file's option (if any) and path as the beginning of an error message."""
    return f"{option}: {escape_name(str(path))}" if option else escape_name(str(path))


def decode_text(content: bytes, where: str) -> str:
    """Decode the bytes of a text file. Raises `UserError`, starting with the location `where`, if they are invalid."""
    return "".join(decode_lines(io.BytesIO(content), where))


def decode_lines(stream: io.BufferedReader | io.BytesIO, where: str, any_bytes: bool = False) -> Generator[str]:
    """Yield the text lines of a binary stream, each with its `\\n`.

    Raises `UserError`, with a message that starts with `where`, if the stream is not valid text.

    `any_bytes`: accept bytes that are not UTF-8, as in file names, and keep them as surrogates (`surrogateescape`).
    """
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)
    start = buffered.peek(TAR_MARK_END)[:TAR_MARK_END]
    refuse_binary(start, where)
    encoding = encoding_of(start)
    text = io.TextIOWrapper(buffered, encoding, errors="surrogateescape" if encoding == "utf-8-sig" else "strict")
    number = 0
    try:
        for line in text:
            number += 1
            if not any_bytes:
                check_line(line, f"{where}: line {number}")
            yield line.removeprefix("\ufeff")  # files joined with `cat` have byte order marks inside
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: line {number + 1}: incomplete {encoding.upper()} ({error.reason}); save the file as UTF-8"
        ) from None
    finally:
        with suppress(ValueError):  # the caller may have closed the stream
            text.detach()


def encoding_of(start: bytes) -> str:
    """Return the encoding that a text file's byte order mark indicates, or UTF-8 if it has none."""
    return next((name for mark, name in _BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8-sig")


def refuse_binary(start: bytes, where: str) -> None:
    """Raise `UserError` if a file starts like an archive, an image or another binary file."""
    what = next((what for mark, what in _BINARY_FILES if start.startswith(mark)), "")
    if start[257:TAR_MARK_END] == b"ustar":
        what = "a tar archive"
    if what:
        fix = "unpack it and pass the file inside" if what.endswith(("file", "archive")) else "pass a text file"
        fix = "download the file with `git lfs pull`" if "LFS" in what else fix
        fix += " (a spreadsheet: save it as CSV)" if what == "a zip archive" else ""
        raise UserError(f"{where}: is {what}, not text; {fix}")


def check_line(line: str, where: str) -> None:
    """Raise `UserError` if a line contains a NUL byte or bytes that are not UTF-8."""
    if "\0" in line:
        raise UserError(
            f"{where}: contains a NUL byte, so it is probably UTF-16 or a binary file; save the file as UTF-8 text"
        )
    if not line.isascii() and (wrong := _SURROGATE.search(line)):
        byte = ord(wrong[0]) - 0xDC00
        raise UserError(
            f"{where}: byte 0x{byte:02x} at column {wrong.start() + 1} is not UTF-8; save the file as UTF-8"
        )


def is_text(value: str) -> bool:
    """Return whether a string contains no surrogates, which stand for bytes that are not UTF-8."""
    return value.isascii() or not _SURROGATE.search(value)


def check_path(path: Path | str, option: str = "") -> None:
    """Raise `UserError` if a path is not valid text, because libraries that require UTF-8 could not open it."""
    if not is_text(str(path)):
        raise UserError(
            f"{located(path, option)}: the path is not UTF-8 text; rename it, or set PYTHONUTF8=1 if your "
            "locale is not UTF-8"
        )


def escape_name(name: str) -> str:
    """Escape a file name as printable text on one line. Different names remain different.

    Bytes that are not UTF-8, control characters and backslashes become `\\xNN`; `unescape_name` reverses it. Other
    names are unchanged, in every locale.
    """
    text = os.fsencode(name).decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped(character) for character in text)


def is_printable_name(name: str) -> bool:
    """Return whether a name has no control characters, line breaks or bytes that are not text."""
    return all(unicodedata.category(character) not in _UNPRINTABLE for character in name)


def _escaped(character: str) -> str:
    if character != "\\" and is_printable_name(character):
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def plain_form(name: str) -> str:
    """Return a name with normalized letter case and Unicode form, so that names differing only in these are equal."""
    return unicodedata.normalize("NFC", name).casefold()


def unescape_name(text: str) -> str:
    """Reverse `escape_name`. The result can be passed to `open`."""
    content = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    return os.fsdecode(content)


def native_name(text: str) -> str:
    """Convert a file name that was read from a text file for `open`. Its bytes are the same in every locale."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))
