"""Declaration of a configuration key: default, allowed range, roles, and earlier names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from enum import Flag, auto
from typing import TypeVar

T = TypeVar("T")


class Role(Flag):
    """Roles of configuration keys, so that other code can select keys by role instead of by name."""

    NONE = 0
    RESUMABLE = auto()
    """The value may change when a run resumes."""
    OPERATIONAL = auto()
    """The key does not change what a run learns, so it is ignored when runs are compared."""
    ARCHITECTURE = auto()
    """The value must match the checkpoint's, even if the checkpoint contains only imported weights."""
    PATH = auto()
    """The value may be a path on this machine."""
    INPUT_FILE = auto()
    """The value may be the path of an input file, whose content is recorded with the run."""
    PER_NODE = auto()
    """The value may differ between nodes."""
    NOT_SEARCHABLE = auto()
    """A search cannot vary the key, because the search sets it itself or it changes how accuracy is measured."""
    INFRASTRUCTURE = RESUMABLE | OPERATIONAL
    """The key concerns the machine or the run folder, not the result."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Metadata of a configuration key."""

    roles: Role = Role.NONE
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    is_flag: bool = False
    """Whether the key is boolean."""
    old_name: str = ""
    """Dotted name of the key in version 0.1, which is still accepted; empty if it has not changed."""
    old_values: Mapping[str, str] = field(default_factory=dict)
    """Mapping from version 0.1 values, which are still accepted, to their current names."""

    def allows(self, value: object) -> bool:
        """Return whether `value` is in the allowed range; values that are not numbers always are."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return True
        return all(
            (
                self.ge is None or value >= self.ge,
                self.gt is None or value > self.gt,
                self.le is None or value <= self.le,
                self.lt is None or value < self.lt,
            )
        )

    @property
    def range_text(self) -> str:
        """Describe the allowed range, such as `at least 1`, `above 0` or `[0, 1)`."""
        low, high = self.gt if self.ge is None else self.ge, self.lt if self.le is None else self.le
        if high is None:
            return f"{'above' if self.ge is None else 'at least'} {low}"
        return f"{'(' if self.ge is None else '['}{low}, {high}{')' if self.le is None else ']'}"


def setting(
    default: T,
    roles: Role = Role.NONE,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    old_name: str = "",
    old_values: Mapping[str, str] | None = None,
) -> T:
    """Declare a key of a configuration dataclass. `ge`, `gt`, `le` and `lt` are numeric bounds (>=, >, <=, <)."""
    is_flag = isinstance(default, bool)
    declared = Setting(
        roles=roles, ge=ge, gt=gt, le=le, lt=lt, is_flag=is_flag, old_name=old_name, old_values=old_values or {}
    )
    return field(default=default, metadata={"setting": declared})


def collect_settings(section: type, prefix: str = "") -> dict[str, Setting]:
    """Return the metadata of every key of a configuration dataclass, by dotted key."""
    found: dict[str, Setting] = {}
    for declared in dataclass_fields(section):
        name = f"{prefix}{declared.name}"
        if "setting" in declared.metadata:
            found[name] = declared.metadata["setting"]
        elif isinstance(declared.default_factory, type):
            found |= collect_settings(declared.default_factory, f"{name}.")
        else:
            found[name] = Setting(is_flag=isinstance(declared.default, bool))
    return found
