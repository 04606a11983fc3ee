"""Experiment trackers by name, fed from a thread of their own: training waits for no server."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from queue import Full, Queue
from typing import Any, Protocol

from adadf_dist.config.schema import Config, RuntimeConfig
from adadf_dist.errors import UserError, single_line

MODULES = {"wandb": "adadf_dist.tracking.wandb_tracker", "mlflow": "adadf_dist.tracking.mlflow_tracker"}
"""`runtime.loggers` -> the one file that takes the package of that name; its `Tracker` is opened."""
MAX_QUEUE = 10_000
"""Records that wait for a server before it is given up."""
FLUSH_TIMEOUT_S = 60.0
"""How long the end of a run waits for what is still to be sent."""

Call = Callable[["Tracker"], None]


class Tracker(Protocol):
    """A run as a server knows it; the run folder keeps its name there, so that a resumed run goes on with it."""

    def __init__(self, config: Config) -> None: ...

    def add(self, section: str, values: Mapping[str, float], step: int) -> None: ...

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Take what `result.json` holds."""
        ...

    def close(self, state: str) -> None:
        """The run is `finished`, `stopped` or `failed`."""
        ...


def check_trackers(config: RuntimeConfig) -> None:
    """Raises `UserError` for a tracker whose package is not installed."""
    for name in config.loggers:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # without: a plain folder of that name, as W&B leaves one behind
            raise UserError(
                f"runtime.loggers has {name}, but {name} is not installed; install it with "
                f"pip install 'adadf_dist[{name}]'"
            )


class AsyncTracker:
    """Hands a tracker its records in order. What it does not take is a warning, once, and training goes on."""

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self.state = ""
        """What the run says of itself."""
        self._waiting: Queue[Call | None] = Queue(MAX_QUEUE)
        self._lost = False
        try:
            module = import_module(MODULES[name])
        except Exception as error:  # installed, but broken
            self._disable(f"does not import ({single_line(error) or type(error).__name__})")
            return
        self._thread = threading.Thread(
            target=self._run, args=(lambda: module.Tracker(config),), daemon=True, name=name
        )
        self._thread.start()

    def add(self, section: str, values: Mapping[str, float], step: int) -> None:
        kept = dict(values)
        self._enqueue(lambda tracker: tracker.add(section, kept, step))

    def finish(self, result: Mapping[str, Any]) -> None:
        self._enqueue(lambda tracker: tracker.log_result(result))

    def flush(self) -> None:
        """Nothing to do: records are sent as they come."""

    def close(self) -> None:
        if self._lost:
            return
        self._enqueue(None)
        self._thread.join(FLUSH_TIMEOUT_S)
        if self._thread.is_alive():
            self._disable(f"has not taken everything after {FLUSH_TIMEOUT_S:g} s")

    def _run(self, open_tracker: Callable[[], Tracker]) -> None:
        try:
            tracker = open_tracker()
            while not self._lost and (call := self._waiting.get()) is not None:
                call(tracker)
            if not self._lost:
                tracker.close(self.state if self.state in ("finished", "stopped") else "failed")
        except Exception as error:  # whatever a server or its client does, it is not worth a training
            self._disable(single_line(error) or type(error).__name__)

    def _enqueue(self, call: Call | None) -> None:
        if self._lost:
            return
        try:
            self._waiting.put_nowait(call)
        except Full:
            self._disable(f"{MAX_QUEUE} records wait for it")

    def _disable(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            told = f"warning: {self.name}: {reason}; nothing more is sent to it, metrics.jsonl holds everything"
            print(told, file=sys.stderr, flush=True)
