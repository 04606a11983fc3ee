"""Write a profiler trace of a few steps, for Perfetto (ui.perfetto.dev) and TensorBoard."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from adadf_dist.console.logs import get_logger

logger = get_logger(__name__)

SKIP_STEPS = 3
"""Number of steps skipped at the start because they are slower (compilation, cold caches, memory allocation)."""
WARMUP_STEPS = 1
"""Number of warm-up steps of the profiler, which are not part of the trace."""


class StepProfiler:
    """Skips the first few steps of this process and traces the next `count` to `steps-FIRST-LAST.pt.trace.json.gz`."""

    def __init__(self, folder: Path, count: int, step: int, device: torch.device) -> None:
        """Start profiling. `count`: number of steps to trace. `step`: number of training steps finished so far."""
        self._folder = folder
        self._before = step
        self._end = SKIP_STEPS + WARMUP_STEPS + count
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
        plan = schedule(wait=SKIP_STEPS, warmup=WARMUP_STEPS, active=count, repeat=1)
        self._profile: profile | None = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self._profile.start()

    def step(self) -> None:
        """Record the end of a step."""
        if self._profile is not None:
            self._profile.step()
            if self._profile.step_num == self._end:
                self.close()

    def close(self) -> None:
        """Stop profiling, and write the trace even if it has fewer steps than requested."""
        if self._profile is None:
            return
        finished, self._profile = self._profile, None
        finished.stop()
        if finished.step_num <= SKIP_STEPS + WARMUP_STEPS:
            skipped = SKIP_STEPS + WARMUP_STEPS
            text = f"no profile written: runtime.profile_steps skips the first {skipped} steps, but the run ended early"
            logger.warning(text)

    def _write(self, finished: profile) -> None:
        first, last = self._before + SKIP_STEPS + WARMUP_STEPS + 1, self._before + finished.step_num
        if last < first:
            return
        path = self._folder / f"steps-{first:06d}-{last:06d}.pt.trace.json.gz"
        try:
            path.parent.mkdir(exist_ok=True)
            finished.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            logger.warning(f"{path}: trace not written ({error})")
