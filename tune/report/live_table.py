"""Show the progress of a search: on a terminal, a table that is redrawn; otherwise, one line per ended trial."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from tune.study.trial import TrialResult

ROWS = 12
"""Maximum number of trials shown in the table."""


class LiveTable:
    def __init__(self, folder: Path, most: int, stream: TextIO | None = None) -> None:
        self.folder = folder
        """Study directory."""
        self.most = most
        """Planned number of trials, shown as the total."""
        self._stream = stream
        self._printed: set[str] = set()
        self._lines_shown = 0

    @property
    def stream(self) -> TextIO:
        """Output stream, looked up on each use because Ray pickles the table into processes with a different stdout."""
        return self._stream or sys.stdout

    def show(self, outcomes: Sequence[TrialResult]) -> None:
        if self.stream.isatty():
            width = shutil.get_terminal_size().columns - 1  # a wrapped line would break cursor movement
            lines = [line[:width] for line in self.table(outcomes)]
            back = f"\x1b[{self._lines_shown}F\x1b[J" if self._lines_shown else ""
            print(back + "\n".join(lines), file=self.stream, flush=True)
            self._lines_shown = len(lines)
            return
        for outcome in outcomes:
            if outcome.status and outcome.trial.name not in self._printed:
                self._printed.add(outcome.trial.name)
                print(f"{self.count(outcomes)}: {describe(outcome)}", file=self.stream, flush=True)

    def settle(self) -> None:
        """Keep the current table on the screen and draw the next one below it, so that other text can come between."""
        self._lines_shown = 0

    def count(self, outcomes: Sequence[TrialResult]) -> str:
        ended = sum(bool(outcome.status) for outcome in outcomes)
        return f"{ended} of {self.most} trials"

    def table(self, outcomes: Sequence[TrialResult]) -> Iterator[str]:
        """Yield the lines of the table: running trials first, then ended trials from best to worst."""
        running = [outcome for outcome in outcomes if not outcome.status]
        ended = sorted((o for o in outcomes if o.status), key=lambda o: (o.epochs, o.best), reverse=True)
        shown = [*running, *ended][:ROWS]
        yield self.count(outcomes)
        yield from (describe(outcome) for outcome in shown)
        if len(outcomes) > len(shown):
            yield f"... and {len(outcomes) - len(shown)} more, all in {self.folder / 'trials.csv'}"


def describe(outcome: TrialResult) -> str:
    trial = outcome.trial
    values = ", ".join(f"{key} {format_short(value)}" for key, value in trial.values.items()) or "the default"
    accuracy = f"{outcome.best:.2%}" if outcome.epochs else "-"
    state = outcome.status or "running"
    reason = f" ({outcome.error})" if outcome.error else ""
    mean = "-" if outcome.mean_class_accuracy is None else f"{outcome.mean_class_accuracy:.2%}"
    return f"{trial.name}  {state:8}  epoch {outcome.epochs:3}  {accuracy:>7}  mean class {mean:>7}  {values}{reason}"


def format_short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
