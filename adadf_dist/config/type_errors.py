"""Error messages for configuration values of the wrong type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from adadf_dist.config.schema import Config
from adadf_dist.errors import did_you_mean

SINGULAR = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
PLURAL = {int: "integers", float: "numbers", str: "texts", bool: "true or false"}


def describe_mismatch(key: str, value: object) -> str:
    """Return a message such as `batch_size must be an integer, got 'abc'`; a misspelled choice gets a suggestion."""
    hint = type_hints()[key]
    choices = [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []
    close = did_you_mean(value, choices) if isinstance(value, str) else ""
    got = "no value" if value is None else repr(value)
    return f"{key} must be {describe_type(hint)}, got {got}{close}"


def describe_type(hint: Any) -> str:
    """Describe a type, such as `an integer`, `one of a, b` or `a list of 2 numbers`."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is UnionType:
        return " or ".join(describe_type(kind) for kind in get_args(hint))
    if get_origin(hint) is not tuple:
        return SINGULAR[hint]
    first, *others = get_args(hint)
    count = "" if others == [...] else f"{1 + len(others)} "
    items = f"values, each one of {', '.join(map(str, get_args(first)))}" if get_origin(first) else PLURAL[first]
    return f"a list of {count}{items}"


@cache
def type_hints() -> dict[str, Any]:
    """Return the type of every configuration key, by dotted key."""
    return dict(_hints_below(Config, ""))


def _hints_below(section: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(section).items():
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _hints_below(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint
