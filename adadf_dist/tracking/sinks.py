"""Optional outputs of a run: TensorBoard, the trackers in `runtime.trackers`, and a profiler trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from adadf_dist.config.schema import Config
from adadf_dist.tracking.async_tracker import AsyncTracker
from adadf_dist.tracking.profiler import StepProfiler
from adadf_dist.tracking.tensorboard import TensorBoardSink


class MetricSinks:
    """Sends metrics to all configured outputs. Started on rank 0 only."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._folder = Path(config.out)
        self._trackers: list[AsyncTracker] = []
        self._sinks: list[TensorBoardSink | AsyncTracker] = []
        self._trace: StepProfiler | None = None

    def start(self, step: int, device: torch.device) -> None:
        """Open the configured outputs. `step`: number of training steps finished so far."""
        runtime = self._config.runtime
        self._trackers = [AsyncTracker(name, self._config) for name in runtime.trackers]
        self._sinks = [*self._trackers]
        if runtime.tensorboard:
            self._sinks.append(TensorBoardSink(self._folder / "tensorboard", purge_step=step))
        if runtime.profile_steps:
            self._trace = StepProfiler(self._folder / "trace", runtime.profile_steps, step, device)

    def add(self, section: str, values: Mapping[str, float], step: int) -> None:
        for sink in self._sinks:
            sink.add(section, values, step)

    def flush(self) -> None:
        for sink in self._sinks:
            sink.flush()

    def step(self) -> None:
        """Record the end of a training step."""
        if self._trace is not None:
            self._trace.step()

    def set_status(self, state: str) -> None:
        """Pass the run's state, as in `status.json`, to the trackers; if it is `finished`, also pass the result."""
        for tracker in self._trackers:
            tracker.state = state
            if state == "finished":
                tracker.finish(json.loads((self._folder / "result.json").read_text(encoding="utf-8")))

    def close(self) -> None:
        if self._trace is not None:
            self._trace.close()
        for sink in self._sinks:
            sink.close()
