"""Run one trial in this process or on the ranks that torchrun starts: `python -m tune.run_trial STUDY TRIAL`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from adadf_dist.console.exit import cli_errors
from adadf_dist.distributed.environment import rank_from_env
from tune.runners.execute import run_trial
from tune.study.study import load_study


def main(argv: Sequence[str] | None = None) -> None:
    folder, name = sys.argv[1:] if argv is None else argv
    with cli_errors("tune.run_trial", rank_from_env()):
        study = load_study(Path(folder))
        run_trial(study, study.trials.get(name).trial)


if __name__ == "__main__":
    main()
