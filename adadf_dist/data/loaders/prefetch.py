"""A thread that makes things ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_S = 0.1
"""Seconds between two looks of a thread with a full queue at whether anyone still wants its work."""


class _EndOfStream:
    """The maker is through, or failed."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class BackgroundPrefetcher(Generic[T]):
    """What `maker` yields, made in a thread of its own, `depth` things ahead."""

    def __init__(self, maker: Iterator[T], depth: int) -> None:
        self._queue: queue.Queue[T | _EndOfStream] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(maker,), daemon=True, name="loader")
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        """Raises what the maker raised, at its place."""
        while True:
            made = self._queue.get()
            if isinstance(made, _EndOfStream):
                self._thread.join()
                if made.error is None:
                    return
                try:
                    raise made.error
                finally:
                    del made  # the error's traceback holds this frame: no reference cycle
            yield made

    def close(self) -> None:
        """End the thread; what it made is dropped. Returns when the maker has cleaned up."""
        self._closed.set()
        self._thread.join()
        self._queue = queue.Queue()
        self._queue.put(
            _EndOfStream(RuntimeError("closed: a later pass has begun"))
        )  # whoever still asks is not to wait

    def _run(self, maker: Iterator[T]) -> None:
        error: BaseException | None = None
        try:
            for made in maker:
                if not self._put(made):
                    break
        except BaseException as raised:  # whatever it is, it belongs to who waits for the result
            error = raised
        finally:
            if hasattr(maker, "close"):
                maker.close()
        self._put(_EndOfStream(error))
        del error, maker  # the error's traceback holds this frame: no reference cycle

    def _put(self, made: T | _EndOfStream) -> bool:
        """False when nobody wants it any more."""
        while not self._closed.is_set():
            try:
                self._queue.put(made, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False
