"""Reads FER2013 with its original labels or the FER+ labels, which are votes of ten annotators per face."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adadf_dist.data.build.source import Provenance, SourceItem
from adadf_dist.data.build.writer import Sample
from adadf_dist.data.jpeg import encode
from adadf_dist.errors import UserError
from adadf_dist.files.text import escape_name
from shards.duplicates import assign_splits, digest
from shards.sources.fer2013_csv import EMOTIONS, VOTE_COLUMNS, VOTES_NAME, Faces, find_csv, read_faces, read_votes

HELP = "FER2013: 48 x 48 gray faces in a CSV file, with FER+'s votes if available"
DESCRIPTION = """\
Reads fer2013.csv (columns emotion, pixels, Usage; plain or .gz) and, if present, FER+'s fer2013new.csv, whose rows
list the same faces in the same order.

splits      PublicTest becomes test, and validation is held out from Training; if the CSV file also has PrivateTest,
            PublicTest becomes validation and PrivateTest test
labels      fer: FER2013's 7 emotions. ferplus: one of FER+'s 8 emotions, according to --label-rule
label rule  majority: the emotion with the most votes, ignoring `unknown` and `NF` (not a face); ties go to the first in
            FER+'s column order; faces without a vote are dropped. ferplus: the rule of FER+'s authors: columns with a
            single vote are set to 0, then the winner must have more than half of the remaining votes, including
            those for `unknown` and `NF`; all other faces are dropped, as are those won by `unknown` or `NF`
votes       stored in class order if fer2013new.csv is present (with `fer`, votes for contempt are only in KEY.json)
images      the CSV file's pixels as gray JPEGs of quality 100
leaks       training faces with an exact copy in validation or test are dropped and listed in leaks.csv
"""
EPILOG = """\
examples:
  python -m shards.build fer2013 --root FER2013 --out data/ferplus --labels ferplus
  python -m shards.build fer2013 --root FER2013 --out data/ferplus-rule --label-rule ferplus
  python -m shards.build fer2013 --csv FER2013/fer2013.csv.gz --out data/fer2013 --labels fer
"""

FERPLUS = VOTE_COLUMNS[:8]
LabelRule = Literal["majority", "ferplus"]
_QUALITY = 100  # raw pixels: quality 100 keeps them within a level or two, for 700 bytes per face more than 95
_FER_NAMES = {"anger": "angry", "happiness": "happy", "sadness": "sad"}
FER_COLUMNS = tuple(
    next(column for column, name in enumerate(FERPLUS) if _FER_NAMES.get(name, name) == emotion) for emotion in EMOTIONS
)
"""Index of the FER+ vote column of each FER2013 emotion."""


@dataclass(frozen=True)
class Fer2013Options:
    """Options that determine the content of a FER2013 dataset."""

    csv: Path
    ferplus: Path | None
    """The CSV file with FER+'s votes; None if unavailable."""
    labels: Literal["fer", "ferplus"]
    label_rule: LabelRule = "majority"
    """How FER+'s votes become a label; see `label_faces`."""
    validation_fraction: float = 0.1
    seed: int = 0
    keep_leaks: bool = False


@dataclass(frozen=True)
class Fer2013:
    """A `Source` whose sample numbers are the rows of FER2013's CSV file, starting at 0."""

    faces: Faces
    all_votes: NDArray[np.int64] | None
    """[N, 10], FER+ votes per class; None if no FER+ file is given."""
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """[N], label of each row; meaningless for rows that are dropped."""
    columns: tuple[int, ...]
    """Index of the vote column of each class."""
    splits: dict[int, str]
    """Maps each row that is stored to its split."""
    provenance: Provenance

    def items(self) -> Sequence[SourceItem]:
        return [SourceItem(split, f"fer-{number:05d}", number) for number, split in self.splits.items()]

    @property
    def image_bytes(self) -> int:
        return int(self.faces.pixels[0].size) * len(self.splits)

    def describe_item(self, number: int) -> str:
        return self.faces.describe_row(number)

    def label(self, number: int) -> int:
        return int(self.labels[number])

    def fingerprint(self, number: int) -> bytes:
        votes = None if self.all_votes is None else self.all_votes[number].tolist()
        row = [self.faces.usages[number], int(self.faces.emotions[number]), int(self.labels[number]), votes]
        return json.dumps(row).encode() + bytes(self.faces.pixels[number].tobytes())

    def load(self, number: int) -> Sample:
        details: dict[str, object] = {
            "usage": self.faces.usages[number],
            "fer_emotion": EMOTIONS[self.faces.emotions[number]],
        }
        votes = None
        if self.all_votes is not None:
            counts = self.all_votes[number].tolist()
            votes = [counts[column] for column in self.columns]
            details["all_votes"] = dict(zip(VOTE_COLUMNS, counts, strict=True))
        return Sample(
            image=encode(self.faces.pixels[number], _QUALITY),
            label=int(self.labels[number]),
            votes=votes,
            distribution=None,
            source=self.describe_item(number),
            details=details,
        )


def read_fer2013(options: Fer2013Options) -> Fer2013:
    """Read FER2013 and, if available, FER+; determine labels and splits, and drop samples that leak between splits.

    Raises `UserError` if a CSV file is missing or malformed.
    """
    faces = read_faces(options.csv)
    if not len(faces.emotions):
        raise UserError(f"{options.csv}: contains no faces; re-download the file")
    votes = None if options.ferplus is None else read_votes(options.ferplus, faces)
    splits = read_splits(faces)
    stats: dict[str, object] = {}
    labels, classes, columns = faces.emotions, tuple(EMOTIONS), FER_COLUMNS
    if options.labels == "ferplus":
        if votes is None:
            raise UserError(f"--labels ferplus needs {VOTES_NAME} next to {options.csv}, or --ferplus FILE")
        classes, columns = FERPLUS, tuple(range(8))
        labels, is_labeled = label_faces(votes, options.label_rule)
        splits = {number: split for number, split in splits.items() if is_labeled[number]}
        reason = "votes" if options.label_rule == "majority" else "majority"
        stats = {
            f"dropped_without_{reason}": len(labels) - len(splits),
            "tied_votes": count_ties(votes[list(splits), :8]),
            "labeled": dict(Counter(splits.values())),
        }
    fractions = {} if "validation" in splits.values() else {"validation": options.validation_fraction}
    assignment = assign_splits(
        splits,
        [digest(pixels.tobytes()) for pixels in faces.pixels],
        labels.tolist(),
        fractions,
        options.seed,
        options.keep_leaks,
    )
    leaks = assignment.table(faces.describe_row, labels.tolist(), classes)
    provenance = Provenance(
        source="fer2013",
        options={
            "csv": escape_name(options.csv.name),
            "ferplus": None if options.ferplus is None else escape_name(options.ferplus.name),
            "labels": options.labels,
            "label_rule": options.label_rule if options.labels == "ferplus" else None,
            "validation_fraction": fractions.get("validation"),
            "keep_leaks": options.keep_leaks,
        },
        stats={"rows": len(labels), **stats, **assignment.stats()},
        tables={"leaks.csv": leaks} if leaks.lines else {},
    )
    return Fer2013(faces, votes, classes, labels, columns, dict(assignment.splits), provenance)


def read_splits(faces: Faces) -> dict[int, str]:
    """Map each row to its split according to the CSV file's Usage column."""
    with_private = "PrivateTest" in faces.usages
    names = {"Training": "train", "PublicTest": "validation" if with_private else "test", "PrivateTest": "test"}
    return {number: names[usage] for number, usage in enumerate(faces.usages)}


def label_faces(votes: NDArray[np.int64], rule: LabelRule) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the FER+ label of each face [N], and whether it has one [N], from `votes` [N, 10].

    `majority`: the emotion with the most votes. `ferplus`: the majority rule of Barsoum et al., ICMI 2016, which counts
    single votes as outliers and requires more than half of the remaining votes, including those for `unknown` and `NF`.
    """
    if rule == "majority":
        return votes[:, :8].argmax(axis=1), votes[:, :8].max(axis=1) > 0
    counts = np.where(votes == 1, 0, votes)
    labels = counts.argmax(axis=1)
    return labels, (2 * counts.max(axis=1) > counts.sum(axis=1)) & (labels < len(FERPLUS))


def count_ties(votes: NDArray[np.int64]) -> int:
    """Return the number of rows in `votes` [N, C] in which several classes have the most votes."""
    return int(((votes == votes.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder with fer2013.csv and fer2013new.csv")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="FER2013's CSV file, if --root contains several or none"
    )
    parser.add_argument(
        "--ferplus",
        type=Path,
        metavar="FILE",
        help=f"CSV file with FER+'s votes (default: {VOTES_NAME} next to FER2013's CSV file)",
    )
    parser.add_argument(
        "--labels", choices=("fer", "ferplus"), default="ferplus", help="labels to store (default: %(default)s)"
    )
    parser.add_argument(
        "--label-rule",
        choices=("majority", "ferplus"),
        help="how votes become a label with --labels ferplus: most votes, or the rule of FER+'s authors, which drops "
        "ambiguous faces (default: majority)",
    )
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="fraction of each class to hold out from Training for validation; duplicates stay together "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--keep-leaks",
        action="store_true",
        help="keep leaks, as in published results, but still list them in leaks.csv",
    )


def open_source(args: argparse.Namespace) -> Fer2013:
    if args.root is None and args.csv is None:
        raise UserError("pass --root DIR, the folder with fer2013.csv, or --csv FILE")
    if not 0 < args.validation_fraction < 1:
        raise UserError(f"--validation-fraction {args.validation_fraction:g}: must be between 0 and 1")
    if args.labels == "fer" and args.label_rule is not None:
        raise UserError("--label-rule has no effect with --labels fer, which uses no votes; remove one option")
    csv = args.csv if args.csv is not None else find_csv(args.root)
    beside = (args.root or csv.parent) / VOTES_NAME
    ferplus = args.ferplus if args.ferplus is not None else (beside if beside.is_file() else None)
    return read_fer2013(
        Fer2013Options(
            csv,
            ferplus,
            args.labels,
            args.label_rule or "majority",
            args.validation_fraction,
            args.seed,
            args.keep_leaks,
        )
    )
