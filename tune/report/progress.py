"""Report the progress of a study in its files and on the terminal."""

from __future__ import annotations

from adadf_dist.console.logs import get_logger
from adadf_dist.errors import UserError
from tune.report.live_table import LiveTable
from tune.report.results import write_trials
from tune.study.study import Study

logger = get_logger(__name__)


class ProgressReporter:
    """Callback that updates trials.csv and the live table. A write error is logged once and does not stop trials."""

    def __init__(self, study: Study, most: int) -> None:
        self.study = study
        self.table = LiveTable(study.folder, most)
        self._warned = ""

    def __call__(self) -> None:
        outcomes = self.study.trials.outcomes()
        try:
            write_trials(self.study, outcomes)
        except UserError as error:
            if str(error) != self._warned:
                self._warned = str(error)
                logger.warning(f"{error}")
        self.table.show(outcomes)

    def settle(self) -> None:
        """Keep the current table on the screen and draw the next one below it."""
        self.table.settle()
