"""A trained network meets a split: `python -m adadf_dist.evaluate RUN`. See --help."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from adadf_dist.checkpoint.trained_model import Trained, TrainedNetwork, open_trained
from adadf_dist.console.exit import one_line_errors
from adadf_dist.data.dataset import Split
from adadf_dist.distributed.world import World, open_world, rank_in_environment
from adadf_dist.errors import UserError
from adadf_dist.evaluate.annotators import compare_with_votes
from adadf_dist.evaluate.class_mapping import match_classes, translate
from adadf_dist.evaluate.cli import Options, fill_in, json_problem, parse_options
from adadf_dist.evaluate.data import loader_for, preprocessing_for, split_at_hand, views
from adadf_dist.evaluate.origin import Found, Origin, check_origin
from adadf_dist.evaluate.report import Asked, Report
from adadf_dist.evaluate.subgroups import read_groups, score_groups
from adadf_dist.files.outputs import write_output
from adadf_dist.metrics.evaluator import bayes_ceiling
from adadf_dist.metrics.predictions import Answers, ask, check_finite
from adadf_dist.metrics.scores import score


def run(options: Options) -> None:
    """Ask, judge, print, write. Raises `UserError`: for what can be known before, before the first face is decoded."""
    with open_world(finish_steps=False) as world:
        if problem := world.share(json_problem(options)):
            raise UserError(str(problem))
        trained = open_alike(options, world)
        options = fill_in(options, trained)
        with split_at_hand(options, trained.config, world) as found:
            mapping = match_classes(found.split.classes, trained.classes, options.mapping)
            split = translate(found.split, mapping, trained.classes)
            origin = origin_of(trained, found._replace(split=split), options, world)
            check_votes(split, options)
            groups = read_groups(split, options.groups)
            network = TrainedNetwork(trained, world.device, options.precision)
            with loader_for(split, trained, options, world) as loader:
                answers = ask(network, views(loader, split, options), len(split), world)
            check_finite(answers, trained.path)
            if world.is_main:
                asked = describe(options, trained, (split, len(found.split) - len(split)), mapping, world)
                asked = asked._replace(other_data=origin.other_data, training_samples=origin.training_samples)
                publish(judge(trained, answers, split, groups, asked), options)
        world.barrier()


def open_alike(options: Options, world: World) -> Trained:
    """The network, the same on every rank: a run in progress may select another while we look. A collective."""
    trained = open_trained(options.path, options.which)
    opened = set(world.collect((str(trained.path), trained.epoch)))
    if len(opened) > 1:
        raise UserError(f"{options.path}: the run wrote another checkpoint while the ranks opened it; start again")
    return trained


def origin_of(trained: Trained, found: Found, options: Options, world: World) -> Origin:
    """`check_origin` by rank 0. A collective: all ranks raise its `UserError`."""
    shared: object = None
    if world.is_main:
        try:
            shared = check_origin(trained, found, options)
        except UserError as error:
            shared = str(error)
    shared = world.share(shared)
    if not isinstance(shared, Origin):
        raise UserError(str(shared))
    return shared


def describe(
    options: Options, trained: Trained, faces: tuple[Split, int], mapping: Mapping[str, str], world: World
) -> Asked:
    """`faces`: the split, and how many of its faces the mapping left out."""
    split, left_out = faces
    return Asked(
        checkpoint=trained.path,
        epoch=trained.epoch,
        dataset=options.shards,
        split=split.name,
        faces=len(split),
        left_out=left_out,
        mapping=mapping,
        tta=options.tta,
        ten_crop=preprocessing_for(trained.preprocessing, options.tta).ten_crop,
        loader=options.loader,
        precision=str(options.precision),
        batch_size=options.batch_size,
        ranks=world.size,
        device=world.device.type,
    )


def check_votes(split: Split, options: Options) -> None:
    if options.require_votes and (split.votes is None or not split.votes.any()):
        raise UserError(
            f"--require-votes: nobody voted on the faces of split {split.name} of {options.shards}; build the dataset "
            "with votes, or leave the option out"
        )


def judge(
    trained: Trained, answers: Answers, split: Split, groups: Mapping[str, Sequence[str]], asked: Asked
) -> Report:
    right = answers.predicted == split.labels
    return Report(
        asked=asked,
        scores=score(answers.target_logits, split.labels, trained.classes),
        ceiling=bayes_ceiling(split),
        groups={field: score_groups(names, right) for field, names in groups.items()},
        distances=compare_with_votes(trained, answers, split),
    )


def publish(report: Report, options: Options) -> None:
    print(report, flush=True)
    if options.json is not None:
        write_output(options.json, report.to_dict())


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_options(sys.argv[1:] if argv is None else argv)
    with one_line_errors("adadf_dist.evaluate", rank_in_environment(), "report"):
        run(options)


if __name__ == "__main__":
    main()
