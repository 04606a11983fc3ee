"""What a study needs before its trials: a configuration for any node, faces, its folder, somebody to run them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from adadf_dist.config import Config
from adadf_dist.data.format import open_dataset
from adadf_dist.data.remote import is_remote, local_path
from adadf_dist.errors import UserError
from adadf_dist.runtime.folder import sole_writer
from adadf_dist.settings import flatten, override, to_dict
from adadf_dist.setup import draw_missing_faces
from adadf_dist.world import World
from tune.runners import Runner, runner_of
from tune.study import STUDY_FILE, Study, begin

PATHS = (
    "data.shards",
    "data.cache",
    "data.label_noise_file",
    "data.relabel",
    "model.pretrained",
    "deepspeed.config",
)
NO_PATHS = ("", "imagenet")


def on_any_node(base: Config) -> Config:
    """With every path absolute, `~` apart: trials run in folders of their own, on nodes with homes of their own."""
    values = {key: str(value) for key, value in flatten(to_dict(base)) if key in PATHS}
    local = {key: value for key, value in values.items() if value not in NO_PATHS and "://" not in value}
    absolute = {key: str(Path(value).absolute()) for key, value in local.items() if value[:1] != "~"}
    return override(replace(base, out=""), absolute)


def check_shards(base: Config) -> None:
    """Draw embedded faces that are missing, once for all trials. Raises `UserError` for shards that do not open.

    Those behind a URL are left to the nodes, each of which fetches them once.
    """
    if not base.data.shards:
        raise UserError("data.shards is empty: give the folder that `python -m shards.build` wrote, or its URL")
    if not is_remote(base.data.shards):
        draw_missing_faces(base, World(torch.device("cpu")))
        open_dataset(local_path(base.data.shards))


def check_protocol(base: Config) -> None:
    """Raises `UserError` for the one that picks an epoch by test: what is compared then would be picked by it too."""
    if base.evaluation.protocol == "published":
        raise UserError(
            "evaluation.protocol is published, which looks at the test split every epoch and picks by it, noise and "
            "all; set evaluation.protocol = clean"
        )


def name_of(base: Config) -> str:
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
def opened(study: Study, resume: bool, options: argparse.Namespace) -> Iterator[Runner]:
    """The study's folder, begun or gone on with and ours alone, and who runs its trials. Raises `UserError`."""
    check_folder(study.folder)
    check_shards(study.base)
    with sole_writer(study.folder):
        begin(study, resume)
        with runner_of(options) as runner:
            yield runner
