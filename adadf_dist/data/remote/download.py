"""Download files of a remote dataset folder: in parallel, resumable, verified by SHA-256."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Never

from tqdm import tqdm

from adadf_dist.data.manifest import Manifest
from adadf_dist.data.remote.client import Remote, TransferCancelled
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import os_errors_as_user_errors

THREADS = 8
"""Parallel downloads."""
MAX_CHECKSUM_FAILURES = 3
"""Maximum times that a file may arrive with a hash other than that in `dataset.json`."""
PARTIAL = ".partial"

ProgressCallback = Callable[[int], None]


class FileInfo(NamedTuple):
    """A file listed in `dataset.json`."""

    name: str
    sha256: str
    bytes: int | None
    """None if not in `dataset.json` (the indexes, which are small and fetched in one piece)."""


def list_files(manifest: Manifest, streamed: Iterable[str] = ()) -> list[FileInfo]:
    """Indexes and tars of every split; only the indexes of the `streamed` splits."""
    files = []
    for name, split in manifest.splits.items():
        files.append(FileInfo(split.index, split.index_sha256, None))
        if name not in streamed:
            files += [FileInfo(shard.file, shard.sha256, shard.bytes) for shard in split.shards]
    return files


def missing_files(files: Iterable[FileInfo], folder: Path) -> list[FileInfo]:
    """Files missing from the folder. A file gets its name only after its hash was verified, so sizes suffice."""

    def there(file: FileInfo) -> bool:
        path = folder / file.name
        return path.is_file() and file.bytes in (None, path.stat().st_size)

    return [file for file in files if not there(file)]


def remaining_bytes(files: Iterable[FileInfo], folder: Path) -> int:
    """Bytes left to download, excluding the indexes, whose size is unknown."""
    return sum(max(0, (file.bytes or 0) - file_size(folder / (file.name + PARTIAL))) for file in files)


def file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def fetch_files(remote: Remote, files: Sequence[FileInfo], folder: Path, bar: bool) -> None:
    """Download `files` into `folder`. After an error, completed data is kept and the next call resumes.

    Raises `UserError` for the first file that fails, after the others have stopped, and `TransferCancelled`.
    """
    with progress(remaining_bytes(files, folder), bar) as advance, ThreadPoolExecutor(THREADS) as pool:
        tasks = [pool.submit(fetch_file, remote, file, folder, advance) for file in files]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
            if any(task.done() and task.exception() for task in tasks):
                remote.cancelled.set()  # the others stop at their next chunk
        finally:
            pool.shutdown(cancel_futures=True)
    problems = [problem for task in tasks if not task.cancelled() and (problem := task.exception())]
    for problem in sorted(problems, key=lambda p: isinstance(p, TransferCancelled)):
        raise problem


def fetch_file(remote: Remote, file: FileInfo, folder: Path, advance: ProgressCallback) -> None:
    """Download one file under a temporary name and rename it once its hash is verified."""
    partial = folder / (file.name + PARTIAL)
    for number in range(MAX_CHECKSUM_FAILURES):
        with os_errors_as_user_errors(partial):
            if file.bytes is None or file_size(partial) > file.bytes:
                partial.unlink(missing_ok=True)
            found = resume_download(remote, file, partial, advance)
            if found == file.sha256:
                partial.rename(folder / file.name)
                return
            advance(-file_size(partial))
            partial.unlink()
        if number + 1 < MAX_CHECKSUM_FAILURES:
            remote.backoff(number)
    raise UserError(
        f"{remote.url_for(file.name)}: checksum mismatch: got {found[:12]}..., expected "
        f"{file.sha256[:12]}... ({MAX_CHECKSUM_FAILURES} attempts); re-upload the dataset, dataset.json last"
    )


def resume_download(remote: Remote, file: FileInfo, partial: Path, advance: ProgressCallback) -> str:
    """Append the missing bytes to `partial` and return the SHA-256 of the complete file."""
    digest = hashlib.sha256()
    with partial.open("a+b") as stream:
        stream.seek(0)
        while block := stream.read(2**20):
            digest.update(block)
        if file.bytes is None:
            pieces: Iterator[bytes] = iter([remote.read(file.name)])
        else:
            pieces = remote.chunks(file.name, stream.tell(), file.bytes)
        for piece in pieces:
            stream.write(piece)
            digest.update(piece)
            advance(len(piece) if file.bytes is not None else 0)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


@contextmanager
def progress(total: int, shown: bool) -> Iterator[ProgressCallback]:
    """Progress bar in bytes; without a terminal, a line from time to time."""
    every = 0.1 if sys.stderr.isatty() else 20.0
    lock = Lock()
    bar: tqdm[Never]
    with tqdm(
        total=total, desc="fetching shards", unit="B", unit_scale=True, disable=not shown, mininterval=every
    ) as bar:

        def advance(number: int) -> None:
            with lock:
                bar.update(number)

        yield advance
