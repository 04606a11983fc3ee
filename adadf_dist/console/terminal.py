"""Standard output and error that never stop or block a long command if the terminal, pipe or log file goes away.

Commands write their results to files, and their output is only a log. Text that cannot be written (closed terminal,
pipe without a reader, full disk) is therefore dropped, and characters that cannot be encoded are printed as escapes.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

PATIENCE_S = 30.0
"""Seconds to wait for a terminal stopped with Ctrl-S, or a pipe that nothing reads, before text is dropped."""
CHUNK = select.PIPE_BUF
"""Maximum number of bytes per write: a pipe that is ready accepts this many without blocking."""


class _TolerantFile(io.RawIOBase):
    """Raw file that drops text instead of raising an error when a write fails."""

    def __init__(self, stream: TextIO) -> None:
        self.name = stream.name
        self.error: OSError | None = None
        """First error that occurred while writing, or None."""
        self._stream = stream
        self._ready = select.poll()
        self._ready.register(stream.fileno(), select.POLLOUT)
        self._patience_s = PATIENCE_S

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return os.isatty(self.fileno())

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        try:
            if not self._ready.poll(1000 * self._patience_s):
                self._patience_s = 0.0
                raise TimeoutError("the reader is not reading")
            self._patience_s = PATIENCE_S
            return os.write(self.fileno(), view[:CHUNK])
        except OSError as error:
            self.error = self.error or error
            return len(view)


def tolerant(stream: TextIO) -> TextIO:
    """Return a stream to the same file descriptor that drops text it cannot write and never closes the descriptor."""
    with suppress(OSError):
        stream.flush()
    buffer = io.BufferedWriter(_TolerantFile(stream))
    return io.TextIOWrapper(
        buffer,
        stream.encoding,
        "backslashreplace",
        line_buffering=bool(getattr(stream, "line_buffering", True)),
        write_through=bool(getattr(stream, "write_through", False)),
    )


def write_error(stream: TextIO | None) -> OSError | None:
    """Return the first error that made a tolerant stream drop text, or None. For other streams, always return None."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _TolerantFile) else None


@contextmanager
def tolerant_console(streams: tuple[str, ...] = ("stdout", "stderr")) -> Iterator[None]:
    """Make `sys.stdout` and `sys.stderr` tolerate failed writes, except streams that the caller has replaced."""
    occupy_standard_descriptors()
    replaced: dict[str, TextIO | None] = {}
    for name in streams:
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # closed when Python started
            replaced[name] = stream
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the whole block
        elif stream is getattr(sys, f"__{name}__"):
            replaced[name] = stream
            setattr(sys, name, tolerant(stream))
    try:
        yield
    finally:
        for name, original in replaced.items():
            getattr(sys, name).flush()
            setattr(sys, name, original)


def occupy_standard_descriptors() -> None:
    """Open the null device for each closed standard descriptor (0 to 2).

    Otherwise the next opened file could get descriptor 1 or 2, and native code would print into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
