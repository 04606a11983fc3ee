"""Accuracy per group of samples, grouped by a field of the KEY.json files in the tars, such as age."""

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
"""Maximum number of distinct values that a field for grouping may have."""
NO_GROUPS = ("class", "label", "source")
"""Fields not available for grouping: the label, which has its own tables, and the sample's source."""
UNKNOWN = "not given"
"""Name of the group of samples that lack the field."""


class Subgroup(NamedTuple):
    name: str
    faces: int
    accuracy: Estimate


def read_groups(split: Split, fields: Sequence[str]) -> dict[str, list[str]]:
    """Return, for each field, the group of every sample.

    If a field cannot be used, raises `UserError` listing the fields that can.
    """
    if not fields:
        return {}
    metadata = read_sample_metadata(split)
    values: dict[str, list[str]] = {}
    for row, fields_of_sample in enumerate(metadata):
        for field, value in fields_of_sample.items():
            if field not in NO_GROUPS and isinstance(value, (str, int)):  # bool is an int; a float is not a group
                values.setdefault(field, [UNKNOWN] * len(metadata))[row] = str(value)
    usable = {field: groups for field, groups in values.items() if len(set(groups)) <= MOST_GROUPS}
    missing = [field for field in fields if field not in usable]
    if missing:
        raise UserError(
            f"--group-by {', '.join(missing)}: the KEY.json files of split {split.name} in {split.folder} contain no "
            f"such field with at most {MOST_GROUPS} values; available: {', '.join(sorted(usable)) or 'none'}"
        )
    return {field: usable[field] for field in fields}


def read_sample_metadata(split: Split) -> list[dict[str, object]]:
    """Return the KEY.json content of every sample, in split order. Raises `UserError` for a corrupt tar."""
    rows = {f"{key}.json": row for row, key in enumerate(split.keys.tolist())}
    metadata: list[dict[str, object]] = [{}] * len(split)
    for number in np.unique(split.locations[:, 0]).tolist():
        path = split.folder / split.shards[number]
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.name in rows and (stream := tar.extractfile(member)) is not None:
                        content = json.loads(stream.read())
                        if not isinstance(content, dict):
                            raise ValueError(f"{member.name} is not a JSON object")
                        metadata[rows[member.name]] = content
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise UserError(
                f"{path}: truncated or corrupt ({single_line(error, 120)}); copy it again or rebuild the dataset"
            ) from None
    return metadata


def score_groups(groups: Sequence[str], correct: NDArray[np.bool_]) -> list[Subgroup]:
    """Return the accuracy of each group, largest group first."""
    names = np.array(groups)
    by_size = sorted(Counter(groups).items(), key=lambda item: (-item[1], item[0]))
    return [Subgroup(name, count, accuracy(correct[names == name])) for name, count in by_size]
