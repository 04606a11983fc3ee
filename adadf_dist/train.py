"""Train Ada-DF: the story of a run, from shards to a result.

python -m adadf_dist.train --help
torchrun --standalone --nproc_per_node 8 -m adadf_dist.train --preset affectnet7 --data.shards DIR
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from adadf_dist.check.dry_run import dry_run
from adadf_dist.checkpoint.manager import CheckpointManager, Stateful
from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.config.load import flatten, parse_cli, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.console.exit import cli_errors
from adadf_dist.console.terminal import tolerant_console
from adadf_dist.data.batch import Batch
from adadf_dist.data.datamodule import DataModule, open_data
from adadf_dist.data.dataset import Split
from adadf_dist.data.identity import DATA_FILE, DataRecord, digest_files
from adadf_dist.data.label_noise import write_noise
from adadf_dist.diagnostics.run import attention_stats
from adadf_dist.diagnostics.run_length import find_problems
from adadf_dist.distributed.stragglers import find_straggler
from adadf_dist.distributed.world import World, init_world, rank_from_env
from adadf_dist.engine.ddp import Engine, build_engine
from adadf_dist.files.atomic import write_json
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice, Losses, adadf_loss, ramp_weights
from adadf_dist.method.model import Output
from adadf_dist.metrics.classification import Metrics
from adadf_dist.metrics.evaluator import evaluate
from adadf_dist.tracking.artifacts import save_samples
from adadf_dist.tracking.logger import RunLogger, open_logger
from adadf_dist.tracking.sample_history import SampleHistoryRecorder, select_tracked_samples
from adadf_dist.training.consistency import check_consistency
from adadf_dist.training.evaluation_pass import SplitPass, pass_over
from adadf_dist.training.final_test import Result, finalize_run
from adadf_dist.training.out_of_memory import report_out_of_memory
from adadf_dist.training.setup import local_shards, prepare_config, run_info
from adadf_dist.training.watchdog import run_watchdog

Record = Mapping[str, object]
"""One epoch, as in metrics.jsonl."""


@dataclass(frozen=True)
class TrainState:
    """Everything that training changes."""

    engine: Engine
    classes: ClassDistributions
    history: SampleHistoryRecorder
    progress: TrainingProgress
    passes: dict[str, SplitPass] = field(default_factory=dict)
    """What the last epoch's model predicts, by split: evaluated once, and kept for the end of the run."""

    def observe(self, batch: Batch, output: Output, losses: Losses) -> None:
        """Count a step: class sums, history, progress. Nothing leaves the device."""
        rows = batch.flatten_crops()
        if not self.classes.needs_extra_pass:
            self.classes.observe(output.auxiliary_logits, rows.labels, 1 / batch.num_crops)
        self.history.update(rows, output, losses, 1 / batch.num_crops)
        self.progress.batch += 1
        self.progress.step += 1


def no_op(record: Record) -> None:
    pass


def run(config: Config, on_epoch: Callable[[Record], None] = no_op) -> Result | None:
    """Train from `config`, going on from `config.out` when it holds a checkpoint.

    `on_epoch` is called with each epoch's record, on every rank. Returns the result, on every rank, or None when
    the run was asked to stop. Raises `UserError` for a mistake in the configuration or the data.
    """
    with tolerant_console(), init_world(config.runtime.timeout_s) as world:
        check_consistency(config, world)
        allow_other_data = config.allow_other_data
        config = prepare_config(replace(config, allow_other_data=False), world)
        with (
            local_shards(config, world) as folder,
            open_logger(config, world) as log,
            open_data(config, world.rank, world.size, world.device, folder) as data,
        ):
            engine = build_engine(config, len(data.classes), world)
            classes = ClassDistributions(len(data.classes), config.class_distributions, world)
            listed = select_tracked_samples(data.train_split, config.runtime, config.seed)
            history = SampleHistoryRecorder(
                len(data.train_split), len(data.classes), world, listed, data.train_split.digest()
            )
            state = TrainState(engine, classes, history, TrainingProgress())
            files = digest_files(dict(flatten(to_dict(config))))
            record = DataRecord(data.source, data.train_split, files, allow_other_data, world.is_main)
            parts: Mapping[str, Stateful] = {
                "data": record,
                "engine": engine,
                "class_distributions": classes,
                "history": history,
                "log": log,
            }
            checkpoints = CheckpointManager(config, world, parts, state.progress, data.preprocessing)
            resumed = checkpoints.restore()
            log.start(state.progress, run_info(data, engine, world), resumed)
            for problem in find_problems(config, data.num_batches(0)):
                log.info(f"  warning: {problem}")
            if world.is_main:
                write_json(log.folder / DATA_FILE, record.to_dict())
                save_samples(log.folder, data.train_split, data.noise)
                if data.noise is not None:
                    write_noise(log.folder / "noise.csv", data.train_split, data.noise)
            with run_watchdog(world, state.progress, config.runtime.timeout_s), report_out_of_memory(config, world):
                return train_epochs(state, data, log, checkpoints, on_epoch)


def train_epochs(
    state: TrainState,
    data: DataModule,
    log: RunLogger,
    checkpoints: CheckpointManager,
    on_epoch: Callable[[Record], None],
) -> Result | None:
    """All epochs and the test, from where the state stands; None when the ranks agreed to stop."""
    config, world = log.config, log.world
    while state.progress.epoch < config.epochs:
        training = train_epoch(state, data, log, checkpoints, world)
        if training is None:
            log.log_stopped(state.progress)
            return None
        if state.classes.needs_extra_pass:
            collect_class_distributions(state, data, world)
        record = finish_epoch(state, data, training, config, world)
        checkpoints.save()
        log.log_epoch(state.progress, record)
        world.heartbeat.beat("in on_epoch")
        on_epoch(record)
    return finalize_run(state.engine, data, log, checkpoints, world, state.passes)


def train_epoch(
    state: TrainState, data: DataModule, log: RunLogger, checkpoints: CheckpointManager, world: World
) -> dict[str, float] | None:
    """Train from the batch where the epoch stands. Returns its mean losses, or None when the ranks agreed to stop."""
    engine, progress, config = state.engine, state.progress, log.config
    ramp = ramp_weights(progress.epoch + 1, config.loss.epoch_threshold)
    num_batches = data.num_batches(progress.epoch)
    log.start_epoch(progress, num_batches)
    if progress.batch:  # resumed, perhaps after the last batch: the epoch's record names the rate that was in force
        engine.set_schedule_step(progress.last_position(num_batches))
    for batch in log.timed_batches(data.train_batches(progress.epoch, progress.batch)):
        engine.set_schedule_step(progress.position(num_batches))
        rows = batch.flatten_crops()
        output = engine.forward(rows.images)
        ranks = (world, BatchSlice(rows.offset, rows.global_size))
        losses = adadf_loss(output, rows.labels, state.classes.targets, ramp, config.loss, ranks)
        engine.step(losses.total)
        state.observe(batch, output, losses)
        log.log_step(progress, losses, batch.global_size, engine.learning_rate)
        stop = progress.step % config.runtime.stop_every == 0 and world.should_stop()
        if stop or checkpoints.should_save():
            log.flush(progress)  # no checkpoint ever holds weights behind a loss that is not finite
            checkpoints.save(skippable=not stop)
        if stop:
            return None
    if world.should_stop():  # before a long evaluation, which no checkpoint can interrupt
        log.flush(progress)
        checkpoints.save()
        return None
    return log.finish_training_pass(progress)


def collect_class_distributions(state: TrainState, data: DataModule, world: World) -> None:
    """Equation 4 in a pass of its own: the epoch's faces once more, augmented as published, in evaluation mode."""
    state.engine.sync_for_eval()
    epoch = state.progress.epoch
    batches = data.class_distribution_batches(epoch)
    for batch in world.heartbeat.wrap(batches, "measuring the class distributions", data.num_batches(epoch)):
        rows = batch.flatten_crops()
        state.classes.observe(state.engine.forward_eval(rows.images).auxiliary_logits, rows.labels, 1 / batch.num_crops)


def finish_epoch(
    state: TrainState, data: DataModule, training: Mapping[str, float], config: Config, world: World
) -> dict[str, object]:
    """Make the epoch's class distributions the next one's targets, evaluate, and count the epoch. A collective."""
    engine, progress = state.engine, state.progress
    world.heartbeat.beat("adding up the class distributions")
    commit = state.classes.finalize_epoch()
    engine.sync_for_eval()
    metrics = evaluate_epoch(state, data, data.validation_split, world)
    record: dict[str, object] = {"kind": "epoch", "epoch": progress.epoch + 1, "step": progress.step}
    record |= {**training, "learning_rate": engine.learning_rate}
    record["replaced_faces"] = sum(world.all_gather_object(data.pop_num_replaced()))
    record |= {"classes_at_threshold": int(commit.threshold_met.sum())}
    record |= {"class_degrees": commit.means.diagonal().tolist(), "validation": metrics.to_dict()}
    if config.evaluation.protocol == "published":
        assert data.test_split is not None
        record["test_accuracy"] = evaluate_epoch(state, data, data.test_split, world).accuracy
    record["ranks"] = find_straggler(world)
    world.heartbeat.beat("writing the history of the faces")
    faces = state.history.finish_epoch(config.out, progress.epoch + 1, commit, config.runtime.timeout_s)
    record["attention"] = attention_stats(faces.attention)
    progress.finish_epoch(metrics.accuracy, record)
    return record


def evaluate_epoch(state: TrainState, data: DataModule, split: Split, world: World) -> Metrics:
    """Metrics of the epoch's model; of the last epoch's the predictions are kept too. A collective."""
    if state.progress.epoch + 1 < data.config.epochs:
        return evaluate(state.engine, data.eval_batches(split), split, world)
    state.passes[split.name] = pass_over(state.engine, data.eval_batches(split), split, world)
    return state.passes[split.name].metrics()


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.train", rank_from_env()):
        if "--dry-run" in words:
            dry_run([word for word in words if word != "--dry-run"])
        else:
            run(parse_cli(words, ["--dry-run"]))


if __name__ == "__main__":
    main()
