"""A search on disk: what it is, fixed when it begins, and the folder in which it can be gone on with."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from adadf_dist.config.load import ConfigLayer, build_config, flatten, matches_key, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.data.identity import Source, how_to_fix, other_data
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import write_json
from adadf_dist.files.outputs import os_errors_as_user_errors
from tune.study.asha import AshaSchedule
from tune.study.space import Space, read_space
from tune.study.trial import DEFAULT, Trial, TrialStore

STUDY_FILE = "study.json"
VERSION = 1
CHANGEABLE_KEYS = (
    "options.keep",
    "space.name",
    "base.allow_other_data",
    "base.data.shards",
    "base.data.cache",
    "base.data.cache_size_gb",
    "base.data.workers",
    "base.data.prefetch",
    "base.data.max_bad_faces",
    "base.evaluation.report",
    "base.checkpoint.",
    "base.runtime.timeout_s",
    "base.runtime.stop_every",
    "base.runtime.log_every",
    "base.runtime.tensorboard",
)
"""What may be changed when a search is gone on with: where things are, and what no accuracy depends on."""
EXTENDABLE_KEYS = ("options.trials", "options.seeds", "options.finalists")
"""What may be raised when a search is gone on with: nothing that was done is in vain."""


@dataclass(frozen=True)
class SearchOptions:
    """How a space is searched."""

    seeds: int
    """Of each finalist and the default, none of them the search's own."""
    trials: int = 0
    """Configurations beside the default."""
    finalists: int = 0
    searcher: Literal["random", "tpe"] = "random"
    halving: AshaSchedule | None = None
    """None: every trial goes to the end."""
    keep: Literal["winner", "none", "all"] = "winner"
    """Whose checkpoints stay when a trial has ended; all figures always do."""


@dataclass(frozen=True)
class Study:
    folder: Path
    base: Config
    """The default configuration; its seed is the search's."""
    space: Space
    options: SearchOptions

    @cached_property
    def trials(self) -> TrialStore:
        return TrialStore(self.folder / "trials")

    def halving_of(self, trial: Trial) -> AshaSchedule | None:
        """None for trials that go to the end: the default, which all are measured by, and finals."""
        judged = trial.stage == "search" and trial.number != DEFAULT
        return self.options.halving if judged else None

    def keeps_checkpoints(self, trial: Trial) -> bool:
        """After the trial's end; of finals the search drops the losers' when it has chosen."""
        return self.options.keep == "all" or (self.options.keep == "winner" and trial.stage == "final")

    def default(self) -> Trial:
        return Trial(DEFAULT, self.base.seed, "search", {})

    def sampled(self, number: int) -> Trial:
        """The search's trial `number` (from 1) under the searcher `random`."""
        return Trial(number, self.base.seed, "search", self.space.sample(self.base.seed, number))

    def search_trials(self) -> list[Trial]:
        """The default and every trial under the searcher `random`."""
        return [self.default(), *(self.sampled(number) for number in range(1, self.options.trials + 1))]

    def final_trials(self, values: Mapping[int, dict[str, Any]]) -> list[Trial]:
        """Every configuration of `values` (by number) on every final seed."""
        seeds = range(self.base.seed + 1, self.base.seed + 1 + self.options.seeds)
        return [Trial(number, seed, "final", changed) for seed in seeds for number, changed in values.items()]

    def full_values(self, trial: Trial) -> dict[str, Any]:
        """Every key of the space and its value in the trial, the default's where the trial does not change it."""
        defaults = dict(flatten(to_dict(self.base)))
        return {key: trial.values.get(key, defaults[key]) for key in self.space.domains}

    def to_dict(self) -> dict[str, object]:
        space = {"name": self.space.name, "domains": self.space.to_dict()}
        return {"version": VERSION, "base": to_dict(self.base), "space": space, "options": asdict(self.options)}


def start(study: Study, resume: bool, source: Source | None = None) -> Study:
    """Write the study down, or find that its folder holds the same one. Raises `UserError`, with the difference.

    `source`: the data of its trials, which must be that of the trials before unless `allow_other_data` is set.
    Trials of it that failed are tried again: a disk that was full may have room now. A study of which no trial ever
    began is as good as none. The folder is the caller's alone (`lock_run_dir`).
    """
    path = study.folder / STUDY_FILE
    if not path.exists() and resume:
        raise UserError(f"--resume: {path}: no such file; leave --resume out to begin a search there")
    if not path.exists() or not study.trials.outcomes():
        with os_errors_as_user_errors(path):
            study.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {**study.to_dict(), **data_of({}, source, study)})
        return study
    if not resume:
        raise UserError(f"--out: {study.folder} holds a search; go on with it by --resume, or give another --out")
    before, now = read_study_file(path), study.to_dict()
    for key, (old, new) in differences({key: before.get(key) for key in now}, now).items():
        if matches_key(key, CHANGEABLE_KEYS):
            continue
        if key not in EXTENDABLE_KEYS or not isinstance(old, int) or not isinstance(new, int) or new < old:
            raise UserError(
                f"{path}: {key} was {json.dumps(old)} and is now {json.dumps(new)}; trials of both do not compare: "
                "go on with what it was, or give another --out"
            )
    write_json(path, {**now, **data_of(before, source, study)})
    for outcome in study.trials.outcomes():
        if outcome.end == "failed":
            study.trials.finish(outcome.trial, "")
    return study


def data_of(before: Mapping[str, Any], source: Source | None, study: Study) -> dict[str, object]:
    """What `study.json` says of the data: now, and earlier where the user allowed other data. Raises `UserError`."""
    recorded = Source.from_dict(before["data"]) if before.get("data") else None
    earlier = list(before.get("earlier_data", ()))
    if source is None or not source.digests:
        source = recorded or source
    elif recorded is not None and (problem := other_data(recorded, source, recorded.digests)):
        if not study.base.allow_other_data:
            raise UserError(
                f"{study.folder}: its trials {problem.replace('was trained', 'were trained')}; {how_to_fix()}"
            )
        earlier.append(recorded.to_dict())
    for other in earlier:
        warning = (
            f"warning: {study.folder}: holds trials on other data, {other['shards']}; their numbers may not compare"
        )
        print(warning, file=sys.stderr, flush=True)
    return {"data": None if source is None else source.to_dict(), "earlier_data": earlier}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both."""
    old, new = dict(flatten(before)), dict(flatten(now))
    return {
        key: (old.get(key), new.get(key))
        for key in [*old, *(key for key in new if key not in old)]
        if old.get(key) != new.get(key)
    }


def read_study_file(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is {path.parent} the folder of a search?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: does not parse: {error}") from None
    if content.get("version") != VERSION:
        raise UserError(f"{path}: is of version {content.get('version')}, this program reads {VERSION}")
    return content


def load_study(folder: Path) -> Study:
    """A study that was begun."""
    content = read_study_file(folder / STUDY_FILE)
    base = build_config([ConfigLayer(STUDY_FILE, content["base"])])
    space = read_space(content["space"]["name"], content["space"]["domains"], base)
    options = content["options"]
    halving = AshaSchedule(**options["halving"]) if options["halving"] else None
    options = SearchOptions(**{**options, "halving": halving})
    return Study(folder, base, space, options)
