"""Where a study stands, in its files and on the terminal."""

from __future__ import annotations

from tune.hparams import write_hparams
from tune.results import write_trials
from tune.study import Study
from tune.table import LiveTable


class Standing:
    """Called whenever something may have changed."""

    def __init__(self, study: Study, most: int) -> None:
        self.study = study
        self.table = LiveTable(study.folder, most)

    def __call__(self) -> None:
        outcomes = self.study.trials.outcomes()
        write_trials(self.study, outcomes)
        if self.study.base.runtime.tensorboard:
            write_hparams(self.study, outcomes)
        self.table.show(outcomes)

    def settle(self) -> None:
        """What is on the terminal stays; the next table is drawn below it."""
        self.table.settle()
