"""Rules about classes: collapsed predictions, classes that are never predicted, the class distribution threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config.learning_rate import warmup_steps
from adadf_dist.config.schema import Config
from adadf_dist.diagnostics.finding import MIN_SAMPLES, Record, RunRecords, either
from adadf_dist.findings import Finding, Severity

MIN_ABOVE_CHANCE = 0.08
"""Minimum mean class accuracy above chance, as a fraction of the range from chance to 1 (1.5x chance for 7 classes)."""
COLLAPSE_FRACTION = 0.95
"""Minimum fraction of predictions that must be the same class to count as a collapse."""
GRACE_EPOCHS = 3
"""Number of epochs to wait after `loss.epoch_threshold` before checking class means and unpredicted classes."""
NOISE = 2.0
"""Number of standard errors by which mean class accuracy must increase to count as rising."""
HARDLY = 0.1
"""Fraction of class means below which the class distribution threshold counts as almost never reached."""
HEAD_FACTOR = 0.02
"""Suggested `optimizer.attention_lr_mult` for training from scratch."""
WARMUP = 0.1
"""Suggested warm-up after a collapse, as a fraction of the run."""


def describe_collapse(
    predicted: NDArray[np.int64], labeled: NDArray[np.int64], mean_class_accuracy: float, classes: Sequence[str]
) -> str:
    """Describe how predictions collapsed to chance level or to one class; return "" if they did not.

    Args:
        predicted: [C], number of samples predicted as each class.
        labeled: [C], number of samples labeled as each class.
        mean_class_accuracy: Mean accuracy over the classes with enough samples.
        classes: Names of the C classes.
    """
    most, chance = int(predicted.argmax()), 1 / len(classes)
    fraction = predicted[most] / predicted.sum()
    one_class = fraction >= COLLAPSE_FRACTION and labeled[most] / labeled.sum() < COLLAPSE_FRACTION
    if not one_class and mean_class_accuracy >= chance + MIN_ABOVE_CHANCE * (1 - chance):
        return ""
    text = f"mean class accuracy {mean_class_accuracy:.1%} where chance is {chance:.1%}"
    return f"{text}, {fraction:.0%} of the samples are predicted as {classes[most]}" if one_class else text


def why_no_collapse_rule(run: RunRecords) -> str:
    """Return why collapse cannot be checked, or "" if it can."""
    first = run.config.loss.epoch_threshold + 2  # from scratch, the first epoch with full weight may be slow
    if run.epoch < first:
        return f"checked from epoch {first} on"
    if run.enough_samples.sum() < 2:
        return f"fewer than two classes have {MIN_SAMPLES} validation samples"
    return run.too_early


def find_collapse(run: RunRecords) -> Iterator[Finding]:
    """Yield a finding if predictions are at chance level or all of one class, a state in which a run can get stuck."""
    confusion = run.confusion
    accuracy, _ = class_accuracy(run.newest, run.enough_samples)
    text = describe_collapse(confusion.sum(axis=0), confusion.sum(axis=1), accuracy, run.classes)
    if text and not is_rising(run):
        yield Finding("collapse", Severity.ERROR, f"{text}, on validation", fix_collapse(run))


def fix_collapse(run: RunRecords) -> str:
    """Return fixes for a collapse, except those that the configuration already uses."""
    config, optimizer = run.config, run.config.optimizer
    heads = not config.loss.is_baseline and optimizer.attention_lr_mult > HEAD_FACTOR
    steps = config.epochs * run.steps_per_epoch
    longer = steps and warmup_steps(config, run.steps_per_epoch) < WARMUP / 2 * steps
    return either(
        "" if config.model.pretrained else "start from model.pretrained weights",
        f"set optimizer.attention_lr_mult = {HEAD_FACTOR:g}" if heads else "",
        f"set optimizer.warmup_steps = {WARMUP:g} (a fraction of the run)" if longer else "",
        f"lower optimizer.lr (now {optimizer.lr:g})",
    )


def class_accuracy(record: Record, included: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the mean validation accuracy over the included classes, and its standard error."""
    confusion = np.array(record["validation"]["confusion"])
    samples = confusion.sum(axis=1)[included]
    recall = confusion.diagonal()[included] / samples
    return float(recall.mean()), float(np.sqrt((recall * (1 - recall) / samples).sum()) / len(samples))


def is_rising(run: RunRecords) -> bool:
    """Return whether mean class accuracy rose significantly over the last epochs."""
    (now, error), (before, error_before) = (
        class_accuracy(record, run.enough_samples) for record in (run.newest, run.records[-GRACE_EPOCHS - 1 :][0])
    )
    return now - before > NOISE * math.hypot(error, error_before)


def why_no_dead_class_rule(run: RunRecords) -> str:
    """Return why unpredicted classes cannot be checked, or "" if they can."""
    if len(run.late) < GRACE_EPOCHS:
        return f"checked from epoch {run.config.loss.epoch_threshold + GRACE_EPOCHS} on"
    if not run.enough_samples.any():
        return f"no class has {MIN_SAMPLES} validation samples"
    return run.too_early


def find_dead_class(run: RunRecords) -> Iterator[Finding]:
    """Yield a finding if some validation classes are never predicted."""
    confusions = np.array([record["validation"]["confusion"] for record in run.late[-GRACE_EPOCHS:]])
    samples, predicted = confusions[-1].sum(axis=1), confusions.sum(axis=(0, 1))
    dead = np.flatnonzero((predicted == 0) & run.enough_samples).tolist()
    if not dead or (is_rising(run) and not run.is_last):  # a class may still be learned
        return
    subject = ", ".join(run.classes[number] for number in dead)
    counted = ", ".join(f"{run.classes[number]} ({samples[number]} samples)" for number in dead)
    text = f"never predicted on validation in {GRACE_EPOCHS} epochs: {counted}"
    yield Finding("dead class", Severity.WARNING, text, fix_dead_class(run.config), subject)


def fix_dead_class(config: Config) -> str:
    """Return a fix for unpredicted classes. It is not oversampling when streaming, which reads each sample once."""
    better = {"all": "sqrt", "sqrt": "oversample"}.get(config.data.sampler)
    if better is None:
        return "check its samples with python -m shards.doctor"
    cached = " and data.access = cache" if config.data.access == "stream" else ""
    return f"try data.sampler = {better}{cached}, which shows rare classes more often"


def few_samples(run: RunRecords) -> str:
    """Return the classes with too few validation samples, with their counts, as text; "" if there are none."""
    samples = run.confusion.sum(axis=1)
    few = [f"{run.classes[number]} ({samples[number]})" for number in np.flatnonzero(~run.enough_samples).tolist()]
    return ", ".join(few)


def why_no_threshold_rule(run: RunRecords) -> str | None:
    """Return why the threshold cannot be checked: "" if it can be, None if the run has no fixed threshold."""
    if run.config.loss.supervision not in ("fused", "class") or run.config.class_distributions.relative_threshold:
        return None
    if len(run.late) < GRACE_EPOCHS:
        return f"checked from epoch {run.config.loss.epoch_threshold + GRACE_EPOCHS} on"
    return run.too_early


def find_useless_threshold(run: RunRecords) -> Iterator[Finding]:
    """Yield a finding if almost no class mean reaches the threshold (D_c is then the constant T_c), or if all do."""
    threshold, count = run.config.class_distributions.threshold, len(run.classes)
    met = [record["classes_at_threshold"] for record in run.records]
    late = [record["classes_at_threshold"] for record in run.late]
    if min(met) == count:
        degrees = run.newest.get("class_mean_target_prob")
        higher = f" above {min(degrees):.2f}, the lowest class mean now" if degrees and min(degrees) < 1 else ""
        yield Finding(
            "threshold always met",
            Severity.INFO,
            f"all {count} class means were above {threshold:g} in each of {len(met)} epochs, including the first, so "
            "the threshold excluded no early class mean",
            f"no action is needed if this is intended; otherwise raise class_distributions.threshold{higher}",
        )
    elif sum(late) < HARDLY * count * len(late) and not will_meet(run):
        yield Finding(
            f"threshold {'hardly ever' if any(late) else 'never'} met",
            Severity.WARNING,
            describe_constant(met, count, threshold) + nearest_class(run),
            fix_threshold(run),
        )


def describe_constant(met: Sequence[int], count: int, threshold: float) -> str:
    """Describe how long the class distributions stayed constant.

    Each epoch's class means become the next epoch's targets, so a change shows up one epoch later.
    """
    constant = 1 + sum(number == 0 for number in met[:-1])
    text = f"the class distributions were the constant T_c for {constant} of {len(met)} epochs"
    return f"{text}: a class mean reached {threshold:g} in {sum(met)} of {count * len(met)} cases (classes x epochs)"


def nearest_class(run: RunRecords) -> str:
    degrees = run.newest.get("class_mean_target_prob")
    if not degrees:
        return ""
    return f"; the highest class mean is now {max(degrees):.2f} ({run.classes[int(np.argmax(degrees))]})"


def will_meet(run: RunRecords) -> bool:
    """Return whether a class mean will reach the threshold by the end of the run, judging by the most recent epochs."""
    if run.is_last or len(run.records) < GRACE_EPOCHS:
        return False
    now, before = (
        np.array(record.get("class_mean_target_prob") or [0.0]) for record in (run.newest, run.records[-GRACE_EPOCHS])
    )
    rise = (now - before) / (GRACE_EPOCHS - 1) * (run.config.epochs - run.epoch)
    return bool((now + rise.clip(0) >= run.config.class_distributions.threshold).any())


def fix_threshold(run: RunRecords) -> str:
    """Suggest a threshold that half of the latest class means reach, if that is clearly above chance."""
    degrees, chance = run.newest.get("class_mean_target_prob"), 1 / len(run.classes)
    if not degrees:
        return "lower class_distributions.threshold to a value that half of the class means reach"
    half = math.floor(20 * sorted(degrees, reverse=True)[(len(degrees) - 1) // 2] + 1e-9) / 20
    if half < chance + MIN_ABOVE_CHANCE * (1 - chance):
        return "train longer: most class means are near chance, so no class_distributions.threshold is useful"
    if half >= run.config.class_distributions.threshold:
        return "train longer: half of the class means reach the threshold now"
    return f"set class_distributions.threshold = {half:g}, which half of the class means reach, or train longer"
