"""Output files and folders: one rule for every command.

An existing file, or a folder that is not empty, is replaced only with `--force`. Missing parent folders are created.
`check_output_path` applies the rule before the work starts; `atomic_file` gives a file its name once it is complete.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adadf_dist.errors import DiskFullError, UserError


def add_force_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup, what: str) -> None:
    """Add `--force`, with `--overwrite` as another name of it. `what` is replaced if it exists."""
    parser.add_argument(
        "--force", "--overwrite", dest="force", action="store_true", help=f"replace {what} if it exists"
    )


def check_output_path(path: Path, force: bool, option: str = "") -> None:
    """Check that a file may be written. Raises `UserError` for an existing one, unless `force`, and for a folder."""
    name = f"{option} {path}".lstrip()
    if path.is_dir():
        raise UserError(f"{name}: is a folder; give the name of a file")
    if path.is_file() and not force:
        raise UserError(f"{name}: already exists; give another name, or --force to replace it")
    check_writable(path, name)


def check_output_folder(path: Path, force: bool, option: str = "") -> None:
    """Check that files may be written into a folder. Raises `UserError` when it is not empty, unless `force`."""
    name = f"{option} {path}".lstrip()
    if path.exists() and not path.is_dir():
        raise UserError(f"{name}: is a file; give a folder")
    if path.is_dir() and not force and any(path.iterdir()):
        raise UserError(f"{name}: is not empty; give another folder, or --force to replace files in it")
    check_writable(path, name)


def check_writable(path: Path, name: str) -> None:
    """Raise `UserError` when `path`, or its nearest existing parent, cannot be written. Nothing is created."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if existing != path and not existing.is_dir():
        raise UserError(f"{name}: cannot be written, because {existing} is no folder; give another name")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{name}: cannot be written ({existing} is read-only for you); write it elsewhere")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, renamed to `path` when the block succeeds and removed otherwise.

    Creates missing parent folders. A device or pipe is written directly. Raises `UserError`.
    """
    with os_errors_as_user_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            yield path
            return
        partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_output(path: Path, content: object) -> None:
    """Write a text, or any other value as JSON, atomically. Raises `UserError`."""
    text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def os_errors_as_user_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system error while writing into a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "free some space there, or write to another disk" if full else "choose a folder that can be written"
        kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UserError
        raise kind(f"{error.filename or path}: cannot be written: {error.strerror or error}; {hint}") from None
