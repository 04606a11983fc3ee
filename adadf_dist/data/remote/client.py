"""Read files from a dataset folder at a URL (HTTP, S3 or Google Cloud Storage, through fsspec), with retries.

Requests that stall, are cut off, or return a 5xx status or a wrong hash are retried with exponential backoff. Refused
(401, 403) and missing (404) files are not. The final error is one line with the URL and the number of attempts.
"""

from __future__ import annotations

import errno
import hashlib
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
from fsspec.callbacks import Callback

from adadf_dist.errors import UserError, single_line
from adadf_dist.files.atomic import DISK_FULL, atomic_write

PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
"""Remote schemes -> the package that fsspec needs for them; `file` and plain paths are read in place."""

T = TypeVar("T")


class RetryPolicy(NamedTuple):
    """Retry policy and request size of a transfer."""

    attempts: int = 6
    """Number of attempts per request before giving up. The waits in between add up to about half a minute."""
    initial_backoff_s: float = 1.0
    """Wait after the first failure; doubles with each further failure and varies randomly by up to 25%, so that nodes
    do not retry simultaneously."""
    read_timeout_s: float = 30.0
    """A connection that receives no byte for this long has failed."""
    chunk_bytes: int = 2**22
    """Request size in bytes when a tar is streamed."""


DEFAULT_RETRY_POLICY = RetryPolicy()


class ServerUnreachableError(UserError):
    """The server could not be reached or gave no valid response. A cached copy may still be used."""


class TransferCancelled(Exception):  # noqa: N818  (not an error: another task failed, or a stop was requested)
    """The transfer was canceled."""


class _TransferError(Exception):
    def __init__(self, reason: str, hint: str = "", retry: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        """What the user can do; empty if the server or network is to blame, so that a retry may help."""
        self.retry = retry or not hint


def scheme_of(shards: str) -> str:
    """Return the URL scheme, such as `s3`, or "" for a plain path. Raises `UserError` for an unsupported scheme."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", shards)
    if found is None:
        return ""
    scheme = found[1].lower()
    if scheme != "file" and scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in ("file", *PACKAGES))
        raise UserError(f"data.shards is {shards}: {scheme}:// is not supported; pass a folder or a URL of {known}")
    return scheme


def is_remote(shards: str) -> bool:
    """Return whether `data.shards` is on a server. Raises `UserError` for an unsupported scheme."""
    return scheme_of(shards) in PACKAGES


def local_path(shards: str) -> Path:
    """Return the local path that a plain path or file:// URL refers to."""
    return Path(shards[len("file://") :] if scheme_of(shards) == "file" else shards)


@dataclass(frozen=True)
class Remote:
    """A dataset folder at a URL (or path). Thread-safe; a worker process gets a copy."""

    url: str
    transfer: RetryPolicy = DEFAULT_RETRY_POLICY
    cancelled: Event = field(default_factory=Event)
    """Setting this event cancels all transfers, which then raise `TransferCancelled`."""

    def __post_init__(self) -> None:
        scheme = scheme_of(self.url)
        package = PACKAGES.get(scheme)
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"data.shards is {self.url}: {scheme}:// needs the package {package}; "
                "install it with pip install 'adadf_dist[remote]'"
            )
        if scheme.startswith("http") and "?" in self.url:
            raise UserError(f"data.shards is {self.url}: pass the folder's URL without a query (?...)")

    def __reduce__(self) -> tuple[type[Remote], tuple[str, RetryPolicy]]:
        """Pickle for worker processes. The copy cannot be canceled: a worker exits with its rank."""
        return Remote, (self.url, self.transfer)

    def url_for(self, name: str) -> str:
        """Return the URL or path of a file in the folder."""
        return f"{self.url.rstrip('/')}/{name}"

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Read bytes `start` to `end` (exclusive) of a file, by default the whole file. The server may send fewer.

        If the server ignores ranges, returns everything from `start` on.
        Raises `UserError` (`ServerUnreachableError` if a later retry may help) and `TransferCancelled`.
        """
        return self.with_retries(name, lambda: self._read_once(name, start, end))

    def download(self, name: str, path: Path, sha256: str) -> None:
        """Download a file to `path` atomically after checking its hash.

        Raises the same errors as `read`, and an error if the disk is full.
        """

        def attempt() -> None:
            with atomic_write(path, sync=True) as partial:
                partial.touch()  # an error of `get_file` is then not about the folder
                self._call(name, lambda files, url: files.get_file(url, str(partial), callback=cancel))
                with partial.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != sha256:
                    what = f"checksum mismatch: got {found[:12]}..., expected {sha256[:12]}..."
                    raise _TransferError(what, "re-upload the dataset (dataset.json last)", retry=True)

        cancel = Callback(hooks={"cancel": lambda *size, **more: self._check_cancelled()})
        self.with_retries(name, attempt)

    def chunks(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Yield bytes `start` to `end` (exclusive) in chunks, each with retries as `transfer` specifies."""
        while start < end:
            chunk = self.read(name, start, min(start + self.transfer.chunk_bytes, end))[: end - start]
            start += len(chunk)
            yield chunk

    def with_retries(self, name: str, attempt: Callable[[], T]) -> T:
        """Return the result of `attempt()`, retrying it after transient errors. Raises the same errors as `read`."""
        transfer, began = self.transfer, time.monotonic()
        for number in range(transfer.attempts):
            self._check_cancelled()
            try:
                return attempt()
            except _TransferError as problem:
                reason, hint = problem.reason, problem.hint
                if not problem.retry:
                    raise UserError(f"{self.url_for(name)}: {reason}; {hint}") from None
            if number + 1 < transfer.attempts:
                self.backoff(number)
        kind = UserError if hint else ServerUnreachableError
        raise kind(
            f"{self.url_for(name)}: {reason} ({transfer.attempts} attempts in {time.monotonic() - began:.0f} s); "
            f"{hint or 'check the server or network and rerun; completed files are kept'}"
        )

    def backoff(self, number: int) -> None:
        """Wait after failure `number`, counted from 0; canceling ends the wait."""
        self.cancelled.wait(self.transfer.initial_backoff_s * 2**number * random.uniform(0.75, 1.25))

    def _check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise TransferCancelled

    def _read_once(self, name: str, start: int, end: int | None) -> bytes:
        part = {} if end is None else {"start": start, "end": end}
        data = bytes(self._call(name, lambda files, url: files.cat_file(url, **part)))
        if end is not None and not data:
            raise _TransferError(
                f"ends at byte {start:,}, but is longer according to dataset.json", "re-upload the dataset"
            )
        if end is not None and len(data) > end - start:
            data = data[start:]
            if not data:
                raise _TransferError("the server sent bytes that were not requested")
        return data

    def _call(self, name: str, function: Callable[[Any, str], T]) -> T:
        """Call a function with fsspec's file system and the URL of a file, converting errors with `classify_error`."""
        try:
            return function(make_filesystem(scheme_of(self.url), self.transfer), self.url_for(name))
        except Exception as error:  # libraries below fsspec have no common exception base
            raise classify_error(error, name) from None


def make_filesystem(scheme: str, transfer: RetryPolicy) -> Any:
    """Return the fsspec file system for a scheme. fsspec caches it and its connections for each thread and process."""
    match scheme:
        case "http" | "https":
            import aiohttp  # optional dependency

            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=transfer.read_timeout_s, sock_read=transfer.read_timeout_s
            )
            return fsspec.filesystem(
                scheme,
                client_kwargs={"timeout": timeout, "trust_env": True},  # use proxies and ~/.netrc, like curl
                headers={"Accept-Encoding": "identity"},  # ranges refer to the stored bytes
            )
        case "s3":
            # single attempts: retries happen here
            config = {"connect_timeout": transfer.read_timeout_s, "read_timeout": transfer.read_timeout_s}
            files = fsspec.filesystem("s3", config_kwargs={**config, "retries": {"max_attempts": 0}})
            files.retries = 1
            return files
        case "gs":
            return fsspec.filesystem("gs")
        case _:
            return fsspec.filesystem("file")


LOCAL_ERRORS = (*DISK_FULL, errno.EFBIG)
PROGRAMMING_ERRORS = (TypeError, AttributeError, NameError, AssertionError, ImportError)
AUTH_STATUSES = (401, 403, 407)
RETRYABLE_STATUSES = (408, 425, 429)
"""Statuses below 500 that are worth a retry."""


def classify_error(error: Exception, name: str) -> _TransferError:
    """Convert an error and decide whether to retry. Re-raises errors caused by this program or this machine."""
    local = isinstance(error, OSError) and error.errno in LOCAL_ERRORS
    if local or isinstance(error, (TransferCancelled, *PROGRAMMING_ERRORS)):
        raise error
    status = next((s for key in ("status", "code") if isinstance(s := getattr(error, key, None), int)), 0)
    text = single_line(error, 160) or type(error).__name__
    if isinstance(error, FileNotFoundError) or status == 404:
        if name == "dataset.json":
            hint = "data.shards must be the folder written by `python -m shards.build`, including dataset.json"
            return _TransferError("not found", hint)
        return _TransferError("not found, although dataset.json lists it", "re-upload the dataset")
    credentials = "credential" in type(error).__name__.lower() or "credentials" in text.lower()
    if isinstance(error, PermissionError) or status in AUTH_STATUSES or credentials:
        what = f"access refused ({status or text})"
        return _TransferError(what, "set up credentials on this machine (docs/data.md, Remote shards)")
    if status == 416:
        return _TransferError("shorter than dataset.json says", "re-upload the dataset")
    if status >= 400:
        transient = status >= 500 or status in RETRYABLE_STATUSES
        return _TransferError(f"the server answered {status}", "" if transient else "check data.shards")
    return _TransferError("read timed out" if isinstance(error, TimeoutError) else text)
