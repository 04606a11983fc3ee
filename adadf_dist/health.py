"""What is wrong with a run, from its epochs' records: pure rules, each with what was seen and what to try.

The log says a finding when it comes up or changes (`news`); the report tells how long each held (`episodes`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config import Config

Record = Mapping[str, Any]
"""An epoch, as in metrics.jsonl. Of `attention` and `class_degrees`, which older runs lack, nothing is then said."""

CHANCE = 0.08
"""Share of the way from chance to 1: a mean class accuracy below it is none. Of 7 classes 1.5 times chance."""
ONE_CLASS = 0.95
"""Share of the predictions that one class takes in a collapse."""
ENOUGH_FACES = 10
"""A class with fewer validation faces may go unpredicted by bad luck."""
FLAT = 0.05
"""Attention weights whose standard deviation is a smaller share of their range [lambda_min, 1] tell no faces apart."""
AFTER = 3
"""Epochs beyond the epoch threshold before the class means are judged, and without a class before it is called dead."""
STILL = 0.01
"""Degrees by which the best class mean must have risen over as many epochs to be on its way."""
WAITING, WAITING_LONG = 0.1, 0.3
"""Shares of an epoch spent waiting for faces: worth a note, worth a warning."""
RISING, RISE = 3, 1.1
"""The auxiliary branch diverges: so many epochs in a row its cross entropy rose, to so many times its lowest."""
BEHIND = 0.1
"""An auxiliary branch whose accuracy is so far below the target branch's teaches little that is true."""
BEHIND_TARGET = "auxiliary branch behind"
BAD_SHARE = 0.1
"""Of `data.max_bad_faces`: replaced faces of an epoch that are worth a warning."""
FALLEN = 2.0
"""Standard errors of a difference by which validation accuracy lies below its best where training only learns by
heart."""
LATE = 3
"""Epochs that are taken together to judge that."""


class Severity(IntEnum):
    NOTE = 0
    WARNING = 1
    ERROR = 2

    @property
    def word(self) -> str:
        return self.name.lower()


class Finding(NamedTuple):
    name: str
    severity: Severity
    seen: str
    """What was seen, with figures."""
    mend: str
    """What to try: configuration keys and values."""
    subject: str = ""
    """What it is about, where there is a choice: some classes."""

    @property
    def identity(self) -> tuple[str, int, str]:
        """The same finding with other figures is no news."""
        return self.name, int(self.severity), self.subject

    def __str__(self) -> str:
        return f"{self.severity.word}: {self.name}: {self.seen}; {self.mend}"


class Episode(NamedTuple):
    """A finding over the epochs (from 1) in which it held, as it was last seen."""

    finding: Finding
    first: int
    last: int


def examine(
    records: Sequence[Record], config: Config, classes: Sequence[str] = (), auxiliary_accuracy: float | None = None
) -> list[Finding]:
    """Everything that is wrong at the newest of a run's epochs, the worst first.

    `classes`: their names, where they are known. `auxiliary_accuracy`: that of the auxiliary branch on validation,
    where somebody measured it, with the weights of the newest epoch.
    """
    if not records:
        return []
    names = list(classes) or [f"class {number}" for number in range(len(records[-1]["validation"]["class_accuracy"]))]
    found = [finding for rule in RULES for finding in rule(records, config, names)]
    if auxiliary_accuracy is not None:
        found += behind(records[-1]["validation"]["accuracy"], auxiliary_accuracy)
    if any(finding.name == "collapse" for finding in found):  # the cause; that classes are dead follows from it
        found = [finding for finding in found if finding.name != "dead class"]
    return sorted(found, key=lambda finding: -finding.severity)


def news(records: Sequence[Record], config: Config, classes: Sequence[str] = ()) -> list[Finding]:
    """Findings of the newest epoch that did not stand at the one before it."""
    known = {finding.identity for finding in examine(records[:-1], config, classes)}
    return [finding for finding in examine(records, config, classes) if finding.identity not in known]


def episodes(records: Sequence[Record], config: Config, classes: Sequence[str] = ()) -> list[Episode]:
    """Every finding of a run and when it held: those that hold to the end first, then by severity."""
    found: list[Episode] = []
    for end in range(1, len(records) + 1):
        epoch = int(records[end - 1]["epoch"])
        standing = {episode.finding.identity: place for place, episode in enumerate(found) if episode.last == epoch - 1}
        for finding in examine(records[:end], config, classes):
            place = standing.get(finding.identity)
            if place is None:
                found.append(Episode(finding, epoch, epoch))
            else:
                found[place] = Episode(finding, found[place].first, epoch)
    newest = records[-1]["epoch"] if records else 0
    return sorted(found, key=lambda episode: (episode.last != newest, -episode.finding.severity, episode.first))


def attention_spread(attention: NDArray[np.float32]) -> dict[str, float] | None:
    """Mean and standard deviation of w' over the faces [S] that an epoch saw (NaN: not seen), for its record."""
    seen = attention[~np.isnan(attention)].astype(np.float64)
    return {"mean": float(seen.mean()), "deviation": float(seen.std())} if len(seen) else None


def collapse(records: Sequence[Record], config: Config, classes: Sequence[str]) -> Iterator[Finding]:
    """A run can settle at chance for good, attention near zero; nothing else would tell its user why."""
    validation = records[-1]["validation"]
    confusion = np.array(validation["confusion"])
    if records[-1]["epoch"] <= config.loss.epoch_threshold + 1:  # from scratch, the first epoch in full may be slow
        return
    predicted = confusion.sum(axis=0)
    share, most = predicted.max() / predicted.sum(), int(predicted.argmax())
    alone = share >= ONE_CLASS and confusion[most].sum() / confusion.sum() < ONE_CLASS
    chance = 1 / len(classes)
    if not alone and validation["mean_class_accuracy"] >= chance + CHANCE * (1 - chance):
        return
    seen = f"mean class accuracy {validation['mean_class_accuracy']:.1%} where chance is {chance:.1%}"
    if alone:
        seen += f", {share:.0%} of the validation faces are taken for {classes[most]}"
    yield Finding(
        "collapse",
        Severity.ERROR,
        seen,
        "start from model.pretrained weights or, from scratch, with optimizer.attention_lr_factor = 0.02 and "
        "optimizer.warmup_steps = 500",
    )


def dead_class(records: Sequence[Record], config: Config, classes: Sequence[str]) -> Iterator[Finding]:
    """A class that is never predicted, though validation has it."""
    late = [record for record in records if record["epoch"] > config.loss.epoch_threshold]
    if len(late) < AFTER:
        return
    confusions = np.array([record["validation"]["confusion"] for record in late[-AFTER:]])
    faces, predicted = confusions[-1].sum(axis=1), confusions.sum(axis=(0, 1))
    dead = [number for number in range(len(classes)) if predicted[number] == 0 and faces[number] >= ENOUGH_FACES]
    if dead:
        told = ", ".join(f"{classes[number]} ({faces[number]} faces)" for number in dead)
        better = {"all": "sqrt", "sqrt": "oversample"}.get(config.data.sampler)
        mend = f"try data.sampler = {better}" if better else "look at its faces with python -m shards.doctor"
        subject = ", ".join(classes[number] for number in dead)
        yield Finding(
            "dead class", Severity.WARNING, f"never predicted on validation in {AFTER} epochs: {told}", mend, subject
        )


def flat_attention(records: Sequence[Record], config: Config, classes: Sequence[str]) -> Iterator[Finding]:
    """w' all alike: eq 12 then fuses every face in the same proportion."""
    spread = records[-1].get("attention")
    if spread is None or config.loss.supervision != "fused" or records[-1]["epoch"] <= config.loss.epoch_threshold:
        return
    if spread["deviation"] < FLAT * (1 - config.loss.lambda_min):
        yield Finding(
            "attention saturated",
            Severity.WARNING,
            f"attention weights w' are {spread['mean']:.3f} with a standard deviation of {spread['deviation']:.3f} "
            f"over the faces, in a range of {config.loss.lambda_min:g} to 1",
            f"lower optimizer.attention_lr_factor (now {config.optimizer.attention_lr_factor:g}) to a tenth, or raise "
            f"loss.rank_margin (now {config.loss.rank_margin:g})",
        )


def threshold(records: Sequence[Record], config: Config, classes: Sequence[str]) -> Iterator[Finding]:
    """A threshold that never or always lets class means through does nothing."""
    late = [record for record in records if record["epoch"] > config.loss.epoch_threshold]
    if len(late) < AFTER or config.loss.supervision not in ("fused", "class"):
        return
    met = [record["classes_at_threshold"] for record in late]
    t = config.class_distributions.threshold
    degrees, earlier = (records[place].get("class_degrees") for place in (-1, -AFTER))
    rising = degrees and earlier and max(degrees) > max(earlier) + STILL
    if max(met) == 0 and not rising:  # a mean that still rises may get there
        best = "" if degrees is None else f"; the nearest, {classes[int(np.argmax(degrees))]}, is at {max(degrees):.2f}"
        lower = f" = {math.floor(10 * max(degrees)) / 10:.1f}" if degrees and max(degrees) >= 0.2 else ""
        yield Finding(
            "threshold never met",
            Severity.WARNING,
            f"no class mean reached {t:g} in {len(late)} epochs after the epoch threshold{best}",
            f"lower class_distributions.threshold{lower}, or train longer",
        )
    elif min(met) == len(classes):
        yield Finding(
            "threshold always met",
            Severity.NOTE,
            f"all {len(classes)} class means were above {t:g} in each of {len(late)} epochs after the epoch threshold, "
            "so it did nothing there",
            "all is well if that is wanted; else raise class_distributions.threshold",
        )


def loader_waiting(records: Sequence[Record], config: Config, classes: Sequence[str]) -> Iterator[Finding]:
    """Training that waits for faces. The first epoch of a run also starts its workers, and does not count."""
    waiting = records[-1].get("waiting")
    if waiting is None or len(records) < 2 or waiting < WAITING:
        return
    workers = f"data.workers = {max(2, 2 * config.data.workers)} (now {config.data.workers})"
    yield Finding(
        "waiting for faces",
        Severity.WARNING if waiting >= WAITING_LONG else Severity.NOTE,
        f"{waiting:.0%} of the epoch went by waiting for the loader",
        f"try {workers} or data.loader = dali" if config.data.loader != "dali" else f"try {workers}",
    )


def diverging(records: Sequence[Record], config: Config, classes: Sequence[str]) -> Iterator[Finding]:
    """Cross entropy of the auxiliary branch, which gives the label distributions, rising over epochs."""
    losses = [record["cross_entropy"] for record in records]
    lowest, tail = min(losses), losses[-RISING - 1 :]
    rising = len(tail) > RISING and all(a < b for a, b in pairwise(tail))
    if config.loss.supervision == "one_hot" or not rising or tail[-1] < RISE * lowest:
        return
    yield Finding(
        "auxiliary branch diverging",
        Severity.WARNING,
        f"its cross entropy rose {RISING} epochs in a row, to {tail[-1]:.3f} from {lowest:.3f} at its lowest",
        f"lower optimizer.lr (now {config.optimizer.lr:g}), or set loss.detach = true",
    )


def behind(target: float, auxiliary: float) -> Iterator[Finding]:
    if auxiliary < target - BEHIND:
        yield Finding(
            BEHIND_TARGET,
            Severity.WARNING,
            f"it is right for {auxiliary:.1%} of the validation faces, the target branch for {target:.1%}",
            "raise loss.epoch_threshold, or set loss.detach = true",
        )


def replaced(records: Sequence[Record], config: Config, classes: Sequence[str]) -> Iterator[Finding]:
    """Faces that no longer decode."""
    count = records[-1].get("replaced_faces", 0)
    if count:
        yield Finding(
            "replaced faces",
            Severity.WARNING if count >= BAD_SHARE * config.data.max_bad_faces else Severity.NOTE,
            f"{count} training faces of the epoch did not decode and gave way to others of their class",
            "find them with python -m shards.verify on data.shards, and build it again",
        )


def overfitting(records: Sequence[Record], config: Config, classes: Sequence[str]) -> Iterator[Finding]:
    """Validation accuracy beyond noise below its best, while the target branch's training loss went on falling.

    Both are means over `LATE` epochs: the best single epoch of many is best by luck, and the newest may be unlucky.
    """
    if len(records) < 2 * LATE:
        return
    name = "cross_entropy" if config.loss.supervision == "one_hot" else "kl_divergence"
    best = max(records, key=lambda record: float(record["validation"]["accuracy"]))
    accuracies = np.array([record["validation"]["accuracy"] for record in records])
    means = np.convolve(accuracies, np.ones(LATE) / LATE, mode="valid")
    newest, top = float(means[-1]), float(means.max())
    error = math.sqrt(2 * top * (1 - top) / records[-1]["validation"]["samples"])
    if top - newest <= FALLEN * error or records[-1][name] >= best[name]:
        return
    augment = f"augment.magnitude = {config.augment.magnitude + 2:g}"
    if config.augment.policy == "none":
        augment = "augment.policy = published"
    decay = 2 * config.optimizer.weight_decay or 1e-4
    yield Finding(
        "overfitting",
        Severity.NOTE,
        f"validation accuracy {newest:.1%} over the last {LATE} epochs, {100 * (top - newest):.1f} points below its "
        f"best {LATE}, while the training loss fell from {best[name]:.3f} to {records[-1][name]:.3f}",
        f"epoch {best['epoch']} stays the selected one; try {augment} or optimizer.weight_decay = {decay:g}",
    )


RULES: tuple[Callable[[Sequence[Record], Config, Sequence[str]], Iterator[Finding]], ...] = (
    collapse,
    dead_class,
    flat_attention,
    threshold,
    loader_waiting,
    diverging,
    replaced,
    overfitting,
)
