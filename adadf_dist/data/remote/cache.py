"""Local cache of remote datasets: fetched once, shared by all ranks and runs, evicted least recently used first.

    CACHE/entries/HASH/   a dataset folder, named by the SHA-256 of its dataset.json: changed content is a new entry
    CACHE/sources/        for each URL, its latest entry, for offline starts
    CACHE/locks/          HASH.use, shared by an entry's readers; HASH.fetch, held by the process that fetches; room

Locks are released when their process ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TextIO

from adadf_dist.config.schema import DataConfig
from adadf_dist.data.manifest import MANIFEST, Manifest, read_manifest
from adadf_dist.data.remote.client import (
    DEFAULT_RETRY_POLICY,
    Remote,
    RetryPolicy,
    ServerUnreachableError,
    TransferCancelled,
    is_remote,
    local_path,
)
from adadf_dist.data.remote.download import fetch_files, list_files, missing_files, remaining_bytes
from adadf_dist.errors import UserError
from adadf_dist.files.locks import Owner, lock, probe
from adadf_dist.files.outputs import os_errors_as_user_errors

GB = 10**9
SETTING = "data.cache"
"""Setting that names the folder, for messages."""
LOOK_EVERY_S = 0.2
"""Polling interval in seconds for a lock that another process holds."""
RESERVED_SIZE_FILE = ".room"
"""File in an entry with its complete size in bytes, so that concurrent fetches do not claim the same space."""


@contextmanager
def ensure_cached(
    data: DataConfig, bar: bool = False, cancelled: Event | None = None, transfer: RetryPolicy = DEFAULT_RETRY_POLICY
) -> Iterator[Path]:
    """Yield a local folder of `data.shards`, fetched into `data.cache` if necessary and protected from eviction.

    With `data.access = "stream"` the training tars are not fetched.
    Raises `UserError`, and `TransferCancelled` if the event is set while fetching.
    """
    if not is_remote(data.shards):
        yield local_path(data.shards)
        return
    remote = Remote(data.shards.rstrip("/"), transfer, cancelled or Event())
    cache = cache_folder(data)
    for name in ("entries", "sources", "locks"):
        with os_errors_as_user_errors(cache / name):
            (cache / name).mkdir(parents=True, exist_ok=True)
    content, entry = find_entry(remote, cache, data)
    with open_lock(cache, entry.name, "use") as use:
        lock(use, Owner.FILE, SETTING, shared=True, wait=True)
        if content is not None:
            fetch_missing(remote, entry, content, data, bar)
            remember_entry(remote, cache, entry)  # only now: it replaces the copy used by offline starts
        with os_errors_as_user_errors(entry):
            os.utime(entry)  # time of last use, for eviction
        yield entry


def check_cache(data: DataConfig) -> None:
    """Raise `UserError` if the cache cannot be written or locked. Creates nothing but the folder itself."""
    locks = cache_folder(data) / "locks"
    with os_errors_as_user_errors(locks):
        locks.mkdir(parents=True, exist_ok=True)
        probe(locks, Owner.FILE, SETTING)


def entry_folder(data: DataConfig, name: str) -> Path:
    """Local path of an entry."""
    return cache_folder(data) / "entries" / name


def cache_folder(data: DataConfig) -> Path:
    """Expanded `data.cache`. Raises `UserError` for `~` without a home folder (container without a passwd entry)."""
    try:
        return Path(data.cache).expanduser()
    except RuntimeError:
        raise UserError(f"{SETTING} is {data.cache}, but this user has no home folder; set HOME or {SETTING}") from None


def streamed_splits(data: DataConfig) -> tuple[str, ...]:
    """Splits whose tars are read remotely."""
    return ("train",) if data.access == "stream" else ()


def find_entry(remote: Remote, cache: Path, data: DataConfig) -> tuple[bytes | None, Path]:
    """Return the content of the URL's dataset.json and the entry it identifies.

    The content is None if the server is unreachable and a complete copy is cached. Raises `UserError`.
    """
    source = source_file(remote, cache)
    try:
        content = remote.read(MANIFEST)
    except ServerUnreachableError as error:
        known = json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {}
        entry = cache / "entries" / str(known.get("entry"))
        if not known or not is_complete(entry, data):
            raise
        log(f"{error.message.partition(' (')[0]}; offline: using the cached copy of {known['seen']}")
        return None, entry
    return content, cache / "entries" / hashlib.sha256(content).hexdigest()[:16]


def source_file(remote: Remote, cache: Path) -> Path:
    """File that names the URL's last complete entry."""
    return cache / "sources" / f"{hashlib.sha256(remote.url.encode()).hexdigest()[:16]}.json"


def remember_entry(remote: Remote, cache: Path, entry: Path) -> None:
    """Record the URL's complete entry for offline starts."""
    source = source_file(remote, cache)
    with os_errors_as_user_errors(source):
        known = {"url": remote.url, "entry": entry.name, "seen": time.strftime("%Y-%m-%d")}
        write_whole(source, json.dumps(known).encode())


def is_complete(entry: Path, data: DataConfig) -> bool:
    if not (entry / MANIFEST).is_file():
        return False
    return not missing_files(list_files(read_manifest(entry), streamed_splits(data)), entry)


def fetch_missing(remote: Remote, entry: Path, content: bytes, data: DataConfig, bar: bool) -> None:
    """Fetch the entry's missing files, one process at a time; the others wait. The caller holds the use lock."""
    if is_complete(entry, data):
        return
    with open_lock(entry.parent.parent, entry.name, "fetch") as file:
        acquire_lock(file, remote, f"waiting for another process to fetch {remote.url}")
        manifest = create_entry(remote, entry, content)
        wanted = list_files(manifest, streamed_splits(data))
        missing = missing_files(wanted, entry)
        if not missing:
            return
        evict_to_fit(entry, sum(file.bytes or 0 for file in wanted), remaining_bytes(missing, entry), data)
        amount = remaining_bytes(missing, entry) / GB
        log(f"fetching {len(missing)} files, {amount:.3g} GB, of {remote.url} into {entry}")
        fetch_files(remote, missing, entry, bar)


def create_entry(remote: Remote, entry: Path, content: bytes) -> Manifest:
    """Create the entry with its checked dataset.json."""
    path = entry / MANIFEST
    with os_errors_as_user_errors(path):
        entry.mkdir(exist_ok=True)
        write_whole(path, content)
    try:
        return read_manifest(entry)
    except UserError as error:
        shutil.rmtree(entry, ignore_errors=True)
        raise UserError(str(error).replace(str(path), remote.url_for(MANIFEST))) from None


def evict_to_fit(entry: Path, size: int, missing: int, data: DataConfig) -> None:
    """Evict complete entries, least recently used first, until `size` bytes fit `data.cache_size_gb`.

    Entries in use by a live process stay. Raises `UserError` if it does not fit or the disk is full.
    """
    entries, limit = entry.parent, data.cache_size_gb * GB
    with open_lock(entries.parent, "room", "lock") as file:
        lock(file, Owner.FILE, SETTING, wait=True)
        if limit:
            if size > limit:
                raise UserError(
                    f"data.cache_size_gb is {data.cache_size_gb:g}, but {data.shards} has {size / GB:.3g} GB; "
                    "raise it or set data.access = stream"
                )
            others = sorted((path for path in entries.iterdir() if path != entry), key=lambda p: p.stat().st_mtime)
            used = {other: entry_size(other) for other in others}
            for other in others:
                if size + sum(used.values()) > limit and evict(other):
                    del used[other]
            if size + sum(used.values()) > limit:
                raise UserError(
                    f"data.cache_size_gb is {data.cache_size_gb:g}: {data.shards} needs {size / GB:.3g} GB, and "
                    f"{sum(used.values()) / GB:.3g} GB in {data.cache} are in use by other runs; raise it or wait"
                )
        free = shutil.disk_usage(entries).free
        if missing > free:
            raise UserError(
                f"data.cache is {data.cache}: {data.shards} needs {missing / GB:.3g} GB more there and "
                f"{free / GB:.3g} GB are free; free some space, choose another folder, or set data.cache_size_gb "
                "to evict unused datasets"
            )
        with os_errors_as_user_errors(entry):
            (entry / RESERVED_SIZE_FILE).write_text(str(size), encoding="utf-8")


def entry_size(entry: Path) -> int:
    room = entry / RESERVED_SIZE_FILE
    reserved = int(room.read_text(encoding="utf-8") or 0) if room.is_file() else 0
    return max(reserved, sum(path.stat().st_size for path in entry.iterdir()))


def evict(entry: Path) -> bool:
    """Remove an entry that no process has in use. Returns whether it is gone."""
    with open_lock(entry.parent.parent, entry.name, "use") as file:
        if not lock(file, Owner.FILE, SETTING):
            return False
        log(f"evicting {entry}, last used {time.strftime('%Y-%m-%d %H:%M', time.localtime(entry.stat().st_mtime))}")
        (entry / MANIFEST).unlink(missing_ok=True)  # first, so that a partial entry is invalid
        shutil.rmtree(entry)
        return True


def open_lock(cache: Path, name: str, kind: str) -> TextIO:
    """Open the lock file, which is never removed: a lock on a removed file excludes no one."""
    path = cache / "locks" / f"{name}.{kind}"
    with os_errors_as_user_errors(path):
        return path.open("a", encoding="utf-8")


def acquire_lock(file: TextIO, remote: Remote, message: str) -> None:
    """Take an exclusive lock, printing `message` once if it must wait."""
    while not lock(file, Owner.FILE, SETTING):
        if message:
            log(message)
            message = ""
        if remote.cancelled.wait(LOOK_EVERY_S):
            raise TransferCancelled


def write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def log(message: str) -> None:
    print(f"data: {message}", file=sys.stderr, flush=True)
