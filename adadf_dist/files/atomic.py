"""Atomic writes: a file has either its old or its new content, never a part."""

from __future__ import annotations

import json
import os
from pathlib import Path

from adadf_dist.files.outputs import os_errors_as_user_errors


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    partial = path.with_name(path.name + ".partial")
    with os_errors_as_user_errors(path):
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
