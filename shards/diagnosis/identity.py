"""Which dataset and release this is, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterator

from shards.diagnosis.checks import Case
from shards.diagnosis.verdict import Verdict, ok


def check_identity(case: Case) -> Iterator[Verdict]:
    yield ok("dataset", f"{case.material.kind} of source {case.material.source}")


def check_counts(case: Case) -> Iterator[Verdict]:
    yield from ()


def check_class_order(case: Case) -> Iterator[Verdict]:
    yield from ()
