"""Diagnose a run from its epoch records. Rules are pure functions that return an observation and a hint.

The log prints a finding when it appears or changes (`new_findings`). The report shows in which epochs each finding held
(`finding_spans`) and which rules could be checked (`assess`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config.schema import Config
from adadf_dist.diagnostics import classes as on_classes
from adadf_dist.diagnostics import training as on_training
from adadf_dist.diagnostics.finding import MIN_SAMPLES, Record, RunRecords
from adadf_dist.findings import Finding


class Rule(NamedTuple):
    subject: str
    """What the rule checks, in a few words, such as `overfitting`."""
    why_not: Callable[[RunRecords], str | None]
    """Returns why the rule cannot check these epochs; "" if it can, None if it does not apply to this configuration."""
    find: Callable[[RunRecords], Iterator[Finding]]
    """Yields the findings of the rule. Called only if `why_not` returns ""."""


RULES = (
    Rule("collapse", on_classes.why_no_collapse_rule, on_classes.find_collapse),
    Rule("classes never predicted", on_classes.why_no_dead_class_rule, on_classes.find_dead_class),
    Rule("attention", on_training.why_no_attention_rule, on_training.find_flat_attention),
    Rule("class distribution threshold", on_classes.why_no_threshold_rule, on_classes.find_useless_threshold),
    Rule("loader", on_training.why_no_waiting_rule, on_training.find_loader_waiting),
    Rule("auxiliary branch's loss", on_training.why_no_diverging_rule, on_training.find_diverging),
    Rule("samples that do not decode", lambda run: "", on_training.find_replaced),
    Rule("overfitting", on_training.why_no_overfitting_rule, on_training.find_overfitting),
)


class FindingSpan(NamedTuple):
    """A finding as last observed, and the first and last epoch (from 1) in which it held."""

    finding: Finding
    first: int
    last: int


def diagnose(
    records: Sequence[Record], config: Config, classes: Sequence[str], auxiliary_accuracy: float | None = None
) -> list[Finding]:
    """Return all findings at the newest epoch of a run, most severe first.

    `auxiliary_accuracy`: validation accuracy of the auxiliary branch with the weights of the newest epoch, if measured.
    """
    if not records:
        return []
    run = RunRecords(records, config, classes)
    found = [finding for rule in RULES if rule.why_not(run) == "" for finding in rule.find(run)]
    if auxiliary_accuracy is not None:
        validation = run.newest["validation"]
        found += on_training.find_behind(config, validation["accuracy"], auxiliary_accuracy, validation["samples"])
    if any(finding.name == "collapse" for finding in found):  # dead classes are a consequence of the collapse
        found = [finding for finding in found if finding.name != "dead class"]
    return sorted(found, key=lambda finding: -finding.severity)


def assess(records: Sequence[Record], config: Config, classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what can be checked at the newest epoch, and what cannot be, with reasons.

    There must be at least one record.
    """
    run = RunRecords(records, config, classes)
    reasons = {rule.subject: rule.why_not(run) for rule in RULES}
    checked = [subject for subject, reason in reasons.items() if reason == ""]
    not_checked = [f"{subject} ({reason})" for subject, reason in reasons.items() if reason]
    if few := on_classes.few_samples(run):
        not_checked.append(f"classes with fewer than {MIN_SAMPLES} validation samples: {few}")
    return checked, not_checked


def new_findings(records: Sequence[Record], config: Config, classes: Sequence[str]) -> list[Finding]:
    """Return the findings of the newest epoch that did not hold at the previous one."""
    known = {finding.key for finding in diagnose(records[:-1], config, classes)}
    return [finding for finding in diagnose(records, config, classes) if finding.key not in known]


def finding_spans(records: Sequence[Record], config: Config, classes: Sequence[str]) -> list[FindingSpan]:
    """Return every finding of a run with the epochs in which it held: active findings first, then by severity."""
    spans: list[FindingSpan] = []
    for end in range(1, len(records) + 1):
        epoch = int(records[end - 1]["epoch"])
        active = {span.finding.key: index for index, span in enumerate(spans) if span.last == epoch - 1}
        for finding in diagnose(records[:end], config, classes):
            index = active.get(finding.key)
            if index is None:
                spans.append(FindingSpan(finding, epoch, epoch))
            else:
                spans[index] = FindingSpan(finding, spans[index].first, epoch)
    newest = records[-1]["epoch"] if records else 0
    return sorted(spans, key=lambda span: (span.last != newest, -span.finding.severity, span.first))


def attention_stats(attention: NDArray[np.float32]) -> dict[str, float] | None:
    """Return the mean and standard deviation of an epoch's attention weights w' [S], ignoring NaN (not sampled)."""
    sampled = attention[~np.isnan(attention)].astype(np.float64)
    return {"mean": float(sampled.mean()), "std": float(sampled.std())} if len(sampled) else None
