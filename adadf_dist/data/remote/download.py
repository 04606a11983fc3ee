"""Download files of a remote dataset folder in parallel. A file appears only when it is complete and verified."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple, Never

from tqdm import tqdm

from adadf_dist.data.manifest import Manifest
from adadf_dist.data.remote.client import Remote

THREADS = 8
"""Number of parallel downloads."""


class FileInfo(NamedTuple):
    """A file listed in `dataset.json`."""

    name: str
    sha256: str
    bytes: int
    """Size in bytes; 0 for the small index files, whose size `dataset.json` does not give."""


def list_files(manifest: Manifest, streamed: Iterable[str] = ()) -> list[FileInfo]:
    """List the indexes and tars of all splits, but only the indexes of `streamed` splits."""
    files = []
    for name, split in manifest.splits.items():
        files.append(FileInfo(split.index, split.index_sha256, 0))
        if name not in streamed:
            files += [FileInfo(shard.file, shard.sha256, shard.bytes) for shard in split.shards]
    return files


def missing_files(files: Iterable[FileInfo], folder: Path) -> list[FileInfo]:
    """Return the files missing from the folder. Only sizes are checked: hashes were verified during download."""

    def is_complete(file: FileInfo) -> bool:
        path = folder / file.name
        return path.is_file() and file.bytes in (0, path.stat().st_size)

    return [file for file in files if not is_complete(file)]


def total_bytes(files: Iterable[FileInfo]) -> int:
    return sum(file.bytes for file in files)


def fetch_files(remote: Remote, files: Sequence[FileInfo], folder: Path, visible: bool) -> None:
    """Download `files` into `folder`. After an error, completed files are kept, and the next call fetches the rest.

    Raises `UserError` for the first file that fails, after the others have stopped, and `TransferCancelled`.
    """
    every = 0.1 if sys.stderr.isatty() else 20.0  # without a terminal, a line from time to time
    bar: tqdm[Never] = tqdm(
        total=total_bytes(files),
        desc="fetching shards",
        unit="B",
        unit_scale=True,
        disable=not visible,
        mininterval=every,
    )
    with bar, ThreadPoolExecutor(THREADS) as pool:
        tasks = {pool.submit(remote.download, file.name, folder / file.name, file.sha256): file for file in files}
        try:
            for task in as_completed(tasks):
                task.result()
                bar.update(tasks[task].bytes)
        except BaseException:
            remote.cancelled.set()  # the others stop at their next bytes
            pool.shutdown(cancel_futures=True)
            raise
