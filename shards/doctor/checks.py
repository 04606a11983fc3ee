"""Checks class counts, splits, image sizes, colors and files. `duplicate_checks` looks for copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adadf_dist.console.formats import plural
from adadf_dist.findings import Finding, Severity, ok
from shards.doctor.dataset_view import DatasetView
from shards.doctor.duplicates import BLANK_CONTRAST, DuplicateIndex
from shards.doctor.finding import SampleFinding, SampleGroup
from shards.doctor.image_stats import FileAnomaly, ImageStats

MIN_SIDE = 32
"""Shorter side in pixels below which expressions are barely recognizable; FER2013's images have 48."""
IMBALANCE_RATIO = 10.0
"""Ratio of the largest to the smallest class count from which a finding suggests another sampler."""
MIN_CLASS_SAMPLES = 20
"""Minimum number of samples per class in an evaluation split for a reliable class accuracy."""


@dataclass(frozen=True, eq=False)
class CheckContext:
    """The data that every check receives."""

    view: DatasetView
    image_stats: ImageStats
    copies: DuplicateIndex

    def counts(self) -> NDArray[np.int64]:
        """Return the number of readable samples per split and class, [number of splits, C]."""
        table = np.zeros((len(self.view.splits), len(self.view.classes)), np.int64)
        known = self.image_stats.readable
        np.add.at(table, (self.view.split_of[known], self.image_stats.label[known]), 1)
        return table

    def per_split(self, faces: NDArray[np.int64]) -> str:
        """Count the given samples per split and return a text such as `3 train, 1 test`."""
        counts = np.bincount(self.view.split_of[faces], minlength=len(self.view.splits))
        return ", ".join(f"{count:,} {split}" for split, count in zip(self.view.splits, counts, strict=True) if count)


def check_splits(context: CheckContext) -> Iterator[Finding]:
    splits = context.view.splits
    if "train" not in splits:
        hint = "add a train split, or check the folder names"
        yield Finding("splits", Severity.ERROR, "no training faces", hint)
    if "test" not in splits:
        yield Finding(
            "splits",
            Severity.WARNING,
            "no test split",
            "add a test split, or hold one out when building the dataset, to report accuracy",
        )
    if "validation" not in splits:
        raw = context.view.kind == "original dataset"
        yield Finding(
            "splits",
            Severity.INFO if raw else Severity.WARNING,
            "no validation split",
            "the builder holds one out from train"
            if raw
            else "models would be selected on test; rebuild with --validation-fraction 0.1",
        )
    if len(splits) == 3:
        counts = context.counts().sum(axis=1)
        text = ", ".join(f"{split} {count:,}" for split, count in zip(splits, counts, strict=True))
        yield ok("splits", text)


def check_balance(context: CheckContext) -> Iterator[Finding]:
    """Report missing, rare and imbalanced classes."""
    counts, classes, splits = context.counts(), context.view.classes, context.view.splits
    sound = True
    for row, split in zip(counts, splits, strict=True):
        missing = [name for name, count in zip(classes, row, strict=True) if not count]
        if missing:
            sound = False
            bad = Severity.ERROR if split == "train" else Severity.WARNING
            hint = "add samples, or leave the class out" if split == "train" else "class accuracy cannot be measured"
            yield Finding("classes", bad, f"no samples of {', '.join(missing)}", hint, split)
        few = [f"{name} {count}" for name, count in zip(classes, row, strict=True) if 0 < count < MIN_CLASS_SAMPLES]
        if few and split != "train":
            sound = False
            yield Finding(
                "classes", Severity.INFO, f"few samples: {', '.join(few)}", "per-class accuracy is unreliable", split
            )
    if sound:
        yield ok("classes", f"{plural(len(classes), 'class')}, each present in every split")
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
                "balance", Severity.INFO, what, "report mean class accuracy too; consider another sampler", "train"
            )
        else:
            yield ok("balance", what, "train")


def check_sizes(context: CheckContext) -> Iterator[Finding]:
    known = context.image_stats.readable
    if not known.any():
        return
    sizes = context.image_stats.size[known]
    low, middle, high = (np.median(sizes, axis=0) if f is None else f(sizes, axis=0) for f in (np.min, None, np.max))
    if (low == high).all():
        yield ok("sizes", f"all {low[0]} x {low[1]} pixels")
    else:
        text = ", ".join(
            f"{name} {w:.0f} x {h:.0f}"
            for name, (w, h) in zip(("minimum", "median", "maximum"), (low, middle, high), strict=True)
        )
        spread = (high.max() / max(low.min(), 1)) >= 4 or len(np.unique(np.round(sizes[:, 0] / sizes[:, 1], 1))) > 1
        hint = "are all images aligned faces? uncropped photos mixed with crops hurt training" if spread else ""
        yield Finding("sizes", Severity.INFO, f"mixed: {text} pixels", hint)
    tiny = np.flatnonzero(known & (context.image_stats.size.min(axis=1) < MIN_SIDE))
    if len(tiny):
        yield SampleFinding(
            "tiny",
            Severity.WARNING,
            f"{plural(len(tiny), 'face')} with a side below {MIN_SIDE} pixels",
            "find larger originals or leave them out",
            context.per_split(tiny),
            singles(context, tiny),
        )
    else:
        yield ok("tiny", f"no image has a side below {MIN_SIDE} pixels")


def singles(context: CheckContext, faces: NDArray[np.int64]) -> tuple[SampleGroup, ...]:
    return tuple(
        SampleGroup((face,), f"{context.image_stats.size[face, 0]} x {context.image_stats.size[face, 1]}")
        for face in faces.tolist()
    )


def check_color(context: CheckContext) -> Iterator[Finding]:
    """Report the fraction of gray images per split, and warn if the splits differ."""
    shares = {}
    for number, split in enumerate(context.view.splits):
        mine = context.image_stats.readable & (context.view.split_of == number)
        if mine.any():
            shares[split] = 1 - float(context.image_stats.colored[mine].mean())
    if not shares:
        return
    text = ", ".join(f"{split} {share:.1%}" for split, share in shares.items())
    if max(shares.values()) - min(shares.values()) > 0.2:
        hint = "the splits differ: train on gray images only, or find the color originals"
        yield Finding("color", Severity.WARNING, f"gray fraction: {text}", hint)
    elif max(shares.values()) > 0 and min(shares.values()) < 1:
        yield Finding("color", Severity.INFO, f"mix of gray and color images; gray fraction: {text}")
    else:
        yield ok("color", "all gray" if max(shares.values()) == 1 else "all in color")


def check_files(context: CheckContext) -> Iterator[Finding]:
    """Report unreadable images, and files whose size is unusual or whose content does not match their extension."""
    raw = context.view.kind == "original dataset"
    unreadable = [oddity for oddity in context.image_stats.anomalies if oddity.unreadable]
    suspicious = [oddity for oddity in context.image_stats.anomalies if not oddity.unreadable]
    if unreadable:
        hint = "run `python -m shards.verify` to find the corrupt tar, then rebuild it"
        if raw:
            hint = "re-download the files, or skip them in the build with --max-bad-images"
        what = f"{plural(len(unreadable), 'face')} cannot be read"
        yield file_finding(context, "unreadable", Severity.ERROR, what, hint, unreadable)
    else:
        yield ok("unreadable", "all images decode")
    if suspicious:
        hint = "formats are detected from content, not file names; inspect the files, then rename or replace them"
        what = f"{plural(len(suspicious), 'file')} with an unexpected name or size"
        yield file_finding(context, "suspicious", Severity.WARNING, what, hint, suspicious)
    elif raw:
        yield ok("suspicious", "no file with an unexpected name or size")


def file_finding(
    context: CheckContext, check: str, severity: Severity, what: str, hint: str, anomalies: Sequence[FileAnomaly]
) -> Finding:
    where = context.per_split(np.array([oddity.face for oddity in anomalies]))
    return SampleFinding(
        check, severity, what, hint, where, tuple(SampleGroup((oddity.face,), oddity.reason) for oddity in anomalies)
    )


def check_blank(context: CheckContext) -> Iterator[Finding]:
    blank = np.flatnonzero(context.image_stats.readable & (context.image_stats.contrast < BLANK_CONTRAST))
    if len(blank):
        yield SampleFinding(
            "blank",
            Severity.WARNING,
            f"{plural(len(blank), 'blank image')} (contrast below {BLANK_CONTRAST:g} of 255 levels)",
            "leave them out: their labels are meaningless",
            context.per_split(blank),
            tuple(
                SampleGroup((face,), f"contrast {context.image_stats.contrast[face]:.1f}") for face in blank.tolist()
            ),
        )
    else:
        yield ok("blank", "no blank images")


def check_build_stats(context: CheckContext) -> Iterator[Finding]:
    """Report samples that the builder dropped, and files in an original dataset folder that are not images."""
    found: Mapping[str, object] = context.view.stats
    if context.view.kind == "original dataset":
        other = found.get("other_files")
        if isinstance(other, int) and other:
            yield Finding("other files", Severity.INFO, f"{plural(other, 'file')} without an image extension")
        return
    for key, noun, rest, file in (
        ("leaks_dropped", "leak", "dropped by the builder", "leaks.csv"),
        ("skipped_images", "image", "skipped as invalid", "skipped_images.csv"),
        ("dropped_without_votes", "sample", "dropped without annotator votes", ""),
        ("dropped_without_majority", "sample", "dropped without a majority of votes (--label-rule ferplus)", ""),
    ):
        count = found.get(key)
        if isinstance(count, int) and count:
            hint = f"listed in {file}" if file else ""
            yield Finding("builder", Severity.INFO, f"{plural(count, noun)} {rest}", hint)
