"""Tables 1 to 4 of the paper, represented by the configuration of each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from adadf_dist.config.keys import flatten
from adadf_dist.config.load import to_dict
from adadf_dist.config.schema import Config
from tune.study.space import Values
from tune.study.trial import DEFAULT


class Row(NamedTuple):
    """One row of a table, represented by its configuration."""

    label: str
    values: Values
    """Configuration keys and their values; some may equal the default."""
    against: str = ""
    """Label of the baseline row; the row's own label if it has no baseline; empty to compare with the default."""


class Grid(NamedTuple):
    """A table from the paper, represented by the configuration of each row."""

    title: str
    axis: str
    """Name of the quantity that varies between rows."""
    rows: tuple[Row, ...]
    numeric: bool = False
    """Whether row labels are numbers, sorted in ascending order."""


def sweep(title: str, axis: str, key: str, *values: float) -> Grid:
    return Grid(title, axis, tuple(Row(str(value), {key: value}) for value in values), numeric=True)


SUPERVISION = {
    "single label": "one_hot",
    "label distributions": "label",
    "class distributions": "class",
    "fused distributions": "fused",
}
LEVELS = {"0 %": 0.0, "10 %": 0.1, "20 %": 0.2, "30 %": 0.3}

GRIDS: Mapping[str, Grid] = {
    "lambda_min": sweep("Table 1: minimum weight", "lambda_min", "loss.lambda_min", 0.0, 0.1, 0.2, 0.3, 0.4),
    "threshold": sweep(
        "Table 1: distribution threshold", "t", "class_distributions.threshold", 0.4, 0.5, 0.6, 0.7, 0.8
    ),
    "epoch_threshold": sweep("Table 1: epoch threshold", "E", "loss.epoch_threshold", 1, 3, 5, 7, 9),
    "ablation": Grid(
        "Table 2: supervision of the target branch",
        "supervision",
        tuple(Row(label, {"loss.supervision": name}, "single label") for label, name in SUPERVISION.items()),
    ),
    "backbone": Grid(
        "Table 3: backbones",
        "backbone",
        (
            Row("resnet18", {"model.backbone": "resnet18"}, "resnet18"),
            Row("resnet50", {"model.backbone": "resnet50"}, "resnet18"),
        ),
    ),
    "noise": Grid(
        "Table 4: label noise",
        "method and noise rate",
        tuple(
            Row(
                f"{method}, {label}",
                {"loss.supervision": name, "data.label_noise_rate": rate},
                f"single label, {label}",
            )
            for label, rate in LEVELS.items()
            for method, name in (("single label", "one_hot"), ("Ada-DF", "fused"))
        ),
    ),
}
"""All tables, by their names on the command line."""


def configurations(base: Config) -> list[Values]:
    """Return the distinct configurations of all tables as changes to `base`; the first one, the default, is empty.

    Their order does not depend on the requested tables, so tables can share runs.
    """
    found: list[Values] = [{}]
    for grid in GRIDS.values():
        for row in grid.rows:
            changed = changed_keys(base, row.values)
            if changed not in found:
                found.append(changed)
    return found


def changed_keys(base: Config, values: Values) -> Values:
    before: dict[str, Any] = dict(flatten(to_dict(base)))
    return {key: value for key, value in values.items() if before[key] != value}


def config_id(base: Config, row: Row) -> int:
    """Return the index of a row's configuration in `configurations`, which is `DEFAULT` for the default."""
    number = configurations(base).index(changed_keys(base, row.values))
    assert (number == DEFAULT) == (not changed_keys(base, row.values))
    return number


def rows_of(base: Config, name: str) -> list[Row]:
    """Return the table's rows. A table that varies a number also gets a row for the default value if it lacks one."""
    grid = GRIDS[name]
    rows = list(grid.rows)
    if grid.numeric and all(changed_keys(base, row.values) for row in rows):
        ((key, _),) = rows[0].values.items()
        value = dict(flatten(to_dict(base)))[key]
        rows.append(Row(str(value), {key: value}))
        rows.sort(key=lambda row: float(row.label))
    return rows


def baseline_of(base: Config, name: str, row: Row) -> int | None:
    """Return the index of the row's baseline configuration, or None if the row is itself the baseline."""
    against = next((other for other in GRIDS[name].rows if other.label == row.against), None)
    reference = DEFAULT if against is None else config_id(base, against)
    return None if reference == config_id(base, row) else reference
