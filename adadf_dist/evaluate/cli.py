"""The command line of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from adadf_dist.checkpoint.trained_model import CheckpointChoice, TrainedModel
from adadf_dist.console.parser import Parser
from adadf_dist.data.identity import ALLOW_OTHER_DATA, ALLOW_TRAINING_SAMPLES
from adadf_dist.data.manifest import SPLITS
from adadf_dist.data.remote.client import scheme_of
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import add_force_option, check_output_path

DESCRIPTION = """\
Measure a trained network on any dataset of its classes: accuracy and mean class accuracy with 95 % intervals, F1,
precision and recall by class, the confusion matrix, calibration, results by group, and, where annotators voted, how
far the predicted distributions are from theirs, beside what the method taught and what plain labels would have said.
"""
EPILOG = """\
CLASSES OF ANOTHER DATASET
  Names are matched, not numbers: the same names in another order need nothing. Other names need --mapping FILE, a TOML
  file with a line for each class of the dataset; several may become one, and "" leaves a class's faces out:

    happiness = "happy"
    anger     = "angry"
    contempt  = "angry"
    "unsure"  = ""

  The network may still answer with a class that no line names; that answer is wrong.

SPLITS
  test unless --split says otherwise, and validation where there is no test. Where the run carved its validation split
  out of train, --split validation and --split train are those same parts, of the dataset given. Labels are the
  dataset's own: neither data.label_noise nor data.relabel is applied.

OTHER DATA AND TRAINING SAMPLES
  A run records where its dataset was and digests of its content. Without --data.shards it is an error when the dataset
  there is not the same any more; one that has moved is given as --data.shards DIR. Whatever the dataset, a split that
  holds samples on which the run was trained (found by their keys) is an error, but for --split train of the run's own
  dataset. --allow-other-data and --allow-training-samples make the two a line of the report.

examples:
  python -m adadf_dist.evaluate runs/rafdb-seed0
  python -m adadf_dist.evaluate runs/rafdb-seed0 --tta flip --json rafdb.json
  python -m adadf_dist.evaluate runs/rafdb-seed0 --data.shards data/sfew --mapping sfew.toml
  python -m adadf_dist.evaluate runs/ferplus-seed0 --split validation --which last --require-votes
  python -m adadf_dist.evaluate runs/rafdb-seed0 --groups gender --groups age
  python -m adadf_dist.evaluate selected.pt --data.shards https://HOST/affectnet7 --data.cache /scratch/faces
  torchrun --standalone --nproc_per_node 8 -m adadf_dist.evaluate runs/affectnet7-seed0

A run in progress can be asked too: its checkpoint selected so far answers. Definitions and how to read the tables:
docs/evaluation.md. Exit status: 0, or 2 with one line that says what is wrong.
"""


Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class EvalArgs:
    """What the user asked for; empty, 0 or None: as the run has it, which `with_run_defaults` looks up."""

    path: Path
    which: CheckpointChoice
    shards: str
    shards_given: bool
    """Whether the user named the dataset, which then need not be the run's."""
    cache: str
    split: str
    mapping: Path | None
    tta: Literal["none", "flip", "tencrop"]
    groups: tuple[str, ...]
    require_votes: bool
    loader: str
    batch_size: int
    workers: int | None
    precision: Precision | None
    json: Path | None
    force: bool
    allow_other_data: bool
    allow_training_samples: bool


def parse_options(argv: Sequence[str]) -> EvalArgs:
    parser = Parser(
        prog="python -m adadf_dist.evaluate",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("path", type=Path, metavar="RUN|CHECKPOINT", help="a run folder, or one checkpoint of it")
    add("--which", choices=("selected", "last"), default="selected", help="checkpoint of a run folder (%(default)s)")
    add("--data.shards", dest="shards", default="", metavar="DIR", help="dataset folder or its URL (the run's)")
    add("--data.cache", dest="cache", default="", metavar="DIR", help="where remote shards are kept (the run's)")
    add("--split", choices=SPLITS, default="", help="which split (test, or else validation)")
    add("--mapping", type=Path, metavar="FILE", help="TOML: what each class of the dataset is to the network")
    add(
        "--tta",
        choices=("none", "flip", "tencrop"),
        default="none",
        help="answer by the mean of the logits of a face and its mirror image, or of ten crops, cut from the face at "
        "256/224 of the input's side unless the run has data.ten_crop (none; ten crops where the run takes them)",
    )
    add(
        "--groups",
        action="append",
        default=[],
        metavar="FIELD",
        help="also the accuracy of each value of a field of KEY.json; may be given several times",
    )
    add("--require-votes", action="store_true", help="refuse a split on which nobody voted")
    add("--loader", choices=("torch", "dali"), default="", help="who decodes (the run's)")
    add("--batch-size", type=int, default=0, metavar="N", help="faces at once over all ranks (the run's)")
    add("--workers", type=int, metavar="N", help="decoding processes a rank, or DALI's threads (the run's)")
    add("--precision", choices=("fp32", "bf16"), help="of the arithmetic (the run's)")
    add("--json", type=Path, metavar="FILE", help="write everything for programs")
    add_force_option(parser, "FILE")
    add(
        ALLOW_OTHER_DATA,
        action="store_true",
        help="evaluate although the run's dataset is not the one that it was trained on (its digest differs)",
    )
    add(
        ALLOW_TRAINING_SAMPLES,
        action="store_true",
        help="evaluate although the split holds samples that the run was trained on",
    )
    args = parser.parse_args(argv)
    if args.batch_size < 0:
        parser.error(f"--batch-size {args.batch_size}: at least 1")
    if args.workers is not None and args.workers < 0:
        parser.error(f"--workers {args.workers}: at least 0 (0: decode in this process)")
    return EvalArgs(**{**vars(args), "groups": tuple(dict.fromkeys(args.groups)), "shards_given": bool(args.shards)})


def with_run_defaults(options: EvalArgs, trained: TrainedModel) -> EvalArgs:
    """What the user left open is as the run had it. Raises `UserError` where the run does not say either."""
    run = trained.config
    shards = options.shards or run.data.shards
    if not shards:
        raise UserError(f"{trained.path}: names no dataset; give --data.shards DIR")
    drawn = run.data.embedded_faces and shards == run.data.shards  # these are made where they are missing
    if not options.shards and not drawn and not scheme_of(shards) and not Path(shards).is_dir():
        raise UserError(f"{shards}: the run's dataset is not there; give where it is now as --data.shards DIR")
    return replace(
        options,
        shards=shards,
        cache=options.cache or run.data.cache,
        loader=options.loader or trained.preprocessing.loader,
        batch_size=options.batch_size or run.batch_size,
        workers=run.data.workers if options.workers is None else options.workers,
        precision=options.precision or cast(Precision, run.runtime.precision),  # a checkpoint's is never auto
    )


def json_path_error(options: EvalArgs) -> str:
    """Why `--json FILE` cannot be written, for rank 0 to tell the others; empty when it can."""
    try:
        if options.json is not None:
            check_output_path(options.json, options.force, "--json")
    except UserError as error:
        return str(error)
    return ""
