"""Standard output and error that never end or block a long command: the terminal, pipe or log file may go away.

A command's results are files; what it prints is a log. So text that cannot be written (a closed terminal, a pipe
without a reader, a full disk) is dropped, and characters that the encoding lacks are printed as escapes.
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
"""How long a terminal stopped by Ctrl-S, or a pipe whose reader is idle, is waited for before text is dropped."""
CHUNK = select.PIPE_BUF
"""A pipe that is ready takes this many bytes without blocking."""


class _TolerantFile(io.RawIOBase):
    """A file descriptor whose failed writes look like successful ones."""

    def __init__(self, stream: TextIO) -> None:
        self.name = stream.name
        self.error: OSError | None = None
        """The first failure."""
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
                raise TimeoutError("the reader does not read")
            self._patience_s = PATIENCE_S
            return os.write(self.fileno(), view[:CHUNK])
        except OSError as error:
            self.error = self.error or error
            return len(view)


def tolerant(stream: TextIO) -> TextIO:
    """A stream to the same file descriptor that drops what cannot be written. It does not close the descriptor."""
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
    """Why text written to a tolerant stream was dropped; None for any other stream, or if nothing was."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _TolerantFile) else None


@contextmanager
def tolerant_console(streams: tuple[str, ...] = ("stdout", "stderr")) -> Iterator[None]:
    """Make `sys.stdout` and `sys.stderr` tolerant while the block runs; streams that a caller replaced stay."""
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
    """Point closed standard descriptors to the null device.

    Otherwise the next file that is opened gets number 1 or 2, and native code prints into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
