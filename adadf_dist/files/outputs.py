"""Rules for output files and folders, shared by all commands.

An existing file, or a folder that is not empty, is replaced only with `--overwrite`. Missing parent folders are
created. `check_output_path` applies these rules before the work starts; `atomic_file` gives a file its final name only
once it is complete.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adadf_dist.errors import UserError
from adadf_dist.files.atomic import atomic_write, os_errors_as_user_errors


def add_overwrite_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup, what: str) -> None:
    """Add the `--overwrite` option. `what` names the file or folder that it replaces, as shown in the help text."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what} if it exists")


def check_output_path(path: Path, overwrite: bool, option: str = "") -> None:
    """Check that a file may be written.

    Raises `UserError` if the path is a folder, or if it exists and `overwrite` is false.
    """
    name = f"{option} {path}".lstrip()
    if path.is_dir():
        raise UserError(f"{name}: is a folder; pass a file name")
    if path.is_file() and not overwrite:
        raise UserError(f"{name}: already exists; choose another name, or pass --overwrite to replace it")
    check_writable(path, name)


def check_output_folder(path: Path, overwrite: bool, option: str = "") -> None:
    """Check that files may be written to a folder.

    Raises `UserError` if the folder is not empty and `overwrite` is false.
    """
    name = f"{option} {path}".lstrip()
    if path.exists() and not path.is_dir():
        raise UserError(f"{name}: is a file; pass a folder")
    if path.is_dir() and not overwrite and any(path.iterdir()):
        raise UserError(f"{name}: is not empty; choose another folder, or pass --overwrite to replace files in it")
    check_writable(path, name)


def check_writable(path: Path, name: str) -> None:
    """Raise `UserError` if `path`, or its nearest existing parent if it does not exist, is not writable."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if existing != path and not existing.is_dir():
        raise UserError(f"{name}: cannot be written, because {existing} is not a folder; choose another name")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{name}: cannot be written ({existing} is read-only for this user); choose another path")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. It is renamed to `path` if the block succeeds, and removed otherwise.

    Creates missing parent folders. A device or pipe is written directly. Raises `UserError` if writing fails.
    """
    with os_errors_as_user_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        with os_errors_as_user_errors(path):
            yield path
        return
    # other processes may write to the same path; writers choose the format by the suffix
    with atomic_write(path, partial=path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")) as partial:
        yield partial


def write_output(path: Path, content: object) -> None:
    """Write text, or any other value as JSON, atomically. Raises `UserError` if writing fails."""
    text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
