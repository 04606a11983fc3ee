"""Train Ada-DF: the training loop, from shards to a result.

python -m adadf_dist.train --help
torchrun --standalone --nproc_per_node 8 -m adadf_dist.train --preset affectnet7 --data.shards DIR
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from adadf_dist.checkpoint.manager import CheckpointManager, Stateful
from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.config.load import DRY_RUN, parse_cli, split_dry_run
from adadf_dist.config.schema import Config
from adadf_dist.console.exit import cli_errors
from adadf_dist.console.terminal import tolerant_console
from adadf_dist.data.batch import Batch
from adadf_dist.data.dataset import Split
from adadf_dist.diagnostics.run import attention_stats
from adadf_dist.distributed.environment import rank_from_env
from adadf_dist.distributed.stragglers import find_straggler
from adadf_dist.distributed.world import init_world
from adadf_dist.engine.ddp import Engine, build_engine
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice, Losses, adadf_loss, ramp_weights
from adadf_dist.method.model import Output
from adadf_dist.metrics.classification import Metrics
from adadf_dist.metrics.evaluator import evaluate
from adadf_dist.tracking.sample_history import SampleHistoryRecorder
from adadf_dist.training.evaluation_pass import SplitPass, pass_over
from adadf_dist.training.final_test import Result, finalize_run
from adadf_dist.training.out_of_memory import report_out_of_memory
from adadf_dist.training.setup import RunContext, prepare_run, write_run_info
from adadf_dist.training.stored_maps import use_stored_maps
from adadf_dist.training.target_state import TargetState, build_target_state
from adadf_dist.training.watchdog import run_watchdog

Record = Mapping[str, object]
"""Record of one epoch, as in metrics.jsonl."""


@dataclass(frozen=True)
class TrainState:
    """Mutable state of a training run."""

    engine: Engine
    classes: ClassDistributions
    targets: TargetState
    history: SampleHistoryRecorder
    progress: TrainingProgress
    passes: dict[str, SplitPass] = field(default_factory=dict)
    """Evaluation passes of the last epoch's model by split name, kept so that the final test can reuse them."""

    def observe(self, batch: Batch, output: Output, losses: Losses) -> None:
        """Add a step to the class sums, averages, sample history and progress, without copying data from the device."""
        rows = batch.flatten_crops()
        if not self.classes.needs_extra_pass:
            self.classes.observe(output.auxiliary_logits, rows.labels, 1 / batch.num_crops)
        self.targets.observe(rows, output, losses)
        self.history.update(rows, output, losses, 1 / batch.num_crops)
        self.progress.batch += 1
        self.progress.step += 1


@dataclass(frozen=True)
class Stopped:
    """Outcome of a run or epoch that was stopped early by SIGTERM, SIGINT, SIGHUP or `World.request_stop`.

    The state is saved, even in mid-epoch: call `run` with the same configuration to resume.
    """


def run(config: Config, on_epoch: Callable[[Record], None] = lambda record: None) -> Result | Stopped:
    """Train with `config`, resuming if `config.out` contains a checkpoint.

    `on_epoch` is called on every rank with each epoch's record. Returns the same outcome on every rank. Raises
    `UserError` if the configuration or the data is invalid.
    """
    with (
        tolerant_console(),
        init_world(config.runtime.timeout_s) as world,
        prepare_run(config, world) as context,
    ):
        config, data = context.config, context.data
        # --- model and training state
        engine = build_engine(config, len(data.classes), world)
        classes = ClassDistributions(len(data.classes), config.class_distributions, world)
        targets = build_target_state(config, data.train_split, world)
        history = SampleHistoryRecorder(
            len(data.train_split), len(data.classes), world, context.tracked_samples, data.train_split.digest()
        )
        state = TrainState(engine, classes, targets, history, TrainingProgress())
        # --- resume
        parts: Mapping[str, Stateful] = {
            "data": context.data_record,
            "engine": engine,
            "class_distributions": classes,
            "history": history,
            "log": context.log,
            **targets.parts(),
        }
        checkpoints = CheckpointManager(config, world, parts, state.progress, data.preprocessing)
        resumed = checkpoints.restore()
        write_run_info(context, engine, state.progress, resumed)
        # --- training
        with (
            run_watchdog(world, state.progress, config.runtime.timeout_s),
            report_out_of_memory(config, world),
            use_stored_maps(context, engine, state.progress) as ready,
        ):
            if ready is None:
                context.log.log_stopped(state.progress)
                return Stopped()
            return train_epochs(ready, state, checkpoints, on_epoch)


def train_epochs(
    context: RunContext, state: TrainState, checkpoints: CheckpointManager, on_epoch: Callable[[Record], None]
) -> Result | Stopped:
    """Train the remaining epochs, then run the final test."""
    world, log = context.world, context.log
    while state.progress.epoch < context.config.epochs:
        training = train_epoch(context, state, checkpoints)
        if isinstance(training, Stopped):
            log.log_stopped(state.progress)
            return training
        if state.classes.needs_extra_pass:
            collect_class_distributions(context, state)
        record = finish_epoch(context, state, training)
        checkpoints.save()
        log.log_epoch(state.progress, record)
        world.heartbeat.beat("in on_epoch")
        on_epoch(record)
    return finalize_run(context, state.engine, checkpoints, state.passes)


def train_epoch(context: RunContext, state: TrainState, checkpoints: CheckpointManager) -> dict[str, float] | Stopped:
    """Train the rest of the current epoch; return its mean losses, image rate and fraction of time waiting for data."""
    config, world, data, log = context.config, context.world, context.data, context.log
    engine, progress = state.engine, state.progress
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
        inputs = state.targets.inputs(state.classes.targets, rows)
        losses = adadf_loss(output, rows.labels, inputs, ramp, config.loss, ranks)
        engine.step(losses.total)
        state.observe(batch, output, losses)
        log.log_step(progress, losses, batch.global_size, engine.learning_rate)
        # --- stop or checkpoint in mid-epoch
        stop = progress.step % config.runtime.stop_check_steps == 0 and world.should_stop()
        if stop or checkpoints.should_save():
            log.flush(progress)  # fails on a non-finite loss, so no checkpoint is saved after one
            checkpoints.save(skippable=not stop)
        if stop:
            return Stopped()
    # --- end of the epoch
    if world.should_stop():  # the evaluation that follows is long and cannot be checkpointed
        log.flush(progress)
        checkpoints.save()
        return Stopped()
    return log.finish_training_pass(progress)


def collect_class_distributions(context: RunContext, state: TrainState) -> None:
    """Compute the class means (eq 4) in an extra pass over augmented training samples in evaluation mode.

    The paper's code does the same.
    """
    data, epoch = context.data, state.progress.epoch
    state.engine.sync_for_eval()
    batches = data.class_distribution_batches(epoch)
    for batch in context.world.heartbeat.wrap(batches, "computing the class distributions", data.num_batches(epoch)):
        rows = batch.flatten_crops()
        state.classes.observe(state.engine.forward_eval(rows.images).auxiliary_logits, rows.labels, 1 / batch.num_crops)


def finish_epoch(context: RunContext, state: TrainState, training: Mapping[str, float]) -> dict[str, object]:
    """Update class distributions, evaluate, and return the epoch's record. Collective: every rank must call this."""
    config, world, data = context.config, context.world, context.data
    engine, progress = state.engine, state.progress
    # --- class distributions and evaluation
    world.heartbeat.beat("summing the class distributions")
    commit = state.classes.finalize_epoch()
    state.targets.finalize_epoch()
    engine.sync_for_eval()
    metrics = evaluate_epoch(context, state, data.validation_split)
    # --- record
    record: dict[str, object] = {"kind": "epoch", "epoch": progress.epoch + 1, "step": progress.step}
    record |= {**training, "learning_rate": engine.learning_rate}
    record["num_replaced_samples"] = sum(world.all_gather_object(data.pop_num_replaced()))
    record |= {"classes_at_threshold": int(commit.threshold_met.sum())}
    record |= {"class_mean_target_prob": commit.means.diagonal().tolist(), "validation": metrics.to_dict()}
    if config.evaluation.protocol == "paper":
        assert data.test_split is not None
        record["test_accuracy"] = evaluate_epoch(context, state, data.test_split).accuracy
    # --- stragglers and sample history
    record["ranks"] = find_straggler(world)
    world.heartbeat.beat("writing the sample history")
    samples = state.history.finish_epoch(config.out, progress.epoch + 1, commit, config.runtime.timeout_s)
    record["attention"] = attention_stats(samples.attention)
    progress.finish_epoch(metrics.accuracy, record)
    return record


def evaluate_epoch(context: RunContext, state: TrainState, split: Split) -> Metrics:
    """Evaluate the epoch's model on a split; keep the results if the epoch is the last.

    Collective: every rank must call this.
    """
    batches = context.data.eval_batches(split)
    if state.progress.epoch + 1 < context.config.epochs:
        return evaluate(state.engine, batches, split, context.world)
    state.passes[split.name] = pass_over(state.engine, batches, split, context.world)
    return state.passes[split.name].metrics()


def main(argv: Sequence[str] | None = None) -> None:
    only_plan, words = split_dry_run(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.train", rank_from_env()):
        if only_plan:
            from adadf_dist.check.dry_run import dry_run  # imported here: training needs nothing of check

            dry_run(words)
        else:
            run(parse_cli(words, [DRY_RUN]))


if __name__ == "__main__":
    main()
