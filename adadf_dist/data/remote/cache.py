"""Local cache of remote datasets, shared by all ranks and runs. The least recently used datasets are evicted first.

    CACHE/entries/HASH/   a dataset folder, named by the SHA-256 of its dataset.json: changed content is a new entry
    CACHE/entries/maps-HASH/  stored outputs of a frozen extractor (data/map_store.py)
    CACHE/sources/        for each URL, its latest entry, for offline starts
    CACHE/locks/          HASH.use, shared by an entry's readers; HASH.fetch, held to fetch it; room.lock, held to evict

Locks are released when their process ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import NamedTuple

from adadf_dist.config.schema import DataConfig
from adadf_dist.console.logs import EVERY_RANK, get_logger
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
from adadf_dist.data.remote.download import fetch_files, list_files, missing_files, total_bytes
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import atomic_write, os_errors_as_user_errors, write_text
from adadf_dist.files.locks import exclusive_lock, probe, shared_lock
from adadf_dist.files.outputs import write_output

logger = get_logger(__name__)

GB = 10**9
SETTING = "data.cache_dir"
"""Name of the cache-folder setting, as shown in messages."""
RESERVED_SIZE_FILE = ".room"
"""File that contains an entry's full size in bytes, so that concurrent fetches do not claim the same space."""


@contextmanager
def ensure_cached(
    data: DataConfig, bar: bool = False, cancelled: Event | None = None, transfer: RetryPolicy = DEFAULT_RETRY_POLICY
) -> Iterator[Path]:
    """Yield a local folder with the data of `data.shards`, fetched into `data.cache_dir` and protected from eviction.

    With `data.access = "stream"` the training tars are not fetched.
    Raises `UserError`, and `TransferCancelled` if the event is set while fetching.
    """
    if not is_remote(data.shards):
        yield local_path(data.shards)
        return
    remote = Remote(data.shards.rstrip("/"), transfer, cancelled or Event())
    cache = cache_folder(data)
    for name in ("entries", "sources"):
        with os_errors_as_user_errors(cache / name):
            (cache / name).mkdir(parents=True, exist_ok=True)
    content, entry = find_entry(remote, cache, data)
    with shared_lock(lock_path(entry, "use"), SETTING):
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
        probe(locks, SETTING)


def entry_folder(data: DataConfig, name: str) -> Path:
    """Return the local path of a cache entry."""
    return cache_folder(data) / "entries" / name


def cache_folder(data: DataConfig) -> Path:
    """Return `data.cache_dir` with `~` expanded. Raises `UserError` if the user has no home folder."""
    try:
        return Path(data.cache_dir).expanduser()
    except RuntimeError:
        raise UserError(
            f"{SETTING} is {data.cache_dir}, but this user has no home folder; set HOME or {SETTING}"
        ) from None


def streamed_splits(data: DataConfig) -> tuple[str, ...]:
    """Return the splits whose tars are read from the server instead of being cached."""
    return ("train",) if data.access == "stream" else ()


def find_entry(remote: Remote, cache: Path, data: DataConfig) -> tuple[bytes | None, Path]:
    """Return the content of the remote dataset.json and the path of the cache entry for it.

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
    """Return the file that records a URL's last complete cache entry."""
    return cache / "sources" / f"{hashlib.sha256(remote.url.encode()).hexdigest()[:16]}.json"


def remember_entry(remote: Remote, cache: Path, entry: Path) -> None:
    """Record a URL's complete cache entry, so that later runs can start offline."""
    known = {"url": remote.url, "entry": entry.name, "seen": time.strftime("%Y-%m-%d")}
    write_output(source_file(remote, cache), known)


def is_complete(entry: Path, data: DataConfig) -> bool:
    if not (entry / MANIFEST).is_file():
        return False
    return not missing_files(list_files(read_manifest(entry), streamed_splits(data)), entry)


def fetch_missing(remote: Remote, entry: Path, content: bytes, data: DataConfig, bar: bool) -> None:
    """Fetch an entry's missing files while other processes wait. The caller must hold the entry's `use` lock."""
    if is_complete(entry, data):
        return
    path = lock_path(entry, "fetch")
    with exclusive_lock(path, SETTING) as acquired:
        if not acquired:
            log(f"waiting for another process to fetch {remote.url}")
    with exclusive_lock(path, SETTING, give_up=remote.cancelled.is_set) as acquired:
        if not acquired:
            raise TransferCancelled
        wanted = list_files(create_entry(remote, entry, content), streamed_splits(data))
        missing = missing_files(wanted, entry)
        if missing:
            space = SpaceRequest(data.shards, total_bytes(wanted), total_bytes(missing), "set data.access = stream")
            evict_to_fit(entry, space, data)
            log(f"fetching {len(missing)} files, {total_bytes(missing) / GB:.3g} GB, of {remote.url} into {entry}")
            fetch_files(remote, missing, entry, bar)


def create_entry(remote: Remote, entry: Path, content: bytes) -> Manifest:
    """Create a cache entry with its dataset.json and return the manifest. Raises `UserError` if the file is invalid."""
    path = entry / MANIFEST
    with os_errors_as_user_errors(path):
        entry.mkdir(exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_bytes(content)
    try:
        return read_manifest(entry)
    except UserError as error:
        shutil.rmtree(entry, ignore_errors=True)
        raise UserError(str(error).replace(str(path), remote.url_for(MANIFEST))) from None


class SpaceRequest(NamedTuple):
    """Space that a cache entry needs."""

    owner: str
    """What needs it, for messages."""
    size: int
    """Size of the complete entry in bytes."""
    missing: int
    """Bytes that are still to be written."""
    alternative: str
    """What the user can do instead, for messages."""


def evict_to_fit(entry: Path, space: SpaceRequest, data: DataConfig) -> None:
    """Evict complete entries, least recently used first, until `space.size` bytes fit `data.cache_size_gb`.

    Entries in use by a running process are kept. Raises `UserError` if there is not enough space.
    """
    owner, size, missing, alternative = space
    entries, limit = entry.parent, data.cache_size_gb * GB
    with exclusive_lock(entries.parent / "locks" / "room.lock", SETTING, give_up=lambda: False):
        if limit:
            if size > limit:
                raise UserError(
                    f"data.cache_size_gb is {data.cache_size_gb:g}, but {owner} needs {size / GB:.3g} GB; "
                    f"raise the limit or {alternative}"
                )
            others = sorted((path for path in entries.iterdir() if path != entry), key=lambda p: p.stat().st_mtime)
            used = {other: entry_size(other) for other in others}
            for other in others:
                if size + sum(used.values()) > limit and evict(other):
                    del used[other]
            if size + sum(used.values()) > limit:
                raise UserError(
                    f"data.cache_size_gb is {data.cache_size_gb:g}: {owner} needs {size / GB:.3g} GB, and "
                    f"{sum(used.values()) / GB:.3g} GB in {data.cache_dir} is in use by other runs; "
                    "raise the limit or wait"
                )
        free = shutil.disk_usage(entries).free
        if missing > free:
            raise UserError(
                f"data.cache_dir is {data.cache_dir}: {owner} needs {missing / GB:.3g} GB more there, but "
                f"only {free / GB:.3g} GB is free; free some space, choose another folder, or set data.cache_size_gb "
                "to evict unused datasets"
            )
        write_text(entry / RESERVED_SIZE_FILE, str(size))


def entry_size(entry: Path) -> int:
    size_file = entry / RESERVED_SIZE_FILE
    reserved = int(size_file.read_text(encoding="utf-8") or 0) if size_file.is_file() else 0
    return max(reserved, sum(path.stat().st_size for path in entry.iterdir()))


def evict(entry: Path) -> bool:
    """Remove an entry unless a process is using it. Returns whether the entry was removed."""
    with exclusive_lock(lock_path(entry, "use"), SETTING) as unused:
        if unused:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.stat().st_mtime))
            log(f"evicting {entry}, last used {used}")
            (entry / MANIFEST).unlink(missing_ok=True)  # first, so that a partial entry is invalid
            shutil.rmtree(entry)
        return unused


def lock_path(entry: Path, kind: str) -> Path:
    return entry.parent.parent / "locks" / f"{entry.name}.{kind}"


def log(message: str) -> None:
    """Log a message on any rank, because the first rank of each node fetches into its own cache."""
    logger.info(f"data: {message}", extra=EVERY_RANK)
