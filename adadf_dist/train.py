"""Train Ada-DF: the story of a run, from shards to a result.

python -m adadf_dist.train --help
torchrun --standalone --nproc_per_node 8 -m adadf_dist.train --preset affectnet7 --data.shards DIR
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from adadf_dist.check.dry_run import dry_run
from adadf_dist.checkpoint.manager import Checkpoints, Stateful
from adadf_dist.checkpoint.progress import Progress
from adadf_dist.config.load import config_from_command_line, flatten, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.console.exit import one_line_errors
from adadf_dist.console.terminal import tolerant_console
from adadf_dist.data.batch import Batch
from adadf_dist.data.datamodule import Data, open_data
from adadf_dist.data.dataset import Split
from adadf_dist.data.identity import DATA_FILE, DataRecord, digest_files
from adadf_dist.data.label_noise import write_noise
from adadf_dist.diagnostics.run import attention_spread
from adadf_dist.diagnostics.run_length import find_problems
from adadf_dist.distributed.stragglers import compare_ranks
from adadf_dist.distributed.world import World, open_world, rank_in_environment
from adadf_dist.engine.ddp import Engine, build_engine
from adadf_dist.files.atomic import write_json
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import Losses, Place, adadf_loss, ramp_weights
from adadf_dist.method.model import Output
from adadf_dist.metrics.classification import Metrics
from adadf_dist.metrics.evaluator import evaluate
from adadf_dist.tracking.artifacts import record_faces
from adadf_dist.tracking.logger import Log, open_log
from adadf_dist.tracking.sample_history import History, find_listed
from adadf_dist.training.consistency import agree
from adadf_dist.training.evaluation_pass import SplitPass, pass_over
from adadf_dist.training.final_test import Result, finish
from adadf_dist.training.out_of_memory import memory_told
from adadf_dist.training.setup import facts, resolve, shards_at_hand
from adadf_dist.training.watchdog import watching

Record = Mapping[str, object]
"""One epoch, as in metrics.jsonl."""


@dataclass(frozen=True)
class TrainState:
    """Everything that training changes."""

    engine: Engine
    classes: ClassDistributions
    history: History
    progress: Progress
    passes: dict[str, SplitPass] = field(default_factory=dict)
    """What the last epoch's model predicts, by split: evaluated once, and kept for the end of the run."""

    def observe(self, batch: Batch, output: Output, losses: Losses) -> None:
        """Count a step: class sums, history, progress. Nothing leaves the device."""
        rows = batch.rows()
        if not self.classes.needs_pass:
            self.classes.observe(output.auxiliary_logits, rows.labels, 1 / batch.crops)
        self.history.observe(rows, output, losses, 1 / batch.crops)
        self.progress.batch += 1
        self.progress.step += 1


def ignore(record: Record) -> None:
    pass


def run(config: Config, on_epoch: Callable[[Record], None] = ignore) -> Result | None:
    """Train from `config`, going on from `config.out` when it holds a checkpoint.

    `on_epoch` is called with each epoch's record, on every rank. Returns the result, on every rank, or None when
    the run was asked to stop. Raises `UserError` for a mistake in the configuration or the data.
    """
    with tolerant_console(), open_world(config.runtime.timeout_s) as world:
        agree(config, world)
        allow_other_data = config.allow_other_data
        config = resolve(replace(config, allow_other_data=False), world)
        with (
            shards_at_hand(config, world) as folder,
            open_log(config, world) as log,
            open_data(config, world.rank, world.size, world.device, folder) as data,
        ):
            engine = build_engine(config, len(data.classes), world)
            classes = ClassDistributions(len(data.classes), config.class_distributions, world)
            listed = find_listed(data.train_split, config.runtime, config.seed)
            history = History(len(data.train_split), len(data.classes), world, listed, data.train_split.digest())
            state = TrainState(engine, classes, history, Progress())
            files = digest_files(dict(flatten(to_dict(config))))
            record = DataRecord(data.source, data.train_split, files, allow_other_data, world.is_main)
            parts: Mapping[str, Stateful] = {
                "data": record,
                "engine": engine,
                "class_distributions": classes,
                "history": history,
                "log": log,
            }
            checkpoints = Checkpoints(config, world, parts, state.progress, data.preprocessing)
            resumed = checkpoints.restore()
            log.start(state.progress, facts(data, engine, world), resumed)
            for problem in find_problems(config, data.num_batches(0)):
                log.say(f"  warning: {problem}")
            if world.is_main:
                write_json(log.folder / DATA_FILE, record.to_dict())
                record_faces(log.folder, data.train_split, data.noise)
                if data.noise is not None:
                    write_noise(log.folder / "noise.csv", data.train_split, data.noise)
            with watching(world, state.progress, config.runtime.timeout_s), memory_told(config, world):
                return train_to_the_end(state, data, log, checkpoints, on_epoch)


def train_to_the_end(
    state: TrainState, data: Data, log: Log, checkpoints: Checkpoints, on_epoch: Callable[[Record], None]
) -> Result | None:
    """All epochs and the test, from where the state stands; None when the ranks agreed to stop."""
    config, world = log.config, log.world
    while state.progress.epoch < config.epochs:
        training = train_epoch(state, data, log, checkpoints, world)
        if training is None:
            log.stopped(state.progress)
            return None
        if state.classes.needs_pass:
            measure_classes(state, data, world)
        record = finish_epoch(state, data, training, config, world)
        checkpoints.save()
        log.epoch(state.progress, record)
        world.pulse.beat("in on_epoch")
        on_epoch(record)
    return finish(state.engine, data, log, checkpoints, world, state.passes)


def train_epoch(
    state: TrainState, data: Data, log: Log, checkpoints: Checkpoints, world: World
) -> dict[str, float] | None:
    """Train from the batch where the epoch stands. Returns its mean losses, or None when the ranks agreed to stop."""
    engine, progress, config = state.engine, state.progress, log.config
    ramp = ramp_weights(progress.epoch + 1, config.loss.epoch_threshold)
    num_batches = data.num_batches(progress.epoch)
    log.start_epoch(progress, num_batches)
    if progress.batch:  # resumed, perhaps after the last batch: the epoch's record names the rate that was in force
        engine.schedule(progress.last_position(num_batches))
    for batch in log.waiting_for(data.train(progress.epoch, progress.batch)):
        engine.schedule(progress.position(num_batches))
        rows = batch.rows()
        output = engine.forward(rows.images)
        ranks = (world, Place(rows.first, rows.global_size))
        losses = adadf_loss(output, rows.labels, state.classes.current, ramp, config.loss, ranks)
        engine.step(losses.total)
        state.observe(batch, output, losses)
        log.step(progress, losses, batch.global_size, engine.learning_rate)
        stop = progress.step % config.runtime.stop_every == 0 and world.stop_agreed()
        if stop or checkpoints.due():
            log.flush(progress)  # no checkpoint ever holds weights behind a loss that is not finite
            checkpoints.save(skippable=not stop)
        if stop:
            return None
    if world.stop_agreed():  # before a long evaluation, which no checkpoint can interrupt
        log.flush(progress)
        checkpoints.save()
        return None
    return log.end_training(progress)


def measure_classes(state: TrainState, data: Data, world: World) -> None:
    """Equation 4 in a pass of its own: the epoch's faces once more, augmented as published, in evaluation mode."""
    state.engine.consolidate()
    epoch = state.progress.epoch
    batches = data.measure(epoch)
    for batch in world.pulse.over(batches, "measuring the class distributions", data.num_batches(epoch)):
        rows = batch.rows()
        state.classes.observe(state.engine.infer(rows.images).auxiliary_logits, rows.labels, 1 / batch.crops)


def finish_epoch(
    state: TrainState, data: Data, training: Mapping[str, float], config: Config, world: World
) -> dict[str, object]:
    """Make the epoch's class distributions the next one's targets, evaluate, and count the epoch. A collective."""
    engine, progress = state.engine, state.progress
    world.pulse.beat("adding up the class distributions")
    commit = state.classes.commit()
    engine.consolidate()
    metrics = evaluate_epoch(state, data, data.validation_split, world)
    record: dict[str, object] = {"kind": "epoch", "epoch": progress.epoch + 1, "step": progress.step}
    record |= {**training, "learning_rate": engine.learning_rate}
    record["replaced_faces"] = sum(world.collect(data.take_replaced()))
    record |= {"classes_at_threshold": int(commit.threshold_met.sum())}
    record |= {"class_degrees": commit.means.diagonal().tolist(), "validation": metrics.to_dict()}
    if config.evaluation.protocol == "published":
        assert data.test_split is not None
        record["test_accuracy"] = evaluate_epoch(state, data, data.test_split, world).accuracy
    record["ranks"] = compare_ranks(world)
    world.pulse.beat("writing the history of the faces")
    faces = state.history.finish_epoch(config.out, progress.epoch + 1, commit, config.runtime.timeout_s)
    record["attention"] = attention_spread(faces.attention)
    progress.finish_epoch(metrics.accuracy, record)
    return record


def evaluate_epoch(state: TrainState, data: Data, split: Split, world: World) -> Metrics:
    """Metrics of the epoch's model; of the last epoch's the predictions are kept too. A collective."""
    if state.progress.epoch + 1 < data.config.epochs:
        return evaluate(state.engine, data.evaluation(split), split, world)
    state.passes[split.name] = pass_over(state.engine, data.evaluation(split), split, world)
    return state.passes[split.name].metrics()


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    with one_line_errors("adadf_dist.train", rank_in_environment()):
        if "--dry-run" in words:
            dry_run([word for word in words if word != "--dry-run"])
        else:
            run(config_from_command_line(words, ["--dry-run"]))


if __name__ == "__main__":
    main()
