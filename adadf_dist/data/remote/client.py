"""Files of a dataset folder behind a URL, read with patience: HTTP, S3 and Google storage through fsspec.

A server that stalls, cuts or answers 500 is tried again after a wait that doubles each time; one that refuses (401,
403) or does not have the file (404) is not. What remains is one line that names the URL and the attempts.
"""

from __future__ import annotations

import importlib.util
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, TypeVar

import fsspec

from adadf_dist.errors import UserError, single_line

PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
"""Schemes that are fetched -> the package that fsspec needs for them; `file` and plain paths are read in place."""

MAX_CHUNK = 2**24
FAST_CHUNK_S, SLOW_CHUNK_S = 0.5, 2.0
"""Requests grow while they take less than the one and shrink when they take more than the other: progress is seen to
move, and a cut loses a second's work."""

T = TypeVar("T")


class RetryPolicy(NamedTuple):
    """How patient a transfer is, and in what pieces it asks."""

    attempts: int = 6
    """Tries of one request before giving up: with the waits between them, half a minute or more."""
    initial_backoff_s: float = 1.0
    """Wait after the first failure; doubled after each further one, and spread by half so that nodes do not return
    together."""
    read_timeout_s: float = 30.0
    """A connection that brings no byte for so long has failed."""
    chunk_bytes: int = 2**20
    """Bytes asked for at first."""


DEFAULT_RETRY_POLICY = RetryPolicy()


class ServerUnreachableError(UserError):
    """The server did not answer well in any attempt: a cached copy may still do."""


class TransferCancelled(Exception):  # noqa: N818  (not a mistake: somebody else's failure, or a stop)
    """The transfer was called off."""


class _TransferError(Exception):
    def __init__(self, reason: str, mend: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.mend = mend
        """What the user can do about it; empty where trying again may help."""


def scheme_of(shards: str) -> str:
    """`s3` of s3://bucket/folder; empty for a plain path. Raises `UserError` for schemes that are not read."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", shards)
    if found is None:
        return ""
    scheme = found[1].lower()
    if scheme != "file" and scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in ("file", *PACKAGES))
        raise UserError(f"data.shards is {shards}: {scheme}:// is not read; give a folder, or a URL of {known}")
    return scheme


def is_remote(shards: str) -> bool:
    """Whether `data.shards` must be fetched. Raises `UserError` for an unknown scheme."""
    return scheme_of(shards) in PACKAGES


def local_path(shards: str) -> Path:
    """The folder of a plain path or a file:// URL."""
    return Path(shards[len("file://") :] if scheme_of(shards) == "file" else shards)


@dataclass(frozen=True)
class Remote:
    """A dataset folder by its URL (or path). Safe to use from several threads; a worker process gets a copy."""

    url: str
    transfer: RetryPolicy = DEFAULT_RETRY_POLICY
    cancelled: Event = field(default_factory=Event)
    """Set it to end every transfer soon; they raise `TransferCancelled`."""

    def __post_init__(self) -> None:
        scheme = scheme_of(self.url)
        package = PACKAGES.get(scheme)
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"data.shards is {self.url}: {scheme}:// needs the package {package}; "
                "install the extra: pip install 'adadf_dist[remote]'"
            )
        if scheme.startswith("http") and "?" in self.url:
            raise UserError(f"data.shards is {self.url}: give the folder's URL without a query (?...)")

    def __reduce__(self) -> tuple[type[Remote], tuple[str, RetryPolicy]]:
        """For worker processes. Nothing cancels the copy: a worker ends with its rank."""
        return Remote, (self.url, self.transfer)

    def url_for(self, name: str) -> str:
        """URL or path of a file of the folder."""
        return f"{self.url.rstrip('/')}/{name}"

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (excluded) of a file, or what of them a server sends at once; all of it by default.

        A server that ignores ranges sends the file from its beginning: then everything from `start` on is returned.
        Raises `UserError` (`ServerUnreachableError` where trying again later may help), `TransferCancelled`.
        """
        return self.with_retries(name, lambda: self._read_once(name, start, end))

    def chunks(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` (excluded), piece by piece, each piece tried as often as `transfer` says."""
        length = self.transfer.chunk_bytes
        while start < end:
            began = time.monotonic()
            piece = self.read(name, start, min(start + length, end))[: end - start]
            start += len(piece)
            yield piece
            taken = time.monotonic() - began
            if taken < FAST_CHUNK_S:
                length = min(2 * length, max(MAX_CHUNK, self.transfer.chunk_bytes))
            elif taken > SLOW_CHUNK_S:
                length = max(length // 2, min(2**16, self.transfer.chunk_bytes))

    def with_retries(self, name: str, attempt: Callable[[], T]) -> T:
        """`attempt()`, again and again while it runs into what may pass."""
        transfer, began = self.transfer, time.monotonic()
        for number in range(transfer.attempts):
            if self.cancelled.is_set():
                raise TransferCancelled
            try:
                return attempt()
            except _TransferError as trouble:
                if trouble.mend:
                    raise UserError(f"{self.url_for(name)}: {trouble.reason}; {trouble.mend}") from None
                reason = trouble.reason
            if number + 1 < transfer.attempts:
                self.backoff(number)
        raise ServerUnreachableError(
            f"{self.url_for(name)}: {reason} ({transfer.attempts} attempts in {time.monotonic() - began:.0f} s); "
            "see to the server or the network and start again: what was fetched is kept"
        )

    def backoff(self, number: int) -> None:
        """Wait after the `number`-th failure, counted from 0; a cancel ends it."""
        self.cancelled.wait(self.transfer.initial_backoff_s * 2**number * random.uniform(0.75, 1.25))

    def _read_once(self, name: str, start: int, end: int | None) -> bytes:
        place = self.url_for(name)
        whole = start == 0 and end is None
        try:
            files = make_filesystem(scheme_of(self.url), self.transfer)
            data = bytes(files.cat_file(place) if whole else files.cat_file(place, start=start, end=end))
        except Exception as error:  # each library below fsspec has exceptions of its own, without a common base
            raise classify_error(error, name) from None
        if end is not None and not data:
            raise _TransferError(f"ends at byte {start:,}, before what dataset.json says", "upload the dataset again")
        if end is not None and len(data) > end - start:
            data = data[start:]
            if not data:
                raise _TransferError("answers with bytes that were not asked for")
        return data


def make_filesystem(scheme: str, transfer: RetryPolicy) -> Any:
    """fsspec's file system of a scheme; it keeps one a thread and process, with its connections."""
    match scheme:
        case "http" | "https":
            import aiohttp  # an extra

            patience = aiohttp.ClientTimeout(
                total=None, sock_connect=transfer.read_timeout_s, sock_read=transfer.read_timeout_s
            )
            return fsspec.filesystem(
                scheme,
                client_kwargs={"timeout": patience, "trust_env": True},  # proxies and ~/.netrc, as curl has them
                headers={"Accept-Encoding": "identity"},  # ranges are of the stored bytes
            )
        case "s3":
            # one try at a time: the waiting is ours
            config = {"connect_timeout": transfer.read_timeout_s, "read_timeout": transfer.read_timeout_s}
            files = fsspec.filesystem("s3", config_kwargs={**config, "retries": {"max_attempts": 0}})
            files.retries = 1
            return files
        case "gs":
            return fsspec.filesystem("gs")
        case _:
            return fsspec.filesystem("file")


PROGRAMMING_ERRORS = (TypeError, AttributeError, NameError, AssertionError, ImportError)
AUTH_STATUSES = (401, 403, 407)
RETRYABLE_STATUSES = (408, 425, 429)
"""Statuses below 500 that may be others at the next try."""


def classify_error(error: Exception, name: str) -> _TransferError:
    """What an attempt ran into, and whether it may pass. Raises the error where the fault is our own."""
    status = next((s for key in ("status", "code") if isinstance(s := getattr(error, key, None), int)), 0)
    text = single_line(error, 160) or type(error).__name__
    if isinstance(error, FileNotFoundError) or status == 404:
        if name == "dataset.json":
            mend = "data.shards must name the folder that `python -m shards.build` wrote, dataset.json in it"
            return _TransferError("not found", mend)
        return _TransferError("not found, though dataset.json names it", "upload the dataset again")
    credentials = "credential" in type(error).__name__.lower() or "credentials" in text.lower()
    if isinstance(error, PermissionError) or status in AUTH_STATUSES or credentials:
        what = f"access refused ({status or text})"
        return _TransferError(what, "give this machine credentials for it (docs/data.md, Remote shards)")
    if status == 416:
        return _TransferError("ends before what dataset.json says", "upload the dataset again")
    if status >= 500 or status in RETRYABLE_STATUSES:
        return _TransferError(f"the server answered {status}")
    if status >= 400:
        return _TransferError(f"the server answered {status}", "check data.shards")
    if isinstance(error, TimeoutError):
        return _TransferError("no byte came within the time limit")
    if isinstance(error, PROGRAMMING_ERRORS):
        raise error
    return _TransferError(text)
