"""Search spaces: dotted configuration keys, each with its possible values.

A space is one of `SPACES` below or a TOML file of the same form:

    "loss.lambda_min" = { uniform = [0.0, 0.5] }
    "optimizer.lr" = { loguniform = [1e-4, 1e-2] }
    "loss.epoch_threshold" = { choice = [1, 3, 5, 10] }
    "batch_size" = { grid = [32, 64] }
    "optimizer.warmup_steps" = { choice = [0, 100], when = { "optimizer.schedule" = "cosine" } }

`choice` is sampled, `grid` is enumerated. A key with `when` keeps its default unless the keys in `when`
have the given values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from adadf_dist.config.fields import Role
from adadf_dist.config.keys import flatten, keys_with, renamed_keys, settings, upgrade_keys, upgrade_value
from adadf_dist.config.load import load_config_file, override, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError, did_you_mean

Values = dict[str, Any]
"""Maps the dotted configuration keys that a trial changes to their new values."""

KINDS = ("uniform", "loguniform", "choice", "grid")

PAPER: dict[str, object] = {
    "loss.lambda_min": {"uniform": [0.0, 0.5]},
    "class_distributions.threshold": {"uniform": [0.3, 0.95]},
    "loss.epoch_threshold": {"choice": [1, 2, 3, 5, 8, 10]},
}
RECIPE: dict[str, object] = {
    "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
    "batch_size": {"choice": [16, 32, 64, 128]},
    "augment.num_ops": {"choice": [0, 1, 2, 3, 4]},
    "augment.magnitude": {"uniform": [1.0, 9.0]},
    "augment.erase_prob": {"uniform": [0.0, 0.8]},
}
SPACES: dict[str, dict[str, object]] = {"paper": PAPER, "recipe": RECIPE, "full": {**PAPER, **RECIPE}}
"""Built-in spaces. `paper`: the paper's three tuned hyperparameters; `recipe`: learning rate, batch, augmentation;
`full`: both.
"""


@dataclass(frozen=True)
class Domain:
    """Possible values of one configuration key."""

    kind: str
    """One of `KINDS`."""
    values: tuple[Any, ...]
    """For a continuous kind, the lower and upper limit; otherwise all possible values."""
    when: Mapping[str, Any] = field(default_factory=dict)
    """Other keys and the values they must have for this key to be active."""

    @property
    def continuous(self) -> bool:
        return self.kind.endswith("uniform")

    def quantile(self, fraction: float) -> Any:
        """Return the domain's value at the quantile `fraction`, a number in [0, 1)."""
        if not self.continuous:
            return self.values[int(fraction * len(self.values))]
        low, high = self.values
        if self.kind == "uniform":
            return float(low + fraction * (high - low))
        return float(math.exp(math.log(low) + fraction * (math.log(high) - math.log(low))))


@dataclass(frozen=True)
class Space:
    """A validated search space: configuration keys and their possible values."""

    name: str
    domains: Mapping[str, Domain]

    def sample(self, seed: int, number: int) -> Values:
        """Return the values sampled for trial `number`. Sampling is deterministic, so a resumed search repeats it.

        Grids are enumerated in order; other kinds are sampled.
        """
        points = list(self.grid())
        return self.resolve_conditions({**self.sample_all(seed, number), **points[(number - 1) % len(points)]})

    def sample_all(self, seed: int, number: int = 0) -> Values:
        """Return a sampled value for every key, even if its `when` condition does not hold."""
        return {
            key: domain.quantile(np.random.default_rng([seed, number, key_hash(key)]).random())
            for key, domain in self.domains.items()
        }

    def grid(self) -> Iterator[Values]:
        """Yield every combination of grid values; a space without grids has one empty combination."""
        grids = {key: domain.values for key, domain in self.domains.items() if domain.kind == "grid"}
        for point in itertools.product(*grids.values()):
            yield dict(zip(grids, point, strict=True))

    def resolve_conditions(self, values: Values) -> Values:
        """Return only the active keys, in the space's order. A key that depends on an inactive key is also inactive."""
        active = {key: values[key] for key in self.domains if key in values}
        while inactive := [key for key in active if not self._is_active(key, active)]:
            active = {key: value for key, value in active.items() if key not in inactive}
        return active

    def _is_active(self, key: str, values: Values) -> bool:
        return all(values.get(other) == wanted for other, wanted in self.domains[key].when.items())

    @property
    def points(self) -> int | None:
        """Number of combinations if every key has a grid; None if any key is sampled."""
        if any(domain.kind != "grid" for domain in self.domains.values()):
            return None
        return len(list(self.grid()))

    def largest(self, key: str, base: Config) -> Any:
        """Return the largest value that `key` can have in any trial or in the default."""
        domain = self.domains.get(key)
        default = dict(flatten(to_dict(base)))[key]
        return default if domain is None else max(default, *domain.values)

    def to_dict(self) -> dict[str, object]:
        """Return the space in the form of its TOML file."""
        return {
            key: {domain.kind: list(domain.values), **({"when": dict(domain.when)} if domain.when else {})}
            for key, domain in self.domains.items()
        }


def open_space(name: str, base: Config) -> Space:
    """Load a space by its name or TOML file and validate it against the base configuration.

    Raises `UserError` for an unknown or empty space, an unknown key or an invalid value.
    """
    if name in SPACES:
        return read_space(name, SPACES[name], base)
    path = Path(name)
    if path.suffix != ".toml":
        raise UserError(f"--space {name}: must be {', '.join(SPACES)} or a TOML file{did_you_mean(name, SPACES)}")
    if not path.is_file():
        raise UserError(f"--space {path}: no such file")
    return read_space(name, load_config_file(path).values, base)


def read_space(name: str, content: Mapping[str, object], base: Config) -> Space:
    domains = {key: read_domain(name, key, value) for key, value in parse_entries(name, content).items()}
    if not domains:
        raise UserError(f"space {name}: empty; add at least one key and its values")
    space = Space(name, domains)
    for key, domain in domains.items():
        for other, wanted in domain.when.items():
            if other not in domains or (not domains[other].continuous and wanted not in domains[other].values):
                raise UserError(f"space {name}: {key} requires {other} = {wanted!r}, which never happens in this space")
        inside = (
            [domain.quantile(0.37)] if domain.continuous else []
        )  # an integer key accepts integer limits but rejects this value
        for value in [*domain.values, *inside]:
            try:
                override(base, {**dict(domain.when), key: value}, f"space {name}")
            except UserError as error:
                raise UserError(f"space {name}: {key}: {error}") from None
    return space


def parse_entries(space: str, content: Mapping[str, object], prefix: str = "") -> dict[str, Mapping[str, object]]:
    """Map each dotted key to the entry that describes its domain. In the TOML file, keys may be quoted or nested."""
    found: dict[str, Mapping[str, object]] = {}
    for name, value in content.items():
        key = renamed_keys().get(f"{prefix}{name}", f"{prefix}{name}")
        if not isinstance(value, Mapping):
            raise UserError(
                f"space {space}: {key} = {value!r}: must be {{ KIND = [...] }}, where KIND is one of {', '.join(KINDS)}"
            )
        if key in settings() or not any(isinstance(inner, Mapping) for inner in value.values()):
            found[key] = value
        else:
            found |= parse_entries(space, value, f"{key}.")
    return found


def read_domain(name: str, key: str, content: Mapping[str, object]) -> Domain:
    where = f"space {name}: {key}"
    if key not in settings():
        raise UserError(f"{where}: unknown key{did_you_mean(key, settings())}")
    if key in keys_with(Role.NOT_SEARCHABLE):
        raise UserError(
            f"{where}: cannot be searched, because it must be the same in all trials or is set by the search; "
            "remove it from the space and, if needed, set it on the command line"
        )
    kinds = [kind for kind in content if kind in KINDS]
    others = [word for word in content if word not in (*KINDS, "when")]
    if len(kinds) != 1 or others:
        raise UserError(
            f"{where}: expected exactly one of {', '.join(KINDS)} and optionally `when`, found {', '.join(content)}"
        )
    (kind,), values, when = kinds, content[kinds[0]], content.get("when", {})
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise UserError(f"{where}: {kind} must be a list of at least one value, got {values!r}")
    if not isinstance(when, Mapping):
        raise UserError(f"{where}: when must be a mapping of keys to values, got {when!r}")
    domain = Domain(kind, tuple(upgrade_value(key, value) for value in values), upgrade_keys(when, where))
    if domain.continuous and not is_range(values, logarithmic=kind == "loguniform"):
        above = ", both above 0" if kind == "loguniform" else ""
        raise UserError(f"{where}: {kind} must be [low, high] with low < high{above}; got {list(values)}")
    return domain


def key_hash(key: str) -> int:
    """Return the number that seeds the sampling of a key.

    A renamed key is hashed under its old name, so that resuming an older search samples the same values.
    """
    return crc32((settings()[key].old_name or key).encode())


def is_range(values: Sequence[object], logarithmic: bool) -> bool:
    if len(values) != 2 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return False
    low, high = (float(v) for v in values)  # type: ignore[arg-type]
    return low < high and (low > 0 or not logarithmic)
