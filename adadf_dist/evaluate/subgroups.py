"""Faces by what their dataset knows of them: a field of KEY.json in the tars, such as how many faces a photo shows."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.data.dataset import Split
from adadf_dist.errors import UserError, single_line
from adadf_dist.metrics.scores import Estimate, accuracy

MOST_GROUPS = 50
"""A field of more values tells faces apart rather than grouping them."""
NO_GROUPS = ("class", "label", "source")
"""The face's label, which has tables of its own, and its place."""
UNKNOWN = "not given"
"""The group of faces without the field."""


class Subgroup(NamedTuple):
    name: str
    faces: int
    accuracy: Estimate


def read_groups(split: Split, fields: Sequence[str]) -> dict[str, list[str]]:
    """Field -> the group of each face of the split. Raises `UserError`, listing the fields that there are."""
    if not fields:
        return {}
    facts = read_sample_metadata(split)
    values: dict[str, list[str]] = {}
    for row, known in enumerate(facts):
        for field, value in known.items():
            if field not in NO_GROUPS and isinstance(value, (str, int)):  # a bool is; a measured number is no group
                values.setdefault(field, [UNKNOWN] * len(facts))[row] = str(value)
    usable = {field: groups for field, groups in values.items() if len(set(groups)) <= MOST_GROUPS}
    missing = [field for field in fields if field not in usable]
    if missing:
        raise UserError(
            f"--groups {', '.join(missing)}: KEY.json of split {split.name} in {split.folder} has no such field of at "
            f"most {MOST_GROUPS} values; there are {', '.join(sorted(usable)) or 'none'}"
        )
    return {field: usable[field] for field in fields}


def read_sample_metadata(split: Split) -> list[dict[str, object]]:
    """KEY.json of every face, in the order of the split. Raises `UserError`."""
    rows = {f"{key}.json": row for row, key in enumerate(split.keys.tolist())}
    facts: list[dict[str, object]] = [{}] * len(split)
    for number in np.unique(split.locations[:, 0]).tolist():
        path = split.folder / split.shards[number]
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.name in rows and (stream := tar.extractfile(member)) is not None:
                        known = json.loads(stream.read())
                        if not isinstance(known, dict):
                            raise ValueError(f"{member.name} holds no JSON object")
                        facts[rows[member.name]] = known
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise UserError(f"{path}: damaged ({single_line(error, 120)}); copy or build it again") from None
    return facts


def score_groups(groups: Sequence[str], right: NDArray[np.bool_]) -> list[Subgroup]:
    """Accuracy by group, the largest first."""
    names = np.array(groups)
    by_size = sorted(Counter(groups).items(), key=lambda item: (-item[1], item[0]))
    return [Subgroup(name, faces, accuracy(right[names == name])) for name, faces in by_size]
