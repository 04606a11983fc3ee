"""Evaluate a trained model on a split: `python -m adadf_dist.evaluate RUN`. See --help."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from adadf_dist.checkpoint.trained_model import TrainedModel, TrainedPredictor, load_trained_model
from adadf_dist.console.exit import cli_errors
from adadf_dist.data.dataset import Split
from adadf_dist.distributed.environment import rank_from_env
from adadf_dist.distributed.world import World, init_world
from adadf_dist.errors import UserError
from adadf_dist.evaluate.annotators import compare_with_votes
from adadf_dist.evaluate.class_mapping import map_labels, match_classes
from adadf_dist.evaluate.cli import EvalArgs, json_path_error, parse_options, with_run_defaults
from adadf_dist.evaluate.data import eval_batches, eval_preprocessing, make_eval_loader, open_split
from adadf_dist.evaluate.origin import Found, Origin, check_origin
from adadf_dist.evaluate.report import EvalContext, Report
from adadf_dist.evaluate.subgroups import read_groups, score_groups
from adadf_dist.files.outputs import write_output
from adadf_dist.metrics.evaluator import bayes_accuracy
from adadf_dist.metrics.predictions import check_finite, predict_split
from adadf_dist.metrics.scores import score


def run(options: EvalArgs) -> None:
    """Evaluate a model, then print and write the report. Where possible, detects user errors before decoding."""
    with init_world(finish_steps=False, device_name=options.device) as world:
        if problem := world.broadcast_object(json_path_error(options)):
            raise UserError(str(problem))
        trained = load_same_on_all_ranks(options, world)
        options = with_run_defaults(options, trained)
        with open_split(options, trained.config, world) as found:
            mapping = match_classes(found.split.classes, trained.classes, options.class_mapping)
            split = map_labels(found.split, mapping, trained.classes)
            origin = check_origin_once(trained, found._replace(split=split), options, world)
            check_votes(split, options)
            groups = read_groups(split, options.group_by)
            network = TrainedPredictor(trained, world.device, options.precision)
            with make_eval_loader(split, trained, options, world) as loader:
                predictions = predict_split(network, eval_batches(loader, split, options), len(split), world)
            check_finite(predictions, trained.path)
            if world.is_main:
                excluded = len(found.split) - len(split)
                context = make_context(options, trained, split, excluded, mapping, world)._replace(**origin._asdict())
                correct = predictions.predicted_labels == split.labels
                report = Report(
                    asked=context,
                    scores=score(predictions.target_logits, split.labels, trained.classes),
                    bayes_accuracy=bayes_accuracy(split),
                    groups={field: score_groups(names, correct) for field, names in groups.items()},
                    distances=compare_with_votes(trained, predictions, split),
                )
                write_report(report, options)
        world.barrier()


def load_same_on_all_ranks(options: EvalArgs, world: World) -> TrainedModel:
    """Load the checkpoint on every rank. Raises `UserError` if a run in progress replaced it between loads.

    Collective: every rank must call this.
    """
    trained = load_trained_model(options.path, options.checkpoint)
    if len(set(world.all_gather_object((str(trained.path), trained.epoch)))) > 1:
        raise UserError(
            f"{options.path}: the run in progress replaced the checkpoint while it was being loaded; run the command "
            "again"
        )
    return trained


def check_origin_once(trained: TrainedModel, found: Found, options: EvalArgs, world: World) -> Origin:
    """Run `check_origin` on rank 0, and return its result or raise its `UserError` on every rank.

    Collective: every rank must call this.
    """
    shared: object = None
    if world.is_main:
        try:
            shared = check_origin(trained, found, options)
        except UserError as error:
            shared = str(error)
    shared = world.broadcast_object(shared)
    if not isinstance(shared, Origin):
        raise UserError(str(shared))
    return shared


def make_context(
    options: EvalArgs, trained: TrainedModel, split: Split, excluded: int, mapping: Mapping[str, str], world: World
) -> EvalContext:
    """Return the context for the report; `excluded` is the number of samples excluded by the class mapping."""
    return EvalContext(
        checkpoint=trained.path,
        epoch=trained.epoch,
        dataset=options.shards,
        split=split.name,
        faces=len(split),
        left_out=excluded,
        mapping=mapping,
        tta=options.tta,
        ten_crop=eval_preprocessing(trained.preprocessing, options.tta).ten_crop,
        loader=options.loader,
        precision=str(options.precision),
        batch_size=options.batch_size,
        ranks=world.size,
        device=world.device.type,
    )


def check_votes(split: Split, options: EvalArgs) -> None:
    if options.require_votes and (split.votes is None or not split.votes.any()):
        raise UserError(
            f"--require-votes: split {split.name} of {options.shards} has no annotator votes; rebuild the dataset with "
            "votes or omit the option"
        )


def write_report(report: Report, options: EvalArgs) -> None:
    print(report, flush=True)
    if options.json is not None:
        write_output(options.json, report.to_dict())


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_options(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.evaluate", rank_from_env(), "report"):
        run(options)


if __name__ == "__main__":
    main()
