"""Background thread that prefetches items from an iterator."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_S = 0.1
"""Interval in seconds at which a thread with a full queue checks whether it should stop."""


class _EndOfStream:
    """Marks that the producer has finished or failed."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class BackgroundPrefetcher(Generic[T]):
    """Iterates over the items of `maker`, produced `depth` items ahead in a background thread."""

    def __init__(self, maker: Iterator[T], depth: int) -> None:
        self._queue: queue.Queue[T | _EndOfStream] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(maker,), daemon=True, name="loader")
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        """Yield the items; the producer's error is raised at its position."""
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
        """Stop the thread and drop its items. Returns after the producer has cleaned up."""
        self._closed.set()
        self._thread.join()
        self._queue = queue.Queue()
        self._queue.put(
            _EndOfStream(RuntimeError("closed: a later pass has started"))
        )  # a consumer that is still iterating must not wait

    def _run(self, maker: Iterator[T]) -> None:
        error: BaseException | None = None
        try:
            for made in maker:
                if not self._put(made):
                    break
        except BaseException as raised:  # any error is passed to the consumer
            error = raised
        finally:
            if hasattr(maker, "close"):
                maker.close()
        self._put(_EndOfStream(error))
        del error, maker  # the error's traceback holds this frame: no reference cycle

    def _put(self, made: T | _EndOfStream) -> bool:
        """Return False if the item is no longer wanted."""
        while not self._closed.is_set():
            try:
                self._queue.put(made, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False
