"""Axes for hyperparameters, used for plots and to compute importance."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from adadf_dist.config.keys import flatten
from adadf_dist.config.load import to_dict
from tune.study.space import Domain
from tune.study.study import Study


@dataclass(frozen=True)
class Axis:
    """Axis for one key of the search space. Its range is extended to include the default if necessary."""

    key: str
    scale: Literal["linear", "log", "steps"]
    values: tuple[Any, ...]
    """For `linear` and `log`, the lower and upper limit; for `steps`, all values, sorted if they are numbers."""
    default: Any

    def coordinate(self, value: Any) -> float:
        """Return the position of a value on the axis: itself, its base-10 logarithm (NaN for 0) or its step index."""
        if self.scale == "steps":
            return float(self.values.index(value))
        if self.scale == "log":
            return math.log10(value) if value > 0 else math.nan
        return float(value)

    @property
    def limits(self) -> tuple[float, float]:
        """Positions of the two ends of the axis, as returned by `coordinate`."""
        return self.coordinate(self.values[0]), self.coordinate(self.values[-1])


def axes_of(study: Study) -> list[Axis]:
    """Return one axis per key of the search space, in the order of the space."""
    defaults = dict(flatten(to_dict(study.base)))
    return [axis_of(key, domain, defaults[key]) for key, domain in study.space.domains.items()]


def axis_of(key: str, domain: Domain, default: Any) -> Axis:
    if domain.continuous:
        low, high = domain.values
        inside = default > 0 or domain.kind == "uniform"  # a logarithmic axis cannot show a default of 0
        reach = (min(low, default), max(high, default)) if inside else (low, high)
        return Axis(key, "log" if domain.kind == "loguniform" else "linear", reach, default)
    values: list[Any] = []
    for value in (*domain.values, default):
        if value not in values:
            values.append(value)
    numbers = all(isinstance(value, (int, float)) for value in values)
    return Axis(key, "steps", tuple(sorted(values) if numbers else values), default)


def label(value: Any) -> str:
    """Format a value for display: floats with four significant digits, strings unchanged."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value)
