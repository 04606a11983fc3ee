"""Prepare a study: make its configuration valid on every node, check its dataset, and open its folder and runner."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from adadf_dist.checkpoint.run_dir import lock_run_dir
from adadf_dist.config.load import with_absolute_paths
from adadf_dist.config.schema import Config
from adadf_dist.console.logs import get_logger
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.identity import Source
from adadf_dist.data.manifest import MANIFEST, read_manifest
from adadf_dist.data.prepare import generate_synthetic_dataset
from adadf_dist.data.remote.client import Remote, ServerUnreachableError, is_remote, local_path
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from tune.runners.local import Runner, make_runner
from tune.study.study import STUDY_FILE, Study, start

logger = get_logger(__name__)


def make_paths_absolute(base: Config) -> Config:
    """Return the configuration with absolute paths, because trials run in other folders.

    Paths that start with `~` are kept, because each node has its own home directory.
    """
    return with_absolute_paths(replace(base, out=""))


def check_shards(base: Config) -> Source:
    """Check that the dataset opens, and return its source. A missing synthetic dataset is generated first.

    For a URL, only the manifest is read here; each node downloads the shards once. Raises `UserError` if the dataset
    cannot be opened.
    """
    if not base.data.shards:
        raise UserError(
            "data.shards is not set; pass a dataset directory written by `python -m shards.build`, or its URL"
        )
    if is_remote(base.data.shards):
        return Source(base.data.shards, remote_digests(base.data.shards))
    generate_synthetic_dataset(base, World(torch.device("cpu")))
    dataset = open_dataset(local_path(base.data.shards))
    return Source(base.data.shards, dataset.manifest.digests())


def remote_digests(url: str) -> dict[str, str]:
    """Return the digest of each split of the dataset at a URL, or an empty mapping if the server is unreachable."""
    remote = Remote(url.rstrip("/"))
    try:
        content = remote.read(MANIFEST)
    except ServerUnreachableError as error:
        logger.warning(f"{error}; cannot check whether the dataset changed")
        return {}
    with TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(content)
        return read_manifest(Path(folder)).digests()


def check_protocol(base: Config) -> None:
    """Raise `UserError` if epochs are selected on the test split, which would bias every comparison."""
    if base.evaluation.protocol == "paper":
        raise UserError(
            "evaluation.protocol=paper selects epochs on the test split, which biases comparisons; "
            "set evaluation.protocol = clean"
        )


def study_name(base: Config) -> str:
    """Return the name of the preset or configuration file that `base` was loaded from."""
    return Path(base.out).name.rpartition("-seed")[0]


def check_folder(folder: Path) -> None:
    """Raise `UserError` unless the folder does not exist, is empty or contains a study."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: not a directory")
    if not folder.is_dir() or (folder / STUDY_FILE).exists():
        return
    if any(entry.name != ".lock" for entry in folder.iterdir()):
        raise UserError(f"--out {folder}: not empty and contains no search; choose another directory")


@contextmanager
def open_study(study: Study, resume: bool, options: argparse.Namespace) -> Iterator[Runner]:
    """Lock the study's folder, create or resume the study in it, and yield a runner for its trials.

    Raises `UserError` if the folder, the dataset or the options are unsuitable.
    """
    check_folder(study.folder)
    source = check_shards(study.base)
    with lock_run_dir(study.folder):
        start(study, resume, source)
        with make_runner(options) as runner:
            yield runner
