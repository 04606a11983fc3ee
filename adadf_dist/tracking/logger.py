"""Log a run to the console, metrics.jsonl, TensorBoard and status.json. Rank 0 writes for all ranks."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from adadf_dist import __version__
from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.checkpoint.run_dir import check_run_folder, lock_run_dir
from adadf_dist.config.load import to_dict
from adadf_dist.config.schema import Config
from adadf_dist.console.logs import RUN_LOG, get_logger
from adadf_dist.data.batch import Batch
from adadf_dist.diagnostics.run import new_findings
from adadf_dist.diagnostics.run_length import fix_divergence
from adadf_dist.distributed.heartbeat import LOADING
from adadf_dist.distributed.stragglers import describe_straggler
from adadf_dist.distributed.world import World
from adadf_dist.errors import DiskFullError, UserError
from adadf_dist.files.atomic import write_json, write_text
from adadf_dist.method.losses import Losses
from adadf_dist.tracking.epoch_display import EpochDisplay, describe_epoch, format_heading
from adadf_dist.tracking.metrics_file import MetricsFile
from adadf_dist.tracking.sinks import MetricSinks

logger = get_logger(__name__)
run_log = get_logger(RUN_LOG)

LOSS_NAMES = ("total", "kl_divergence", "cross_entropy", "rank_regularization")
MOST_NAMED = 20
"""Maximum number of list items that are printed on the console."""


class RunLogger:
    """Logs a run. Losses stay on the device and are averaged over ranks every `runtime.log_every_steps` steps."""

    def __init__(self, config: Config, world: World) -> None:
        self._config = config
        self._world = world
        self.folder = Path(config.out)
        self._losses: list[torch.Tensor] = []
        self._epoch_sums = torch.zeros(len(LOSS_NAMES), dtype=torch.float64)
        self._epoch_steps = 0
        self._display = EpochDisplay(config, world.is_main, lambda line: self.info(line))
        self._session_epochs = 0
        self._metrics = MetricsFile(self.folder / "metrics.jsonl")
        self._sinks = MetricSinks(config)
        self._learning_rate = config.optimizer.lr
        self._num_batches = 0
        self._classes: list[str] = []

    def start(self, progress: TrainingProgress, run_info: Mapping[str, object], resumed: Path | None) -> None:
        """Write the configuration and run info, and delete metrics recorded after the point where the run resumes."""
        if not self._world.is_main:
            return
        self._classes = list(run_info["classes"])  # type: ignore[call-overload]
        write_text(self.folder / "config.yaml", yaml.safe_dump(to_dict(self._config), sort_keys=False))
        write_json(self.folder / "run_info.json", {**environment(self._world), **run_info})
        self._metrics.truncate_to(progress)
        self._sinks.start(progress.step, self._world.device)
        self.info(f"run folder: {self.folder}")
        for name, value in run_info.items():
            self.info(f"  {name}: {format_value(value)}")
        if resumed is not None:
            self.info(f"  resuming from {resumed} (epoch {progress.epoch + 1}, batch {progress.batch})")

    def start_epoch(self, progress: TrainingProgress, num_batches: int) -> None:
        self._world.heartbeat.reset()
        self._num_batches = num_batches
        self.status("running", progress)
        self._display.start(progress, num_batches, announce=not self._session_epochs)

    def timed_batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches and measure how long training waits for them."""
        heartbeat = self._world.heartbeat
        while True:
            heartbeat.beat("waiting for a batch")
            with heartbeat.timed(LOADING):
                batch = next(batches, None)
            if batch is None:
                return
            heartbeat.beat("training on a batch")
            yield batch

    def log_step(self, progress: TrainingProgress, losses: Losses, global_size: int, learning_rate: float) -> None:
        """Record the losses of a step; `progress` must already count this step."""
        self._learning_rate = learning_rate
        self._losses.append(torch.stack([getattr(losses, name).detach() for name in LOSS_NAMES]))
        self._display.add(global_size)
        if progress.step % self._config.runtime.log_every_steps == 0 or progress.batch == self._num_batches:
            self.flush(progress)
        self._sinks.step()
        self._display.show(progress)

    def flush(self, progress: TrainingProgress) -> None:
        """Average the pending losses over ranks and log them. Collective: every rank must call this.

        Raises `UserError` naming the first step with a non-finite loss, before its weights can reach a checkpoint.
        """
        if not self._losses:
            return
        steps = torch.stack(self._losses).double()
        steps = (self._world.all_reduce_sum_(steps) / self._world.size).cpu()
        first = progress.step - len(steps) + 1
        self._losses.clear()
        for number, row in enumerate(steps, start=first):
            if not torch.isfinite(row).all():
                named = ", ".join(f"{n} {v:g}" for n, v in zip(LOSS_NAMES, row.tolist(), strict=True))
                fix = fix_divergence(self._config, self._num_batches)
                raise UserError(
                    f"step {number} (epoch {progress.epoch + 1}): non-finite loss ({named}). The last checkpoint in "
                    f"{self.folder / 'checkpoints'} is valid; start a new run with another --out and a lower "
                    f"optimizer.lr (now {self._config.optimizer.lr:g}){fix}"
                )
            self._epoch_sums += row  # one by one: bit-identical regardless of when flushes happen
        self._epoch_steps += len(steps)
        if self._world.is_main:
            self._write_steps(progress, first, steps)

    def _write_steps(self, progress: TrainingProgress, first: int, steps: torch.Tensor) -> None:
        rate = self._display.images_per_s
        mean = dict(zip(LOSS_NAMES, steps.mean(dim=0).tolist(), strict=True))
        record = {"kind": "steps", "step": progress.step, "from_step": first, "epoch": progress.epoch + 1}
        self._metrics.append({**record, **mean, "learning_rate": self._learning_rate, "images_per_s": rate})
        self._sinks.add("train", {**mean, "images_per_s": rate}, progress.step)
        text = f"loss {mean['total']:.4f} | kl {mean['kl_divergence']:.4f} | ce {mean['cross_entropy']:.4f} | "
        self._display.losses = f"{text}lr {self._learning_rate:.2g} | "

    def finish_training_pass(self, progress: TrainingProgress) -> dict[str, float]:
        """Return the epoch's mean losses, image rate, and fraction of time spent waiting for data.

        Collective: every rank must call this.
        """
        self.flush(progress)
        seconds, rate = self._display.seconds, self._display.images_per_s
        progress.seconds += seconds
        means = (self._epoch_sums / max(self._epoch_steps, 1)).tolist()
        self._epoch_sums.zero_()
        self._epoch_steps = 0
        self._display.close()
        return {
            **dict(zip(LOSS_NAMES, means, strict=True)),
            "images_per_s": rate,
            "data_wait_fraction": self._world.heartbeat.seconds(LOADING) / max(seconds, 1e-9),
        }

    def log_epoch(self, progress: TrainingProgress, record: Mapping[str, object]) -> None:
        """Log a finished epoch to the console table, metrics.jsonl, TensorBoard and the trackers."""
        if not self._world.is_main:
            return
        self._metrics.append(record)
        self._session_epochs += 1
        for line in format_heading(progress, self._session_epochs == 1, len(self._classes)):
            self.info(line)
        self.info(describe_epoch(progress, record, self._config.epochs))
        for finding in new_findings(progress.epochs, self._config, self._classes):
            self.info(f"  {finding}")
        if straggler := describe_straggler(record["ranks"]):  # type: ignore[arg-type]
            self.info(f"  warning: {straggler}")
        metrics: Any = record["validation"]
        values = {**record, **{f"validation_{name}": value for name, value in metrics.items()}}
        self._sinks.add("epoch", {k: v for k, v in values.items() if isinstance(v, float)}, progress.epoch)
        self._sinks.flush()

    def log_stopped(self, progress: TrainingProgress) -> None:
        """Log that the run was stopped on request."""
        self.status("stopped", progress)
        where = f"epoch {progress.epoch + 1}, batch {progress.batch}"
        self.info(f"stopped at {where}; state saved to {self.folder}. Run the same command to resume.")

    def state_dict(self) -> dict[str, object]:
        return {"sums": self._epoch_sums, "steps": self._epoch_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._epoch_sums.copy_(state["sums"])
        self._epoch_steps = state["steps"]

    def status(self, state: str, progress: TrainingProgress, **more: object) -> None:
        """Write `status.json` for launchers: the state (running, stopped, finished or failed) and training progress."""
        if self._world.is_main:
            where = {"state": state, "epoch": progress.epoch, "batch": progress.batch, "step": progress.step}
            try:
                write_json(self.folder / "status.json", {**where, "epochs": self._config.epochs, **more})
                self._sinks.set_status(state)
            except DiskFullError as error:
                if state != "running":  # launchers depend on the final state
                    raise
                logger.warning(f"{error}; status.json not updated")

    def info(self, text: str) -> None:
        run_log.info(text)

    def mark_failed(self, error: BaseException) -> None:
        """Record in `status.json` that the run failed."""
        path = self.folder / "status.json"
        if self._world.is_main and path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            with suppress(UserError):  # a full disk: the caller reports `error` itself
                write_json(path, {**known, "state": "failed", "error": str(error) or type(error).__name__})

    def close(self) -> None:
        self._display.close()
        self._sinks.close()
        self._metrics.close()


@contextmanager
def open_logger(config: Config, world: World) -> Iterator[RunLogger]:
    """Lock the run folder and open a logger for it. Raises `UserError` if the folder cannot be used."""
    with ExitStack() as stack:
        problem = ""
        if world.is_main:
            try:
                check_run_folder(Path(config.out))
                stack.enter_context(lock_run_dir(Path(config.out)))
            except UserError as error:
                problem = str(error)
        if text := world.broadcast_object(problem):  # all ranks stop now instead of waiting for rank 0
            raise UserError(str(text))
        log = RunLogger(config, world)
        stack.callback(log.close)
        try:
            yield log
        except BaseException as error:
            log.mark_failed(error)
            raise


def environment(world: World) -> dict[str, object]:
    packages = ("torch", "torchvision", "numpy")
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    return {
        "device": f"{device}, {torch.get_num_threads()} threads per rank" if device == "cpu" else device,
        "python": platform.python_version(),
        "packages": {"adadf_dist": __version__, **{name: version(name) for name in packages}},
    }


def format_value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        more = [f"and {len(value) - MOST_NAMED} more"] if len(value) > MOST_NAMED else []
        return ", ".join([*map(format_value, value[:MOST_NAMED]), *more])
    return f"{value}"
