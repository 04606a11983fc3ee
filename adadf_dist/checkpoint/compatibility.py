"""Check whether a run can resume from a checkpoint, which requires a compatible configuration and the same classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path, PurePath
from typing import Any

from adadf_dist.config.fields import Role
from adadf_dist.config.keys import flatten, keys_with, upgrade_keys
from adadf_dist.config.load import NON_PATHS, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.errors import UserError


def check_config_compatible(
    saved: Mapping[str, object],
    now: Mapping[str, object],
    path: Path | str,
    finished: int,
    only: Collection[str] = (),
    moved: Collection[str] = (),
) -> None:
    """Raise `UserError` naming the first configuration key whose value differs but must not.

    `finished`: number of epochs finished in the checkpoint. `only`: keys to compare; all keys if empty. `moved`: keys
    of input files that have moved but have the same content.
    """
    # keys that did not exist in an older version had their default values
    before, after = {**dict(flatten(to_dict(Config()))), **upgrade_keys(saved, str(path))}, dict(flatten(now))
    input_files = keys_with(Role.INPUT_FILE)
    for key in sorted(before.keys() | after.keys()):
        may_differ = key in keys_with(Role.RESUMABLE)
        if (only and key not in only) or key in moved or (key in input_files and same_path(before[key], after[key])):
            may_differ = True
        elif key == "epochs" and rates_follow_epochs(before, after, finished):
            may_differ = False
        if not may_differ and before.get(key) != after.get(key):
            raise UserError(
                f"{path}: config mismatch: {key} was {before.get(key)} in the checkpoint but is {after.get(key)} "
                f"now; pass --{key} {before.get(key)} to resume, or start a new run with another --out"
            )


def rates_follow_epochs(before: Mapping[str, Any], after: Mapping[str, Any], finished: int) -> bool:
    """Return whether the learning-rate schedule depends on the total number of epochs.

    True with a cosine schedule, or if a warm-up given as a fraction of the run takes more than `finished` epochs.
    """
    warmup = after["optimizer.warmup_steps"]
    under_way = isinstance(warmup, float) and finished < warmup * max(before["epochs"], after["epochs"])
    return after["optimizer.schedule"] in ("cosine", "cosine_by_step") or under_way


def same_path(saved: object, now: object) -> bool:
    """Return whether two paths may be the same file; older versions saved relative paths without resolving them."""
    before, after = PurePath(str(saved)), PurePath(str(now))
    if saved in NON_PATHS or before.is_absolute():
        return saved == now
    return after.parts[-len(before.parts) :] == before.parts


def check_classes_match(saved: Mapping[str, Any], now: Preprocessing, path: Path | str) -> None:
    classes = tuple(saved["classes"])
    if classes != now.classes:
        raise UserError(
            f"{path}: trained on the classes {', '.join(classes)}, but the dataset has {', '.join(now.classes)}; "
            "set data.shards to the dataset that the checkpoint was trained on"
        )
