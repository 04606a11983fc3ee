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
    """Last item in the queue: the producer has finished or failed."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class BackgroundPrefetcher(Generic[T]):
    """Iterates over the items of `producer`, which a background thread produces up to `depth` items ahead."""

    def __init__(self, producer: Iterator[T], depth: int) -> None:
        self._queue: queue.Queue[T | _EndOfStream] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(producer,), daemon=True, name="loader")
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        """Yield the items in order. If the producer failed, raise its error after the last item."""
        while True:
            item = self._queue.get()
            if isinstance(item, _EndOfStream):
                self._thread.join()
                if item.error is None:
                    return
                try:
                    raise item.error
                finally:
                    del item  # the error's traceback holds this frame: no reference cycle
            yield item

    def close(self) -> None:
        """Stop the thread and discard its items. Returns after the producer has cleaned up."""
        self._closed.set()
        self._thread.join()
        self._queue = queue.Queue()
        self._queue.put(
            _EndOfStream(RuntimeError("closed: a later pass has started"))
        )  # a consumer that is still iterating must not wait

    def _run(self, producer: Iterator[T]) -> None:
        error: BaseException | None = None
        try:
            for item in producer:
                if not self._put(item):
                    break
        except BaseException as raised:  # any error is passed to the consumer
            error = raised
        finally:
            if hasattr(producer, "close"):
                producer.close()
        self._put(_EndOfStream(error))
        del error, producer  # the error's traceback holds this frame: no reference cycle

    def _put(self, item: T | _EndOfStream) -> bool:
        """Put an item in the queue. Returns False if the prefetcher was closed first."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False
