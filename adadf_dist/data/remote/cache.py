"""Remote datasets on this node's disk: fetched once, shared by every rank and run, the least recently used evicted.

    CACHE/entries/HASH/   a dataset folder, named by the SHA-256 of its dataset.json: other content is another entry
    CACHE/sources/        for each URL, the entry that it last was: for starting offline
    CACHE/locks/          HASH.use, held shared by whoever reads the entry; HASH.fetch, held by who fetches; room

Locks end with the process that holds them.
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
"""Chose the folder, for messages."""
LOOK_EVERY_S = 0.2
"""Seconds between two looks at a lock that another process holds."""
RESERVED_SIZE_FILE = ".room"
"""In an entry: the bytes that it will have when whole, so that two fetches at once do not fill the same room."""


@contextmanager
def ensure_cached(
    data: DataConfig, bar: bool = False, cancelled: Event | None = None, transfer: RetryPolicy = DEFAULT_RETRY_POLICY
) -> Iterator[Path]:
    """`data.shards` as a folder of this machine, fetched into `data.cache` if need be and safe from eviction meanwhile.

    With `data.access = "stream"` the training tars are left where they are.
    Raises `UserError`; `TransferCancelled` when the event is set while it fetches.
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
            remember_entry(remote, cache, entry)  # not earlier: it replaces the copy that an offline start uses
        with os_errors_as_user_errors(entry):
            os.utime(entry)  # the time of the last use, by which eviction goes
        yield entry


def check_cache(data: DataConfig) -> None:
    """Raises `UserError` where the cache cannot be written or locked. Leaves nothing behind but the folder itself."""
    locks = cache_folder(data) / "locks"
    with os_errors_as_user_errors(locks):
        locks.mkdir(parents=True, exist_ok=True)
        probe(locks, Owner.FILE, SETTING)


def entry_folder(data: DataConfig, name: str) -> Path:
    """Where an entry stands on this machine."""
    return cache_folder(data) / "entries" / name


def cache_folder(data: DataConfig) -> Path:
    """Raises `UserError` for `~` where the user has no home folder, as in a container without a passwd entry."""
    try:
        return Path(data.cache).expanduser()
    except RuntimeError:
        raise UserError(f"{SETTING} is {data.cache}, but this user has no home folder; set HOME or {SETTING}") from None


def streamed_splits(data: DataConfig) -> tuple[str, ...]:
    """Splits whose tars are read from afar."""
    return ("train",) if data.access == "stream" else ()


def find_entry(remote: Remote, cache: Path, data: DataConfig) -> tuple[bytes | None, Path]:
    """The entry that the URL's dataset.json names, and that file's content.

    None for the content when the server cannot be reached and a whole copy is at hand. Raises `UserError`.
    """
    source = source_file(remote, cache)
    try:
        content = remote.read(MANIFEST)
    except ServerUnreachableError as error:
        known = json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {}
        entry = cache / "entries" / str(known.get("entry"))
        if not known or not is_complete(entry, data):
            raise
        log(f"{error.args[0].partition(' (')[0]}; offline: using the copy fetched on {known['seen']}")
        return None, entry
    return content, cache / "entries" / hashlib.sha256(content).hexdigest()[:16]


def source_file(remote: Remote, cache: Path) -> Path:
    """File that names the URL's last complete entry."""
    return cache / "sources" / f"{hashlib.sha256(remote.url.encode()).hexdigest()[:16]}.json"


def remember_entry(remote: Remote, cache: Path, entry: Path) -> None:
    """Record the URL's complete entry, for offline starts."""
    source = source_file(remote, cache)
    with os_errors_as_user_errors(source):
        known = {"url": remote.url, "entry": entry.name, "seen": time.strftime("%Y-%m-%d")}
        write_whole(source, json.dumps(known).encode())


def is_complete(entry: Path, data: DataConfig) -> bool:
    if not (entry / MANIFEST).is_file():
        return False
    return not missing_files(list_files(read_manifest(entry), streamed_splits(data)), entry)


def fetch_missing(remote: Remote, entry: Path, content: bytes, data: DataConfig, bar: bool) -> None:
    """Fetch what the entry lacks; one process at a time, the others find it done. The caller holds it in use."""
    if is_complete(entry, data):
        return
    with open_lock(entry.parent.parent, entry.name, "fetch") as file:
        acquire_lock(file, remote, f"waiting for another process that fetches {remote.url}")
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
    """Make the entry with its dataset.json, checked."""
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
    """Evict whole entries, the least recently used first, until `size` bytes fit `data.cache_size_gb`.

    What a living process has in use stays. Raises `UserError` when it does not fit, or the disk is too full.
    """
    entries, limit = entry.parent, data.cache_size_gb * GB
    with open_lock(entries.parent, "room", "lock") as file:
        lock(file, Owner.FILE, SETTING, wait=True)
        if limit:
            if size > limit:
                raise UserError(
                    f"data.cache_size_gb is {data.cache_size_gb:g}, but {data.shards} holds {size / GB:.3g} GB; "
                    "allow that much, or read it with data.access = stream"
                )
            others = sorted((path for path in entries.iterdir() if path != entry), key=lambda p: p.stat().st_mtime)
            used = {other: entry_size(other) for other in others}
            for other in others:
                if size + sum(used.values()) > limit and evict(other):
                    del used[other]
            if size + sum(used.values()) > limit:
                raise UserError(
                    f"data.cache_size_gb is {data.cache_size_gb:g}: {data.shards} needs {size / GB:.3g} GB, and "
                    f"{sum(used.values()) / GB:.3g} GB in {data.cache} are in use by other runs; allow more, or wait"
                )
        free = shutil.disk_usage(entries).free
        if missing > free:
            raise UserError(
                f"data.cache is {data.cache}: {data.shards} needs {missing / GB:.3g} GB more there and "
                f"{free / GB:.3g} GB are free; free some, name another folder, or set data.cache_size_gb so that "
                "what was not used lately is removed"
            )
        with os_errors_as_user_errors(entry):
            (entry / RESERVED_SIZE_FILE).write_text(str(size), encoding="utf-8")


def entry_size(entry: Path) -> int:
    room = entry / RESERVED_SIZE_FILE
    reserved = int(room.read_text(encoding="utf-8") or 0) if room.is_file() else 0
    return max(reserved, sum(path.stat().st_size for path in entry.iterdir()))


def evict(entry: Path) -> bool:
    """Remove an entry that nobody has in use. Returns whether it is gone."""
    with open_lock(entry.parent.parent, entry.name, "use") as file:
        if not lock(file, Owner.FILE, SETTING):
            return False
        log(
            f"removing {entry}, not used since {time.strftime('%Y-%m-%d %H:%M', time.localtime(entry.stat().st_mtime))}"
        )
        (entry / MANIFEST).unlink(missing_ok=True)  # first: half an entry is none
        shutil.rmtree(entry)
        return True


def open_lock(cache: Path, name: str, kind: str) -> TextIO:
    """The lock file, which is never removed: a lock on a removed file holds nobody off."""
    path = cache / "locks" / f"{name}.{kind}"
    with os_errors_as_user_errors(path):
        return path.open("a", encoding="utf-8")


def acquire_lock(file: TextIO, remote: Remote, message: str) -> None:
    """Take an exclusive lock, saying once that we wait for it."""
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
