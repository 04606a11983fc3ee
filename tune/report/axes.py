"""The constants of a search as axes, for whatever draws or weighs them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from adadf_dist.config.load import flatten, to_dict
from tune.study.space import Domain
from tune.study.study import Study


@dataclass(frozen=True)
class Axis:
    """One key of the space, with room for the default's value where the space leaves it out."""

    key: str
    scale: Literal["linear", "log", "steps"]
    values: tuple[Any, ...]
    """Two limits; of `steps` all values, numbers in order."""
    default: Any

    def coordinate(self, value: Any) -> float:
        """Where the value lies: itself, its decimal logarithm (NaN for 0), or the number of its step."""
        if self.scale == "steps":
            return float(self.values.index(value))
        if self.scale == "log":
            return math.log10(value) if value > 0 else math.nan
        return float(value)

    @property
    def limits(self) -> tuple[float, float]:
        """Positions of the ends."""
        return self.coordinate(self.values[0]), self.coordinate(self.values[-1])


def axes_of(study: Study) -> list[Axis]:
    """Of every key of the space, in its order."""
    defaults = dict(flatten(to_dict(study.base)))
    return [axis_of(key, domain, defaults[key]) for key, domain in study.space.domains.items()]


def axis_of(key: str, domain: Domain, default: Any) -> Axis:
    if domain.continuous:
        low, high = domain.values
        inside = default > 0 or domain.kind == "uniform"  # a default of 0 has no place on a logarithmic axis
        reach = (min(low, default), max(high, default)) if inside else (low, high)
        return Axis(key, "log" if domain.kind == "loguniform" else "linear", reach, default)
    values: list[Any] = []
    for value in (*domain.values, default):
        if value not in values:
            values.append(value)
    numbers = all(isinstance(value, (int, float)) for value in values)
    return Axis(key, "steps", tuple(sorted(values) if numbers else values), default)


def label(value: Any) -> str:
    """A value as it is read: four digits of a number, words as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value)
