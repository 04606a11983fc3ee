"""Map dataset classes to model classes, by name or with a mapping file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config.load import load_config_file
from adadf_dist.data.dataset import Split
from adadf_dist.data.emotions import find_class
from adadf_dist.errors import UserError


def match_classes(theirs: tuple[str, ...], ours: tuple[str, ...], file: Path | None) -> dict[str, str]:
    """Return the model class of each dataset class, or "" to exclude it. Raises `UserError` if one is unmapped."""
    if file is not None:
        return read_mapping(file, theirs, ours)
    if set(theirs) != set(ours):
        raise UserError(
            f"dataset classes ({', '.join(theirs)}) do not match model classes ({', '.join(ours)}); pass "
            "--class-mapping FILE (see --help)"
        )
    return {name: name for name in theirs}


def read_mapping(file: Path, theirs: tuple[str, ...], ours: tuple[str, ...]) -> dict[str, str]:
    """Read a TOML file of lines `"dataset class" = "model class"`. Raises `UserError` that lists all invalid names."""
    given = load_config_file(file).values
    values: dict[str, object] = {}
    for name, to in given.items():
        index, target = find_class(name, theirs), find_class(str(to), ours) if to else None
        name = name if index is None else theirs[index]
        if name in values:
            raise UserError(f"--class-mapping {file}: {name} is mapped twice, once under a synonym; keep one line")
        values[name] = to if target is None else ours[target]
    problems = {
        f"{quote_names(name for name in values if name not in theirs)}: not a dataset class ({', '.join(theirs)})",
        f"{quote_names(f'{name} = {to}' for name, to in values.items() if to != '' and to not in ours)}: "
        f"not a model class ({', '.join(ours)})",
        f'{quote_names(name for name in theirs if name not in values)}: not mapped; use "" to exclude a class',
    }
    text = sorted(problem for problem in problems if not problem.startswith(":"))
    if text:
        raise UserError(f"--class-mapping {file}: {'; '.join(text)}")
    if not any(values.values()):
        raise UserError(f"--class-mapping {file}: all classes are excluded; map at least one")
    return {name: str(values[name]) for name in theirs}


def quote_names(names: Iterable[object]) -> str:
    return ", ".join(sorted({repr(name) for name in names}))


def map_labels(split: Split, mapping: Mapping[str, str], ours: tuple[str, ...]) -> Split:
    """Return the split with its labels mapped to model classes, without the excluded samples.

    Votes and true distributions of merged classes are summed. If any class is excluded, its votes are dropped and the
    split has no true distributions. Raises `UserError` if no sample remains.
    """
    targets = np.array([ours.index(mapping[name]) if mapping[name] else -1 for name in split.classes])
    indices = np.flatnonzero(targets[split.labels] >= 0)
    if not len(indices):
        raise UserError(
            f"{split.folder}: the mapping excludes all samples of split {split.name}; map at least one of: "
            f"{', '.join(n for n, c in zip(split.classes, split.class_counts(), strict=True) if c)}"
        )
    subset = split.subset(indices, split.name)

    def merge_columns(rows: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        if rows is None:
            return None
        columns = np.zeros((len(rows), len(ours)), dtype=np.float32)
        for column, target in enumerate(targets.tolist()):
            if target >= 0:
                columns[:, target] += rows[:, column]
        return columns

    return replace(
        subset,
        classes=ours,
        labels=targets[subset.labels],
        votes=merge_columns(subset.votes),
        distributions=merge_columns(subset.distributions) if (targets >= 0).all() else None,
    )
