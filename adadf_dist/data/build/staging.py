"""Staging directory, which makes a finished folder appear atomically and lets an unfinished build be resumed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.manifest import MANIFEST
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import os_errors_as_user_errors, write_text
from adadf_dist.files.locks import exclusive_lock

PARTIAL_STATE_DIR = ".state"
"""Folder in `OUT.partial` with the state of the build. Removed from the finished folder."""

_LOCK = ".lock"
_ORDER = "fingerprint.json"


@contextmanager
def staging_dir(out: Path, overwrite: bool, settings: Mapping[str, object], restart: bool = False) -> Iterator[Path]:
    """Yield `OUT.partial` next to `out`; it becomes `out` if the block succeeds.

    If the block fails or the process is killed, the contents are kept, and the next call with the same `settings`
    finds them. `settings` contains everything that determines the bytes, as plain JSON values. Other settings are
    an error that names the differences, unless `restart` discards the unfinished work. An existing dataset is replaced
    only with `overwrite`, and only after the new one has been opened successfully. Raises `UserError`.
    """
    check_overwrite(out, overwrite)
    partial = out.with_name(out.name + ".partial")
    with lock_folder(partial):
        with os_errors_as_user_errors(partial):
            prepare_folder(partial, json.loads(json.dumps(settings)), restart)
        try:
            yield partial
        except BaseException:
            if read_settings(partial) is None:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        check_readable(partial, out)
        with os_errors_as_user_errors(out):
            shutil.rmtree(partial / PARTIAL_STATE_DIR)
            (partial / _LOCK).unlink()
            swap_dirs(partial, out)


def check_readable(partial: Path, out: Path) -> None:
    """Raise `UserError`, leaving `out` unchanged, if the new dataset in `partial` cannot be opened."""
    try:
        dataset = open_dataset(partial)
        for name, info in dataset.splits.items():
            dataset.split(name)
            for shard in info.shards:
                if not (partial / shard.file).with_suffix(".idx").is_file():
                    raise UserError(f"{partial / shard.file}: its DALI index is missing")
    except UserError as error:
        problem = str(error).replace(str(partial), out.name)
        raise UserError(
            f"{out}: not written, because the new dataset could not be opened ({problem}); fix the source and rebuild "
            "(existing files are unchanged)"
        ) from None


def prepare_folder(partial: Path, settings: Mapping[str, object], restart: bool) -> None:
    """Empty `partial` unless it contains unfinished work to resume. Raises `UserError` if its settings differ."""
    upgrade_state(partial)
    earlier = None if restart else read_settings(partial)
    if earlier is None:
        clear_folder(partial)
        (partial / PARTIAL_STATE_DIR).mkdir()
        write_text(partial / PARTIAL_STATE_DIR / _ORDER, json.dumps(settings), sync=True)
    else:
        check_settings(partial, earlier, settings)


def upgrade_state(partial: Path) -> None:
    """Rename the state files of an unfinished build that version 0.1 started to their current names."""
    old, state = partial / ".unfinished", partial / PARTIAL_STATE_DIR
    if old.is_dir() and not state.exists():
        if (old / "order.json").exists():
            (old / "order.json").rename(old / _ORDER)
        old.rename(state)


def read_settings(partial: Path) -> dict[str, object] | None:
    """Return the settings of the unfinished work in `partial`; None if there is nothing to resume."""
    folder = partial / PARTIAL_STATE_DIR
    try:
        settings: dict[str, object] = json.loads((folder / _ORDER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if len(list(folder.glob("*.json"))) > 1 else None


def check_settings(partial: Path, earlier: Mapping[str, object], current: Mapping[str, object]) -> None:
    """Raise `UserError` naming the settings that differ from those of the unfinished build in `partial`."""
    changes = []
    for key in sorted(current):
        before, now = earlier.get(key), current[key]
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            changes += [f"{k} was {before.get(k)}, is {now.get(k)}" for k in now if now[k] != before.get(k)]
        elif before != now:
            changes.append(f"{key} changed" if len(str(now)) > 40 else f"{key} was {before}, is {now}")
    if changes:
        raise UserError(
            f"{partial}: unfinished build with different settings ({'; '.join(changes)}); "
            "rerun with the original settings or pass --discard-partial to discard it"
        )


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create the folder if necessary and lock it for the duration of the `with` block.

    Raises `UserError` if another build holds the lock.
    """
    with exclusive_lock(folder / _LOCK, "--out") as locked:
        if not locked:
            raise UserError(f"{folder}: locked by another build; wait, or choose another folder")
        yield


def check_overwrite(out: Path, overwrite: bool) -> None:
    """Raise `UserError` if `out` exists and is not empty, unless it is a dataset and `overwrite` is set."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out}: exists and is not a dataset folder; choose another --out")
    if not overwrite:
        raise UserError(f"{out}: dataset already exists; pass --overwrite to replace it, or choose another --out")


def clear_folder(folder: Path) -> None:
    """Remove everything in a folder except its lock."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()


def remove_others(partial: Path, keep: Collection[Path]) -> None:
    """Remove the files of an unfinished build except `keep`, the lock and the recorded settings."""
    own = {partial / _LOCK, partial / PARTIAL_STATE_DIR / _ORDER}
    for entry in (*partial.iterdir(), *(partial / PARTIAL_STATE_DIR).iterdir()):
        if entry.is_file() and entry not in own and entry not in keep:
            entry.unlink()


def swap_dirs(new: Path, out: Path) -> None:
    """Rename `new` to `out`, then remove the folder that it replaced."""
    old = out.with_name(out.name + ".replaced")
    replaced = out.exists() and any(out.iterdir())
    if replaced:
        if old.exists():
            shutil.rmtree(old)
        os.rename(out, old)
    try:
        os.rename(new, out)
    except OSError:
        if replaced:
            os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)
