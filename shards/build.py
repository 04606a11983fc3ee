"""Build a dataset folder (WebDataset tars, DALI and Parquet indexes, dataset.json) from a source of images.

python -m shards.build --help
python -m shards.build fer2013 --help
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import make_parser
from adadf_dist.console.tables import align_columns
from adadf_dist.data.build.builder import BuildOptions, build_dataset
from adadf_dist.data.build.staging import check_overwrite
from adadf_dist.data.dataset import Dataset
from adadf_dist.data.workers.task_pool import ProcessPool
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import add_overwrite_option
from adadf_dist.files.text import check_path, escape_name
from shards.progress import Progress
from shards.ray_pool import RayPool
from shards.relabeling import relabel_source
from shards.sources import affectnet, csv_list, fer2013, folder, rafdb, sfew, synthetic

SOURCES: dict[str, ModuleType] = {
    "affectnet": affectnet,
    "rafdb": rafdb,
    "sfew": sfew,
    "fer2013": fer2013,
    "folder": folder,
    "csv": csv_list,
    "synthetic": synthetic,
}

DESCRIPTION = """\
Build a dataset folder for training: WebDataset tars, each with a DALI index, one Parquet index per split, and
dataset.json. The folder appears only when complete. The same input, options and library versions give the same bytes,
whatever the number of workers. To resume an interrupted build, rerun the same command. Check a folder
with `python -m shards.verify DIR`.
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(
        "shards.build", DESCRIPTION, "`python -m shards.build SOURCE --help` describes a source and its options."
    )
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for name, source in SOURCES.items():
        command = sources.add_parser(
            name,
            help=source.HELP,
            description=source.DESCRIPTION,
            epilog=source.EPILOG,
        )
        source.add_arguments(command.add_argument_group("source"))
        add_common_arguments(command.add_argument_group("dataset"))
    return parser.parse_args(argv)


def add_common_arguments(parser: argparse._ArgumentGroup) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="dataset folder to write")
    parser.add_argument("--name", help="dataset name (default: name of --out)")
    parser.add_argument(
        "--samples-per-shard",
        type=positive_int,
        default=4096,
        metavar="N",
        help="maximum number of samples per tar (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="random seed for the sample order and the held-out splits (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bad-images",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="maximum number of invalid images to skip; they are listed in skipped_images.csv "
        "(default: 0, any invalid image is an error)",
    )
    parser.add_argument(
        "--relabel",
        type=Path,
        metavar="FILE",
        help="CSV file with columns key,decision,label, as exported from the adadf_dist.audit page, that relabels or "
        "drops training samples; validation and test are unchanged",
    )
    parser.add_argument(
        "--num-workers",
        type=positive_int,
        default=cores,
        metavar="N",
        help="worker processes (default: one per core, here %(default)s)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="write the shards on the Ray cluster at ADDRESS (`auto`: the one running on this machine) instead of in "
        "local processes; the output is the same; the source and --out must be on storage shared by all nodes",
    )
    parser.add_argument(
        "--discard-partial",
        action="store_true",
        help="discard an unfinished build in OUT.partial (default: resume it, checking that the options are the same)",
    )
    add_overwrite_option(parser, "the dataset at --out")


def positive_int(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return int(text)


def non_negative_int(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 0")
    return int(text)


def build(args: argparse.Namespace) -> Dataset:
    """Build the dataset requested on the command line.

    Raises `UserError` if an option or the source data is invalid, or if the build is interrupted.
    """
    out = args.out.resolve()
    check_path(out, "--out")
    root = getattr(args, "root", None)
    if root is not None and root.resolve().is_relative_to(out):
        raise UserError(f"--out {args.out}: contains the source data; choose another --out")
    check_overwrite(out, args.overwrite)  # fail now, not after minutes of reading
    source = SOURCES[args.source].open_source(args)
    if args.relabel is not None:
        source = relabel_source(source, args.relabel)
    options = BuildOptions(
        name=escape_name(args.name or out.name),
        seed=args.seed,
        samples_per_shard=args.samples_per_shard,
        max_bad=args.max_bad_images,
        overwrite=args.overwrite,
        restart=args.discard_partial,
    )
    pool = ProcessPool(args.num_workers) if args.ray is None else RayPool(args.ray)
    with Progress("writing", len(source.items())) as progress:
        try:
            return build_dataset(source, out, options, pool, progress.update)
        except KeyboardInterrupt:
            raise UserError(f"interrupted; progress kept in {out}.partial. To resume, rerun the same command") from None


def summary(dataset: Dataset) -> str:
    """Return a summary of the dataset: samples per split and class, and counts of dropped and duplicate samples."""
    splits, infos = dataset.splits, dataset.splits.values()
    lines = [f"{dataset.name}: {sum(info.samples for info in infos):,} samples in {dataset.folder}", ""]
    rows = [["  class", *splits]]
    for label, name in enumerate(dataset.classes):
        rows.append([f"  {name}", *(f"{info.class_counts[label]:,}" for info in infos)])
    rows.append(["  all", *(f"{info.samples:,}" for info in infos)])
    rows.append(["  shards", *(f"{len(info.shards):,}" for info in infos)])
    stats = dataset.manifest.provenance.get("stats")
    assert isinstance(stats, Mapping)
    return "\n".join([*lines, *align_columns(rows), "", *describe_stats(stats)])


def describe_stats(stats: Mapping[str, object], prefix: str = "") -> list[str]:
    """Return one line per count. Keys of nested counts are joined; nested counts of zero are omitted."""
    lines = []
    for key, value in stats.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            lines += describe_stats(value, f"{name}: ")
        elif value or not prefix:
            lines.append(f"  {name}: {value:,}")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("shards.build"):
        print(summary(build(args)))


if __name__ == "__main__":
    main()
