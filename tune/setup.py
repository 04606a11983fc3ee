"""What a study needs before its trials: a configuration for any node, faces, its folder, somebody to run them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from adadf_dist.checkpoint.run_dir import lock_run_dir
from adadf_dist.config.load import with_absolute_paths
from adadf_dist.config.schema import Config
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.identity import Source
from adadf_dist.data.manifest import MANIFEST, read_manifest
from adadf_dist.data.remote.client import Remote, ServerUnreachableError, is_remote, local_path
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.training.setup import generate_synthetic_dataset
from tune.runners.local import Runner, make_runner
from tune.study.study import STUDY_FILE, Study, start


def make_paths_absolute(base: Config) -> Config:
    """With every path absolute, `~` apart: trials run in folders of their own, on nodes with homes of their own."""
    return with_absolute_paths(replace(base, out=""))


def check_shards(base: Config) -> Source:
    """Draw embedded faces that are missing, once for all trials. Raises `UserError` for shards that do not open.

    Those behind a URL are left to the nodes, each of which fetches them once; here their manifest alone is read.
    """
    if not base.data.shards:
        raise UserError("data.shards is empty: give the folder that `python -m shards.build` wrote, or its URL")
    if is_remote(base.data.shards):
        return Source(base.data.shards, remote_digests(base.data.shards))
    generate_synthetic_dataset(base, World(torch.device("cpu")))
    dataset = open_dataset(local_path(base.data.shards))
    return Source(base.data.shards, dataset.manifest.digests())


def remote_digests(url: str) -> dict[str, str]:
    """Of a dataset behind a URL; empty where it cannot be reached from here. Raises `UserError`."""
    remote = Remote(url.rstrip("/"))
    try:
        content = remote.read(MANIFEST)
    except ServerUnreachableError as error:
        print(f"warning: {error}; whether the data is the same as before is not checked", file=sys.stderr, flush=True)
        return {}
    with TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(content)
        return read_manifest(Path(folder)).digests()


def check_protocol(base: Config) -> None:
    """Raises `UserError` for the one that picks an epoch by test: what is compared then would be picked by it too."""
    if base.evaluation.protocol == "published":
        raise UserError(
            "evaluation.protocol is published, which looks at the test split every epoch and picks by it, noise and "
            "all; set evaluation.protocol = clean"
        )


def study_name(base: Config) -> str:
    """Of the preset or file that `base` comes from."""
    return Path(base.out).name.rpartition("-seed")[0]


def check_folder(folder: Path) -> None:
    """Raise `UserError` for a folder that holds other files and no study."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: is a file; give a folder")
    if not folder.is_dir() or (folder / STUDY_FILE).exists():
        return
    if any(entry.name != ".lock" for entry in folder.iterdir()):
        raise UserError(f"--out {folder}: is not empty and holds no search; give another folder")


@contextmanager
def open_study(study: Study, resume: bool, options: argparse.Namespace) -> Iterator[Runner]:
    """The study's folder, begun or gone on with and ours alone, and who runs its trials. Raises `UserError`."""
    check_folder(study.folder)
    source = check_shards(study.base)
    with lock_run_dir(study.folder):
        start(study, resume, source)
        with make_runner(options) as runner:
            yield runner
