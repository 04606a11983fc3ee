"""Train Ada-DF: the training loop, from shards to a result.

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
"""Record of one epoch, as in metrics.jsonl."""


@dataclass(frozen=True)
class TrainState:
    """Mutable state of a training run."""

    engine: Engine
    classes: ClassDistributions
    history: SampleHistoryRecorder
    progress: TrainingProgress
    passes: dict[str, SplitPass] = field(default_factory=dict)
    """Predictions of the last epoch's model by split, kept so that the final test need not repeat them."""

    def observe(self, batch: Batch, output: Output, losses: Losses) -> None:
        """Record a step in class sums, history and progress, without moving data off the device."""
        rows = batch.flatten_crops()
        if not self.classes.needs_extra_pass:
            self.classes.observe(output.auxiliary_logits, rows.labels, 1 / batch.num_crops)
        self.history.update(rows, output, losses, 1 / batch.num_crops)
        self.progress.batch += 1
        self.progress.step += 1


def no_op(record: Record) -> None:
    pass


def run(config: Config, on_epoch: Callable[[Record], None] = no_op) -> Result | None:
    """Train with `config`, resuming if `config.out` contains a checkpoint.

    `on_epoch` is called on every rank with each epoch's record. Returns the result on every rank, or None if the run
    was asked to stop. Raises `UserError` if the configuration or the data is invalid.
    """
    with tolerant_console(), init_world(config.runtime.timeout_s) as world:
        # --- configuration
        check_consistency(config, world)
        allow_other_data = config.allow_other_data
        config = prepare_config(replace(config, allow_other_data=False), world)
        with (
            local_shards(config, world) as folder,
            open_logger(config, world) as log,
            open_data(config, world.rank, world.size, world.device, folder) as data,
        ):
            # --- model and training state
            engine = build_engine(config, len(data.classes), world)
            classes = ClassDistributions(len(data.classes), config.class_distributions, world)
            listed = select_tracked_samples(data.train_split, config.runtime, config.seed)
            history = SampleHistoryRecorder(
                len(data.train_split), len(data.classes), world, listed, data.train_split.digest()
            )
            state = TrainState(engine, classes, history, TrainingProgress())
            # --- resume
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
            # --- run folder
            log.start(state.progress, run_info(data, engine, world), resumed)
            for problem in find_problems(config, data.num_batches(0)):
                log.info(f"  warning: {problem.line}")
            if world.is_main:
                write_json(log.folder / DATA_FILE, record.to_dict())
                save_samples(log.folder, data.train_split, data.noise)
                if data.noise is not None:
                    write_noise(log.folder / "noise.csv", data.train_split, data.noise)
            # --- training
            with run_watchdog(world, state.progress, config.runtime.timeout_s), report_out_of_memory(config, world):
                return train_epochs(state, data, log, checkpoints, on_epoch)


def train_epochs(
    state: TrainState,
    data: DataModule,
    log: RunLogger,
    checkpoints: CheckpointManager,
    on_epoch: Callable[[Record], None],
) -> Result | None:
    """Train the remaining epochs, then run the final test. Returns None if the run was stopped."""
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
    """Train the rest of the current epoch. Returns its mean losses, or None if the run was stopped."""
    engine, progress, config = state.engine, state.progress, log.config
    ramp = ramp_weights(progress.epoch + 1, config.loss.epoch_threshold)
    num_batches = data.num_batches(progress.epoch)
    log.start_epoch(progress, num_batches)
    # --- resume in mid-epoch, possibly after the last batch: the epoch's record needs the last learning rate
    if progress.batch:
        engine.set_schedule_step(progress.last_position(num_batches))
    # --- steps
    for batch in log.timed_batches(data.train_batches(progress.epoch, progress.batch)):
        engine.set_schedule_step(progress.position(num_batches))
        rows = batch.flatten_crops()
        output = engine.forward(rows.images)
        ranks = (world, BatchSlice(rows.offset, rows.global_size))
        losses = adadf_loss(output, rows.labels, state.classes.targets, ramp, config.loss, ranks)
        engine.step(losses.total)
        state.observe(batch, output, losses)
        log.log_step(progress, losses, batch.global_size, engine.learning_rate)
        # --- stop or checkpoint in mid-epoch
        stop = progress.step % config.runtime.stop_every == 0 and world.should_stop()
        if stop or checkpoints.should_save():
            log.flush(progress)  # fails on a non-finite loss, so no checkpoint is saved after one
            checkpoints.save(skippable=not stop)
        if stop:
            return None
    # --- end of the epoch
    if world.should_stop():  # the evaluation that follows is long and cannot be checkpointed
        log.flush(progress)
        checkpoints.save()
        return None
    return log.finish_training_pass(progress)


def collect_class_distributions(state: TrainState, data: DataModule, world: World) -> None:
    """Compute equation 4 in an extra pass as in the paper's code: augmented training samples, evaluation mode."""
    state.engine.sync_for_eval()
    epoch = state.progress.epoch
    batches = data.class_distribution_batches(epoch)
    for batch in world.heartbeat.wrap(batches, "computing the class distributions", data.num_batches(epoch)):
        rows = batch.flatten_crops()
        state.classes.observe(state.engine.forward_eval(rows.images).auxiliary_logits, rows.labels, 1 / batch.num_crops)


def finish_epoch(
    state: TrainState, data: DataModule, training: Mapping[str, float], config: Config, world: World
) -> dict[str, object]:
    """Finalize the epoch: class distributions, evaluation, record. Collective: every rank must call this."""
    engine, progress = state.engine, state.progress
    # --- class distributions and evaluation
    world.heartbeat.beat("summing the class distributions")
    commit = state.classes.finalize_epoch()
    engine.sync_for_eval()
    metrics = evaluate_epoch(state, data, data.validation_split, world)
    # --- record
    record: dict[str, object] = {"kind": "epoch", "epoch": progress.epoch + 1, "step": progress.step}
    record |= {**training, "learning_rate": engine.learning_rate}
    record["replaced_faces"] = sum(world.all_gather_object(data.pop_num_replaced()))
    record |= {"classes_at_threshold": int(commit.threshold_met.sum())}
    record |= {"class_degrees": commit.means.diagonal().tolist(), "validation": metrics.to_dict()}
    if config.evaluation.protocol == "published":
        assert data.test_split is not None
        record["test_accuracy"] = evaluate_epoch(state, data, data.test_split, world).accuracy
    # --- stragglers and sample history
    record["ranks"] = find_straggler(world)
    world.heartbeat.beat("writing the sample history")
    faces = state.history.finish_epoch(config.out, progress.epoch + 1, commit, config.runtime.timeout_s)
    record["attention"] = attention_stats(faces.attention)
    progress.finish_epoch(metrics.accuracy, record)
    return record


def evaluate_epoch(state: TrainState, data: DataModule, split: Split, world: World) -> Metrics:
    """Evaluate the epoch's model; also keep the last epoch's predictions. Collective: every rank must call this."""
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
