"""Atomic writes: a file has its old content or its new content, never half of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from adadf_dist.files.outputs import can_write


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with can_write(path):
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
