"""Dotted configuration keys: which exist, their metadata, and their names in version 0.1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from adadf_dist.config.fields import Role, Setting, collect_settings
from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError


@cache
def settings() -> Mapping[str, Setting]:
    """Return the metadata of every configuration key, by dotted key."""
    return collect_settings(Config)


@cache
def keys_with(roles: Role) -> frozenset[str]:
    """Return the configuration keys that have all of the given roles."""
    return frozenset(key for key, declared in settings().items() if roles in declared.roles)


@cache
def flags() -> frozenset[str]:
    """Return the boolean keys. On the command line, such an option without a value means true."""
    return frozenset(key for key, declared in settings().items() if declared.is_flag)


@cache
def renamed_keys() -> Mapping[str, str]:
    """Return a mapping from version 0.1 key names to current names."""
    return {declared.old_name: key for key, declared in settings().items() if declared.old_name}


def upgrade_keys(values: Mapping[str, object], origin: str = "") -> dict[str, object]:
    """Flatten nested or dotted `values`, renaming version 0.1 keys and values to their current names.

    Raises `UserError` if a key is given under both names.
    """
    upgraded: dict[str, object] = {}
    names: dict[str, str] = {}
    for given, value in flatten(values):
        key = renamed_keys().get(given, given)
        if key in upgraded:
            raise UserError(f"{origin}: {names[key]} and {given} are names of the same key; keep only {key}")
        upgraded[key], names[key] = upgrade_value(key, value), given
    return upgraded


def upgrade_value(key: str, value: object) -> object:
    """Return the current name of a version 0.1 value, or the value unchanged."""
    return settings()[key].old_values.get(value, value) if key in settings() and isinstance(value, str) else value


def describe_renames(values: Mapping[str, object]) -> list[str]:
    """Describe each version 0.1 key or value in `values`, such as `data.workers is now data.num_workers`."""
    found = []
    for given, value in flatten(values):
        key = renamed_keys().get(given, given)
        if key != given:
            found.append(f"{given} is now {key}")
        if upgrade_value(key, value) != value:
            found.append(f"{key}={value} is now {upgrade_value(key, value)}")
    return found


def flatten(values: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    """Yield (dotted key, value) for each value in nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def unflatten(values: Mapping[str, object]) -> dict[str, object]:
    """Convert a mapping with dotted keys to nested dictionaries."""
    nested: dict[str, object] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        section = nested
        for part in path:
            section = section.setdefault(part, {})  # type: ignore[assignment]
        section[name] = value
    return nested


def matches_key(key: str, keys: Iterable[str]) -> bool:
    """Return whether a dotted key is in `keys`, which may also contain sections (ending in a dot)."""
    return any(key.startswith(known) if known.endswith(".") else key == known for known in keys)
