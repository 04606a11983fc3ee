"""Command-line options of `python -m adadf_dist.evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from adadf_dist.checkpoint.trained_model import CheckpointChoice, TrainedModel
from adadf_dist.console.parser import add_device_option, make_parser
from adadf_dist.data.identity import ALLOW_OTHER_DATA, ALLOW_TRAINING_SAMPLES
from adadf_dist.data.manifest import SPLITS
from adadf_dist.data.remote.client import scheme_of
from adadf_dist.distributed.world import DeviceName
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import add_overwrite_option, check_output_path

DESCRIPTION = """\
Evaluate a trained model on any dataset with the same classes: accuracy and mean class accuracy with 95% intervals, F1,
precision and recall per class, confusion matrix, calibration, and accuracy per group. With annotator votes, also the
distance of the predicted distributions from the votes, compared with the training targets and with plain labels.
"""
EPILOG = """\
CLASSES OF ANOTHER DATASET
  Classes are matched by name, in any order. Other names need --class-mapping FILE, a TOML file with one line per class
  of the dataset. Several classes can map to one, and "" excludes the samples of a class:

    happiness = "happy"
    anger     = "angry"
    contempt  = "angry"
    "unsure"  = ""

  The model can still predict a class that no line maps to; such a prediction counts as incorrect.

SPLITS
  The default is test, or validation if there is no test split. If the run held its validation split out of train,
  --split validation and --split train use the same held-out split of the given dataset. Labels are those of the
  dataset: neither data.label_noise_rate nor data.relabel_file is applied.

OTHER DATA AND TRAINING SAMPLES
  A run records the location and the digests of its dataset. Without --shards, a changed dataset is an error; pass
  --shards DIR for a dataset that has moved. A split with samples that the run was trained on (identified by key)
  is always an error, except --split train of the run's own dataset. --allow-other-data and --allow-training-samples
  turn these errors into warnings in the report.

examples:
  python -m adadf_dist.evaluate runs/rafdb-seed0
  python -m adadf_dist.evaluate runs/rafdb-seed0 --tta flip --json rafdb.json
  python -m adadf_dist.evaluate runs/rafdb-seed0 --shards data/sfew --class-mapping sfew.toml
  python -m adadf_dist.evaluate runs/ferplus-seed0 --split validation --checkpoint last --require-votes
  python -m adadf_dist.evaluate runs/rafdb-seed0 --group-by gender --group-by age
  python -m adadf_dist.evaluate selected.pt --shards https://HOST/affectnet7 --cache-dir /scratch/faces
  torchrun --standalone --nproc_per_node 8 -m adadf_dist.evaluate runs/affectnet7-seed0

A run in progress is evaluated with its currently selected checkpoint. Definitions of all metrics: docs/evaluation.md.
Exit status: 0, or 2 with a one-line error message.
"""


Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class EvalArgs:
    """Evaluation options. `with_run_defaults` replaces unset ones (empty, 0 or None) with the run's settings."""

    path: Path
    checkpoint: CheckpointChoice
    shards: str
    shards_given: bool
    """Whether the user passed a dataset, which may then differ from the run's."""
    cache_dir: str
    split: str
    class_mapping: Path | None
    tta: Literal["", "none", "flip", "tencrop"]
    group_by: tuple[str, ...]
    require_votes: bool
    loader: str
    batch_size: int
    num_workers: int | None
    device: DeviceName
    precision: Precision | None
    json: Path | None
    overwrite: bool
    allow_other_data: bool
    allow_training_samples: bool


def parse_options(argv: Sequence[str]) -> EvalArgs:
    parser = make_parser("adadf_dist.evaluate", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("path", type=Path, metavar="RUN|CHECKPOINT", help="run folder or checkpoint file")
    add(
        "--checkpoint",
        choices=("selected", "last"),
        default="selected",
        help="which checkpoint of a run folder to use (default: %(default)s)",
    )
    add("--shards", default="", metavar="DIR", help="dataset folder or URL (default: the run's)")
    add("--cache-dir", default="", metavar="DIR", help="cache of remote shards (default: as in the run)")
    add("--split", choices=SPLITS, default="", help="split to evaluate (default: test if available, else validation)")
    add("--class-mapping", type=Path, metavar="FILE", help="TOML file that maps dataset classes to model classes")
    add(
        "--tta",
        choices=("none", "flip", "tencrop"),
        default="",
        help="test-time augmentation: mean logits of the image and its mirror image, or of ten crops (taken from the "
        "image resized to 256/224 of the input size, unless the run sets data.ten_crop_resize; default: as in the "
        "run, i.e. flip with evaluation.flip_tta, ten crops with data.ten_crop_resize, otherwise none)",
    )
    add(
        "--group-by",
        action="append",
        default=[],
        metavar="FIELD",
        help="also report accuracy for each value of a KEY.json field; repeatable",
    )
    add("--require-votes", action="store_true", help="fail if the split has no annotator votes")
    add("--loader", choices=("torch", "dali"), default="", help="data loader (default: as in the run)")
    add(
        "--batch-size",
        type=int,
        default=0,
        metavar="N",
        help="global batch size (default: as in the run)",
    )
    add(
        "--num-workers",
        type=int,
        metavar="N",
        help="decoding processes or DALI threads per rank (default: as in the run)",
    )
    add_device_option(parser)
    add("--precision", choices=("fp32", "bf16"), help="compute precision (default: as in the run)")
    add("--json", type=Path, metavar="FILE", help="also write the results to this JSON file")
    add_overwrite_option(parser, "FILE")
    add(
        ALLOW_OTHER_DATA,
        action="store_true",
        help="evaluate even if the run's dataset has changed since training (different digest)",
    )
    add(
        ALLOW_TRAINING_SAMPLES,
        action="store_true",
        help="evaluate even if the split contains training samples of the run",
    )
    args = parser.parse_args(argv)
    if args.batch_size < 0:
        parser.error(f"--batch-size {args.batch_size}: must be at least 1")
    if args.num_workers is not None and args.num_workers < 0:
        parser.error(f"--num-workers {args.num_workers}: must be at least 0 (0: decode in this process)")
    return EvalArgs(
        **{**vars(args), "group_by": tuple(dict.fromkeys(args.group_by)), "shards_given": bool(args.shards)}
    )


def with_run_defaults(options: EvalArgs, trained: TrainedModel) -> EvalArgs:
    """Return the options, with unset ones taken from the run. Raises `UserError` if the dataset is not found."""
    run = trained.config
    shards = options.shards or run.data.shards
    if not shards:
        raise UserError(f"{trained.path}: the checkpoint does not record its dataset; pass --shards DIR")
    generated = run.data.synthetic_samples and shards == run.data.shards  # rendered if missing
    if not options.shards and not generated and not scheme_of(shards) and not Path(shards).is_dir():
        raise UserError(f"{shards}: the run's dataset was not found; pass its new location as --shards DIR")
    return replace(
        options,
        shards=shards,
        tta=options.tta or ("flip" if run.evaluation.flip_tta else "none"),
        cache_dir=options.cache_dir or run.data.cache_dir,
        loader=options.loader or trained.preprocessing.loader,
        batch_size=options.batch_size or run.batch_size,
        num_workers=run.data.num_workers if options.num_workers is None else options.num_workers,
        precision=options.precision or cast(Precision, run.runtime.precision),  # never auto in a checkpoint
    )


def json_path_error(options: EvalArgs) -> str:
    """Return why `--json FILE` cannot be written, or an empty string if it can be."""
    try:
        if options.json is not None:
            check_output_path(options.json, options.overwrite, "--json")
    except UserError as error:
        return str(error)
    return ""
