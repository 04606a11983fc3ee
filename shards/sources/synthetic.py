"""Renders synthetic faces, which need no download and whose true label distributions are known."""

from __future__ import annotations

import argparse

from adadf_dist.data.synthetic.dataset import SyntheticSource, make_synthetic_source
from adadf_dist.errors import UserError

HELP = "rendered faces with known label distributions, for demos and tests; needs no data"
DESCRIPTION = """\
Renders faces of 7 emotions, with random appearance and annotator votes that depend only on --seed. The true label
distribution of each face is stored in KEY.json and in the column `distribution` of the Parquet index.
"""
EPILOG = """\
example:
  python -m shards.build synthetic --out data/drawn --train 4000 --validation 500 --test 1000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for split, count in (("train", 4000), ("validation", 500), ("test", 1000)):
        parser.add_argument(
            f"--{split}", type=int, default=count, metavar="N", help=f"{split} samples (default: %(default)s)"
        )
    parser.add_argument(
        "--image-size", type=int, default=64, metavar="N", help="side of each image in pixels (default: %(default)s)"
    )


def open_source(args: argparse.Namespace) -> SyntheticSource:
    if args.train < 1:
        raise UserError(f"--train {args.train}: must be at least 1")
    return make_synthetic_source(
        {"train": args.train, "validation": args.validation, "test": args.test}, args.image_size, args.seed
    )
