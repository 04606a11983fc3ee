"""Finish a run: evaluate on the test split once, and save the result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adadf_dist.checkpoint.manager import CheckpointManager
from adadf_dist.checkpoint.storage import read_checkpoint
from adadf_dist.data.identity import DataRecord
from adadf_dist.distributed.world import World
from adadf_dist.engine.ddp import Engine
from adadf_dist.errors import UserError, single_line
from adadf_dist.files.atomic import write_json
from adadf_dist.metrics.evaluator import evaluate
from adadf_dist.report.api import PAGE, report
from adadf_dist.tracking.artifacts import save_predictions
from adadf_dist.tracking.logger import RunLogger
from adadf_dist.training.evaluation_pass import SplitPass, pass_over
from adadf_dist.training.setup import RunContext


class Result(NamedTuple):
    """Result of a run. Accuracies are in [0, 1]."""

    selected_epoch: int
    """Epoch (from 1) with the best validation accuracy."""
    validation_accuracy: float
    """Validation accuracy of the selected epoch."""
    test: dict[str, Any]
    """Test metrics of the selected epoch's model; empty if the model was not tested."""
    final_epoch_test: dict[str, Any]
    """Test metrics of the last epoch's model; empty if the model was not tested."""
    best_on_test: dict[str, Any]
    """Epoch with the best test accuracy, and that accuracy; empty unless `evaluation.protocol = paper`."""


def finalize_run(
    context: RunContext, engine: Engine, checkpoints: CheckpointManager, last: Mapping[str, SplitPass]
) -> Result:
    """Test the models of the selected and the last epoch once, and write predictions and `result.json`. Collective.

    If the run already has a result, only prints it. `last`: existing evaluation passes of the last epoch's model, by
    split name; they are reused.
    """
    config, world, log, progress = context.config, context.world, context.log, checkpoints.progress
    path = Path(config.out) / "result.json"
    saved = world.broadcast_object(read_result(path) if world.is_main else None)
    wanted = config.evaluation.run_test and context.data.test_split is not None
    if isinstance(saved, dict) and saved["epochs"] == progress.epoch and (saved["test"] or not wanted):
        result = Result(**{name: saved[name] for name in Result._fields})
        log.info(f"run already finished; result from {path}:")
    else:
        result = run_final_test(context, engine, checkpoints, dict(last))
        if world.is_main:
            write_json(path, {"epochs": progress.epoch, **result._asdict()})
    log.status("finished", progress)
    for line in (*format_result(result, progress.epoch), *describe_earlier_data(checkpoints)):
        log.info(line)
    log.info(f"run folder: {config.out}")
    if config.evaluation.write_report and world.is_main:
        world.heartbeat.beat("writing the report")
        write_report(log)
    return result


def run_final_test(
    context: RunContext, engine: Engine, checkpoints: CheckpointManager, passes: dict[str, SplitPass]
) -> Result:
    """Test the weights of the selected and the last epoch, and write the selected model's predictions. Collective.

    `passes`: existing evaluation passes of the last epoch's model, by split name; they are reused.
    """
    config, world, data, progress = context.config, context.world, context.data, checkpoints.progress
    test = data.test_split if config.evaluation.run_test else None
    last: dict[str, Any] = {}
    if progress.best_epoch != progress.epoch:
        if test is not None:
            known = passes.get(test.name)
            last = (evaluate(engine, data.test_batches(), test, world) if known is None else known.metrics()).to_dict()
        load_selected_weights(engine, checkpoints)
        passes = {}
    for split in (data.validation_split, test):
        if split is not None and split.name not in passes:
            passes[split.name] = pass_over(engine, data.eval_batches(split), split, world)
    selected = {} if test is None else passes[test.name].metrics().to_dict()
    save_passes(Path(config.out), [passes[split.name] for split in (data.validation_split, test) if split], world)
    best_on_test: dict[str, Any] = {}
    if config.evaluation.protocol == "paper":
        best = max(progress.epochs, key=lambda record: record["test_accuracy"])  # type: ignore[arg-type, return-value]
        best_on_test = {"epoch": best["epoch"], "accuracy": best["test_accuracy"]}
    return Result(progress.best_epoch, progress.best_accuracy, selected, last or selected, best_on_test)


def save_passes(folder: Path, passes: Sequence[SplitPass], world: World) -> None:
    """Write the predictions and features from each evaluation pass to the run folder. Collective."""
    for split_pass in passes:
        predictions, features = split_pass.answers(), split_pass.featured()
        if world.is_main:
            save_predictions(folder, split_pass.split, predictions, features)


def describe_earlier_data(checkpoints: CheckpointManager) -> list[str]:
    """Return a warning for each dataset that the run was trained on before it was resumed on other data."""
    record = checkpoints.parts.get("data")
    earlier = record.earlier if isinstance(record, DataRecord) else []
    return [f"warning: trained on {source.shards} before it was resumed on other data" for source in earlier]


def write_report(log: RunLogger) -> None:
    """Write the HTML report. An error is only logged, because the run itself is complete."""
    page = log.folder / PAGE
    log.info("writing the report ...")
    try:
        report([log.folder], page)
    except Exception as error:
        command = f"python -m adadf_dist.report {log.folder}"
        log.info(f"warning: report failed ({type(error).__name__}: {single_line(error)}); retry with {command}")
    else:
        log.info(f"report: {page}")


def load_selected_weights(engine: Engine, checkpoints: CheckpointManager) -> None:
    """Load the weights of the selected epoch. Collective.

    Raises `UserError` if `selected.pt` is from another epoch.
    """
    content = read_checkpoint(checkpoints.selected_path)
    if content["progress"]["epoch"] != checkpoints.progress.best_epoch:
        raise UserError(
            f"{checkpoints.selected_path}: not the checkpoint of the selected epoch ({checkpoints.progress.best_epoch})"
        )
    engine.load_state_dict(content["engine"])


def read_result(path: Path) -> dict[str, object] | None:
    if not path.exists():
        return None
    result: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return result


def format_result(result: Result, epochs: int) -> list[str]:
    """Format a result as lines to print. `epochs`: number of epochs of the run."""
    lines = [f"best epoch: {result.selected_epoch} (validation accuracy {result.validation_accuracy:.2%})"]
    tested = {"best": result.test, "last": result.final_epoch_test}
    if result.selected_epoch == epochs:
        tested = {"best and last": result.test}
    for name, test in tested.items():
        if test:
            low, high = test["accuracy_interval"]
            line = f"test accuracy ({name} epoch): {test['accuracy']:.2%} (95% CI {low:.2%} to {high:.2%}, "
            line += f"n={test['samples']}), mean class accuracy {test['mean_class_accuracy']:.2%}"
            if test["votes_kl"] is not None:
                line += f", KL(votes || prediction) {test['votes_kl']:.3f} nats"
            lines.append(line)
    if result.test and result.test["bayes_accuracy"] is not None:
        ceiling = result.test["bayes_accuracy"]
        fraction = result.test["accuracy"] / ceiling
        lines.append(f"Bayes-optimal accuracy: {ceiling:.2%}; the best epoch reaches {fraction:.1%} of it")
    if result.best_on_test:
        best = result.best_on_test
        label = "best test epoch (paper protocol, selected on the test split)"
        lines.append(f"{label}: {best['epoch']} (test accuracy {best['accuracy']:.2%})")
    return lines
