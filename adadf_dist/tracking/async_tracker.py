"""Experiment trackers, each fed by a background thread so that training never waits for a server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from queue import Full, Queue
from typing import Any, Protocol

from adadf_dist.config.schema import Config, RuntimeConfig
from adadf_dist.console.logs import get_logger
from adadf_dist.errors import UserError, single_line

logger = get_logger(__name__)

MODULES = {"wandb": "adadf_dist.tracking.wandb_tracker", "mlflow": "adadf_dist.tracking.mlflow_tracker"}
"""Maps each name in `runtime.trackers` to the module that defines its `Tracker` and alone imports its package."""
MAX_QUEUE = 10_000
"""Maximum number of queued records. A tracker whose queue is full is disabled."""
FLUSH_TIMEOUT_S = 60.0
"""Seconds to wait for pending records at the end of a run."""

Call = Callable[["Tracker"], None]


class Tracker(Protocol):
    """A run on a tracking server. Its ID is kept in the run folder, so that a resumed run continues it."""

    def __init__(self, config: Config) -> None: ...

    def add(self, section: str, values: Mapping[str, float], step: int) -> None: ...

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Log the content of `result.json`."""
        ...

    def close(self, state: str) -> None:
        """Close the run on the server; `state` is `finished`, `stopped` or `failed`."""
        ...


def check_trackers(config: RuntimeConfig) -> None:
    """Raise `UserError` if the package of a tracker in `runtime.trackers` is not installed."""
    for name in config.trackers:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # no origin: a plain folder of that name, such as the one W&B creates
            raise UserError(
                f"runtime.trackers includes {name}, but {name} is not installed; install it with "
                f"pip install 'adadf_dist[{name}]'"
            )


class AsyncTracker:
    """Passes records to a tracker in order from a background thread. The first error disables it with a warning."""

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self.state = ""
        """State of the run, as in `status.json`."""
        self._queue: Queue[Call | None] = Queue(MAX_QUEUE)
        self._disabled = False
        try:
            module = import_module(MODULES[name])
        except Exception as error:  # installed, but broken
            self._disable(f"import failed ({single_line(error) or type(error).__name__})")
            return
        self._thread = threading.Thread(
            target=self._run, args=(lambda: module.Tracker(config),), daemon=True, name=name
        )
        self._thread.start()

    def add(self, section: str, values: Mapping[str, float], step: int) -> None:
        copy = dict(values)
        self._enqueue(lambda tracker: tracker.add(section, copy, step))

    def finish(self, result: Mapping[str, Any]) -> None:
        self._enqueue(lambda tracker: tracker.log_result(result))

    def flush(self) -> None:
        """Do nothing: records are sent as they arrive."""

    def close(self) -> None:
        if self._disabled:
            return
        self._enqueue(None)
        self._thread.join(FLUSH_TIMEOUT_S)
        if self._thread.is_alive():
            self._disable(f"records still unsent after {FLUSH_TIMEOUT_S:g} s")

    def _run(self, open_tracker: Callable[[], Tracker]) -> None:
        try:
            tracker = open_tracker()
            while not self._disabled and (call := self._queue.get()) is not None:
                call(tracker)
            if not self._disabled:
                tracker.close(self.state if self.state in ("finished", "stopped") else "failed")
        except Exception as error:  # no error of a server or its client may stop training
            self._disable(single_line(error) or type(error).__name__)

    def _enqueue(self, call: Call | None) -> None:
        if self._disabled:
            return
        try:
            self._queue.put_nowait(call)
        except Full:
            self._disable(f"too slow, with {MAX_QUEUE} records waiting to be sent")

    def _disable(self, reason: str) -> None:
        if not self._disabled:
            self._disabled = True
            logger.warning(f"{self.name}: {reason}; tracker disabled (metrics.jsonl still gets all records)")
