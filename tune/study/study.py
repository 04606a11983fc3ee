"""A search on disk: its settings, which are fixed when it starts, and its folder, from which it can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from adadf_dist.config.fields import Role
from adadf_dist.config.keys import flatten, keys_with, unflatten, upgrade_keys
from adadf_dist.config.load import ConfigLayer, build_config, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.console.logs import get_logger
from adadf_dist.data.identity import Source, how_to_fix, other_data
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import os_errors_as_user_errors, write_json
from tune.study.asha import AshaSchedule
from tune.study.space import Space, read_space
from tune.study.trial import DEFAULT, Trial, TrialStore

logger = get_logger(__name__)

STUDY_FILE = "study.json"
VERSION = 1
CHANGEABLE_OPTIONS = ("options.keep", "space.name")
"""Search settings that may change on resume, in addition to configuration keys with `Role.INFRASTRUCTURE`."""
EXTENDABLE_KEYS = ("options.trials", "options.seeds", "options.finalists")
"""Settings that may be increased on resume, because existing trials remain valid."""


@dataclass(frozen=True)
class SearchOptions:
    """Settings of a search."""

    seeds: int
    """Number of held-out seeds on which the default and each finalist are retrained; excludes the search seed."""
    trials: int = 0
    """Number of configurations to try besides the default."""
    finalists: int = 0
    searcher: Literal["random", "tpe"] = "random"
    halving: AshaSchedule | None = None
    """Schedule for stopping poor trials early; None disables early stopping."""
    keep: Literal["winner", "none", "all"] = "winner"
    """Which finished trials keep their checkpoints; metrics are always kept."""


@dataclass(frozen=True)
class Study:
    folder: Path
    base: Config
    """Default configuration; its seed is the search seed."""
    space: Space
    options: SearchOptions

    @cached_property
    def trials(self) -> TrialStore:
        return TrialStore(self.folder / "trials")

    def halving_of(self, trial: Trial) -> AshaSchedule | None:
        """Return the trial's ASHA schedule; None for the default and final trials, which are never pruned."""
        judged = trial.stage == "search" and trial.number != DEFAULT
        return self.options.halving if judged else None

    def keeps_checkpoints(self, trial: Trial) -> bool:
        """Return whether a trial keeps its checkpoints when it ends. Those of losing finalists are deleted later."""
        return self.options.keep == "all" or (self.options.keep == "winner" and trial.stage == "final")

    def default(self) -> Trial:
        return Trial(DEFAULT, self.base.seed, "search", {})

    def sampled(self, number: int) -> Trial:
        """Return trial number `number` of the `random` searcher, counting from 1."""
        return Trial(number, self.base.seed, "search", self.space.sample(self.base.seed, number))

    def search_trials(self) -> list[Trial]:
        """Return the default's trial and every trial of the `random` searcher."""
        return [self.default(), *(self.sampled(number) for number in range(1, self.options.trials + 1))]

    def final_trials(self, values: Mapping[int, dict[str, Any]]) -> list[Trial]:
        """Return one trial per held-out seed and configuration; `values` maps configuration numbers to changes."""
        seeds = range(self.base.seed + 1, self.base.seed + 1 + self.options.seeds)
        return [Trial(number, seed, "final", changed) for seed in seeds for number, changed in values.items()]

    def full_values(self, trial: Trial) -> dict[str, Any]:
        """Return the value of every key of the space in the trial, using defaults for unchanged keys."""
        defaults = dict(flatten(to_dict(self.base)))
        return {key: trial.values.get(key, defaults[key]) for key in self.space.domains}

    def to_dict(self) -> dict[str, object]:
        space = {"name": self.space.name, "domains": self.space.to_dict()}
        return {"version": VERSION, "base": to_dict(self.base), "space": space, "options": asdict(self.options)}


def start(study: Study, resume: bool, source: Source | None = None) -> Study:
    """Create the study's folder, or check that it contains the same study. Raises `UserError` if its settings differ.

    `source` identifies the dataset, which must match that of earlier trials unless `allow_other_data` is set. Failed
    trials are retried, because the cause, such as a full disk, may be gone. A study without any started trial is
    overwritten. The caller must hold the folder's lock (`lock_run_dir`).
    """
    path = study.folder / STUDY_FILE
    if not path.exists() and resume:
        raise UserError(f"--resume: {path}: no such file; remove --resume to start a new search")
    if not path.exists() or not study.trials.outcomes():
        with os_errors_as_user_errors(path):
            study.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {**study.to_dict(), **data_of({}, source, study)})
        return study
    if not resume:
        raise UserError(
            f"--out: {study.folder} already contains a search; pass --resume to continue it or choose another --out"
        )
    before, now = read_study_file(path), study.to_dict()
    for key, (old, new) in differences({key: before.get(key) for key in now}, now).items():
        if key in CHANGEABLE_OPTIONS or key.removeprefix("base.") in keys_with(Role.INFRASTRUCTURE):
            continue
        if key not in EXTENDABLE_KEYS or not isinstance(old, int) or not isinstance(new, int) or new < old:
            raise UserError(
                f"{path}: {key} was {json.dumps(old)} and is now {json.dumps(new)}; incompatible with existing "
                "trials; resume with the original setting or choose another --out"
            )
    write_json(path, {**now, **data_of(before, source, study)})
    for outcome in study.trials.outcomes():
        if outcome.status == "failed":
            study.trials.finish(outcome.trial, "")
    return study


def data_of(before: Mapping[str, Any], source: Source | None, study: Study) -> dict[str, object]:
    """Return the `study.json` fields that identify the dataset, plus any other datasets that earlier trials used.

    Raises `UserError` if the dataset changed and `allow_other_data` is not set.
    """
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
        logger.warning(
            f"{study.folder}: contains trials on another dataset, {other['shards']}; results may not be comparable"
        )
    return {"data": None if source is None else source.to_dict(), "earlier_data": earlier}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Map each dotted key whose value has changed to its old and new value."""
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
        raise UserError(f"{path}: no such file; is {path.parent} a study directory?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: parse error: {error}") from None
    if content.get("version") != VERSION:
        raise UserError(
            f"{path}: file version {content.get('version')} is not supported (expected {VERSION}); choose another --out"
        )
    defaults = dict(flatten(to_dict(Config())))  # keys that did not exist in an older version had these values
    content["base"] = unflatten({**defaults, **upgrade_keys(content["base"], str(path))})
    return content


def load_study(folder: Path) -> Study:
    """Load the study saved in `folder`. Raises `UserError` if there is none."""
    content = read_study_file(folder / STUDY_FILE)
    base = build_config([ConfigLayer(STUDY_FILE, content["base"])])
    space = read_space(content["space"]["name"], content["space"]["domains"], base)
    options = content["options"]
    halving = AshaSchedule(**options["halving"]) if options["halving"] else None
    options = SearchOptions(**{**options, "halving": halving})
    return Study(folder, base, space, options)
