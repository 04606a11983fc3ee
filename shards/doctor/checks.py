"""Checks of what the data is: counts, splits, sizes, colours, files. Copies are judged in `copy_checks`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.doctor.dataset_view import DatasetView
from shards.doctor.duplicates import BLANK_CONTRAST, DuplicateIndex
from shards.doctor.finding import Finding, SampleGroup, Severity, ok, plural
from shards.doctor.image_stats import FileAnomaly, ImageStats

MIN_SIDE = 32
"""Shorter side in pixels below which an expression can hardly be read; FER2013 has 48."""
IMBALANCE_RATIO = 10.0
"""Times that the most frequent class may outnumber the rarest before a sampler is worth a thought."""
MIN_CLASS_SAMPLES = 20
"""Faces of a class in a judging split below which its accuracy is mostly chance."""


@dataclass(frozen=True, eq=False)
class CheckContext:
    """All that the checks judge by."""

    material: DatasetView
    looks: ImageStats
    copies: DuplicateIndex

    def counts(self) -> NDArray[np.int64]:
        """[splits, C]: readable faces a split and class."""
        table = np.zeros((len(self.material.splits), len(self.material.classes)), np.int64)
        known = self.looks.readable
        np.add.at(table, (self.material.split_of[known], self.looks.label[known]), 1)
        return table

    def per_split(self, faces: NDArray[np.int64]) -> str:
        """`3 train, 1 test`."""
        counts = np.bincount(self.material.split_of[faces], minlength=len(self.material.splits))
        return ", ".join(
            f"{count:,} {split}" for split, count in zip(self.material.splits, counts, strict=True) if count
        )


def check_splits(case: CheckContext) -> Iterator[Finding]:
    splits = case.material.splits
    if "train" not in splits:
        mend = "add one, or look for faces under another folder's name"
        yield Finding("splits", Severity.ERROR, "no training faces", mend=mend)
    if "test" not in splits:
        yield Finding(
            "splits", Severity.WARNING, "no test split", mend="nothing can be reported; add one or carve one (--help)"
        )
    if "validation" not in splits:
        raw = case.material.kind == "raw tree"
        yield Finding(
            "splits",
            Severity.NOTE if raw else Severity.WARNING,
            "no validation split",
            mend="the builder carves one out of train"
            if raw
            else "models would be selected on test; build again with --validation-fraction 0.1",
        )
    if len(splits) == 3:
        counts = case.counts().sum(axis=1)
        told = ", ".join(f"{split} {count:,}" for split, count in zip(splits, counts, strict=True))
        yield ok("splits", told)


def check_balance(case: CheckContext) -> Iterator[Finding]:
    """Classes that are missing, rare or outnumbered."""
    counts, classes, splits = case.counts(), case.material.classes, case.material.splits
    sound = True
    for row, split in zip(counts, splits, strict=True):
        missing = [name for name, count in zip(classes, row, strict=True) if not count]
        if missing:
            sound = False
            bad = Severity.ERROR if split == "train" else Severity.WARNING
            mend = "add such faces, or leave the class out" if split == "train" else "its accuracy cannot be measured"
            yield Finding("classes", bad, f"no face of {', '.join(missing)}", split, mend)
        few = [f"{name} {count}" for name, count in zip(classes, row, strict=True) if 0 < count < MIN_CLASS_SAMPLES]
        if few and split != "train":
            sound = False
            yield Finding(
                "classes", Severity.NOTE, f"few faces: {', '.join(few)}", split, "read per-class accuracy with care"
            )
    if sound:
        yield ok("classes", f"{plural(len(classes), 'class')}, each in every split")
    if "train" not in splits:
        return
    train = counts[splits.index("train")]
    present = np.flatnonzero(train)
    if len(present):
        most, least = int(train.argmax()), int(present[train[present].argmin()])
        ratio = train[most] / train[least]
        what = f"{classes[most]} outnumbers {classes[least]} {ratio:.1f} to 1 ({train[most]:,} to {train[least]:,})"
        if ratio >= IMBALANCE_RATIO:
            yield Finding(
                "balance", Severity.NOTE, what, "train", "report mean class accuracy too; consider another sampler"
            )
        else:
            yield ok("balance", what, "train")


def check_sizes(case: CheckContext) -> Iterator[Finding]:
    known = case.looks.readable
    if not known.any():
        return
    sizes = case.looks.size[known]
    low, middle, high = (np.median(sizes, axis=0) if f is None else f(sizes, axis=0) for f in (np.min, None, np.max))
    if (low == high).all():
        yield ok("sizes", f"all {low[0]} x {low[1]} pixels")
    else:
        told = ", ".join(
            f"{name} {w:.0f} x {h:.0f}"
            for name, (w, h) in zip(("least", "median", "most"), (low, middle, high), strict=True)
        )
        spread = (high.max() / max(low.min(), 1)) >= 4 or len(np.unique(np.round(sizes[:, 0] / sizes[:, 1], 1))) > 1
        mend = "are all of them aligned faces? whole photos among crops train badly" if spread else ""
        yield Finding("sizes", Severity.NOTE, f"mixed: {told} pixels", mend=mend)
    tiny = np.flatnonzero(known & (case.looks.size.min(axis=1) < MIN_SIDE))
    if len(tiny):
        yield Finding(
            "tiny",
            Severity.WARNING,
            f"{plural(len(tiny), 'face')} with a side below {MIN_SIDE} pixels",
            case.per_split(tiny),
            "find larger originals, or leave them out",
            singles(case, tiny),
        )
    else:
        yield ok("tiny", f"no side below {MIN_SIDE} pixels")


def singles(case: CheckContext, faces: NDArray[np.int64]) -> tuple[SampleGroup, ...]:
    return tuple(
        SampleGroup((face,), f"{case.looks.size[face, 0]} x {case.looks.size[face, 1]}") for face in faces.tolist()
    )


def check_color(case: CheckContext) -> Iterator[Finding]:
    """Grey and colour, and whether training and judging differ in it."""
    shares = {}
    for number, split in enumerate(case.material.splits):
        mine = case.looks.readable & (case.material.split_of == number)
        if mine.any():
            shares[split] = 1 - float(case.looks.coloured[mine].mean())
    if not shares:
        return
    told = ", ".join(f"{split} {share:.1%}" for split, share in shares.items())
    if max(shares.values()) - min(shares.values()) > 0.2:
        mend = "the splits differ in kind: train with grey pictures throughout, or find the colour originals"
        yield Finding("colour", Severity.WARNING, f"grey share: {told}", mend=mend)
    elif max(shares.values()) > 0 and min(shares.values()) < 1:
        yield Finding("colour", Severity.NOTE, f"grey and colour mixed; grey share: {told}")
    else:
        yield ok("colour", "all grey" if max(shares.values()) == 1 else "all in colour")


def check_files(case: CheckContext) -> Iterator[Finding]:
    """Faces that cannot be read, and files that are not what their names say."""
    raw = case.material.kind == "raw tree"
    unreadable = [oddity for oddity in case.looks.oddities if oddity.unreadable]
    suspicious = [oddity for oddity in case.looks.oddities if not oddity.unreadable]
    if unreadable:
        mend = "`python -m shards.verify` says which tar is damaged; build it again"
        if raw:
            mend = "get the files again, or let the builder leave them out with --max-bad"
        what = f"{plural(len(unreadable), 'face')} cannot be read"
        yield file_finding(case, "unreadable", Severity.ERROR, what, mend, unreadable)
    else:
        yield ok("unreadable", "every face decodes")
    if suspicious:
        mend = "the builder goes by content; look at them, then rename or replace them"
        what = f"{plural(len(suspicious), 'file')} odd in name or size"
        yield file_finding(case, "suspicious", Severity.WARNING, what, mend, suspicious)
    elif raw:
        yield ok("suspicious", "no file odd in name or size")


def file_finding(
    case: CheckContext, check: str, severity: Severity, what: str, mend: str, oddities: Sequence[FileAnomaly]
) -> Finding:
    where = case.per_split(np.array([oddity.face for oddity in oddities]))
    return Finding(
        check, severity, what, where, mend, tuple(SampleGroup((oddity.face,), oddity.reason) for oddity in oddities)
    )


def check_blank(case: CheckContext) -> Iterator[Finding]:
    blank = np.flatnonzero(case.looks.readable & (case.looks.contrast < BLANK_CONTRAST))
    if len(blank):
        yield Finding(
            "blank",
            Severity.WARNING,
            f"{plural(len(blank), 'face')} with nothing on (contrast below {BLANK_CONTRAST:g} of 255 levels)",
            case.per_split(blank),
            "leave them out: their labels are noise",
            tuple(SampleGroup((face,), f"contrast {case.looks.contrast[face]:.1f}") for face in blank.tolist()),
        )
    else:
        yield ok("blank", "no blank face")


def check_build_stats(case: CheckContext) -> Iterator[Finding]:
    """What the builder left out, which its folder no longer shows."""
    found: Mapping[str, object] = case.material.findings
    if case.material.kind == "raw tree":
        other = found.get("other_files")
        if isinstance(other, int) and other:
            yield Finding("other files", Severity.NOTE, f"{plural(other, 'file')} that no picture is expected in")
        return
    for key, what in (
        ("leaks_dropped", "leak dropped when it was built"),
        ("quarantined", "image left out because it could not be stored"),
        ("dropped_without_votes", "face left out because nobody voted for a class"),
    ):
        count = found.get(key)
        if isinstance(count, int) and count:
            noun, _, rest = what.partition(" ")
            file = {"leaks_dropped": "leaks.csv", "quarantined": "quarantine.csv"}.get(key, "")
            yield Finding(
                "builder", Severity.NOTE, f"{plural(count, noun)} {rest}", "", f"listed in {file}" if file else ""
            )
