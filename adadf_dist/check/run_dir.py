"""Check that the run folder is writable, shared by all nodes and large enough, and describe its current content."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from adadf_dist.check.results import describe_error
from adadf_dist.checkpoint.compatibility import check_config_compatible
from adadf_dist.checkpoint.manager import CHECKPOINT_PATTERN
from adadf_dist.checkpoint.run_dir import check_run_folder, lock_run_dir
from adadf_dist.checkpoint.storage import read_checkpoint
from adadf_dist.config.keys import flatten
from adadf_dist.config.load import to_dict, with_absolute_paths
from adadf_dist.config.schema import Config
from adadf_dist.console.formats import format_gb
from adadf_dist.data.identity import Source, TrainedOn, how_to_fix, moved_files, other_data
from adadf_dist.data.manifest import read_manifest
from adadf_dist.data.remote.client import is_remote, local_path
from adadf_dist.distributed.world import World
from adadf_dist.engine.base import init_model
from adadf_dist.engine.optimizer import moments_per_parameter
from adadf_dist.errors import UserError
from adadf_dist.files.locks import probe
from adadf_dist.findings import Finding, Severity, ok, warning
from adadf_dist.training.consistency import find_unshared_run_dir

EXTRA_CHECKPOINTS = 2
"""Number of checkpoints on disk besides the newest ones: the selected epoch's, and the one being written."""


def check_folder(config: Config, world: World, num_classes: int, train_samples: int) -> Finding:
    """Check the run folder and leave the disk unchanged. Collective: every rank must call this."""
    folder = Path(config.out)
    with restore_dirs(folder):
        problem = find_unshared_run_dir(folder, world)
        if problem:
            return Finding("run folder", Severity.ERROR, problem.message.removeprefix("out: "), problem.hint)
        finding = check_run_dir_space(config, folder, num_classes, train_samples) if world.is_main else None
        shared = world.broadcast_object(finding)
        world.barrier()  # all ranks are done with the folder before it is removed
    assert isinstance(shared, Finding)
    return shared


def check_run_dir_space(config: Config, folder: Path, num_classes: int, train_samples: int) -> Finding:
    try:
        state = describe_run_dir(config, folder)
        probe(folder, "out")
    except (ValueError, OSError) as error:
        return Finding("run folder", Severity.ERROR, describe_error(error))
    checkpoint = checkpoint_bytes(config, num_classes, train_samples)
    history = 8 * train_samples * config.epochs
    needed = (config.checkpoint.keep_last + EXTRA_CHECKPOINTS) * checkpoint + history
    existing = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    missing, free = max(needed - existing, checkpoint), shutil.disk_usage(folder).free
    text = f"{folder}: writable and shared; {state}; needs about {format_gb(needed)} ("
    text += f"{format_gb(checkpoint)} per checkpoint), {format_gb(free)} free"
    fewer = "lower checkpoint.keep_last, " if config.checkpoint.keep_last > 1 else ""
    hint = f"free some space, {fewer}or choose another --out"
    if missing > free:
        return Finding("run folder", Severity.ERROR, text, hint)
    return warning("run folder", text, hint) if 2 * missing > free else ok("run folder", text)


def describe_run_dir(config: Config, folder: Path) -> str:
    """Summarize the content of a run folder. Raises `UserError` if a run with this configuration could not use it."""
    config = with_absolute_paths(config)
    check_run_folder(folder)
    if (folder / ".lock").exists():
        with lock_run_dir(folder):
            pass
    checkpoints = folder / "checkpoints"
    saved = sorted(p for p in checkpoints.glob("*.pt") if CHECKPOINT_PATTERN.fullmatch(p.name))
    if not saved:
        return "no run in it yet"
    if config.resume == "never":
        raise ValueError(f"{folder} already contains a run, and resume = never; choose another --out")
    content = read_checkpoint(saved[-1])
    if config.resume == "auto":
        now, finished = to_dict(config), content["progress"]["epoch"]
        moved = moved_files(content.get("data"), dict(flatten(now)))
        check_config_compatible(content["config"], now, saved[-1], finished, moved=moved)
        check_same_data(config, content)
    return f"contains a run with {content['progress']['epoch']} finished epochs (will resume)"


def check_same_data(config: Config, content: Mapping[str, Any]) -> None:
    """Raise `UserError` if the local dataset differs from the checkpoint's, in which case resuming would fail."""
    folder = local_path(config.data.shards)
    if "data" not in content or config.allow_other_data or is_remote(config.data.shards) or not folder.is_dir():
        return
    recorded = TrainedOn.from_state(content["data"]).source
    found = Source(config.data.shards, read_manifest(folder).digests())
    if problem := other_data(recorded, found, recorded.digests):
        raise UserError(f"the checkpoint {problem}; {how_to_fix()}")


def checkpoint_bytes(config: Config, num_classes: int, train_samples: int) -> int:
    """Estimate the checkpoint size: weights (and their average), moments, and per-sample sums."""
    with torch.device("meta"):
        model = init_model(config, num_classes)
    weights = sum(int(tensor.nbytes) for tensor in model.state_dict().values())
    trained = sum(int(parameter.nbytes) for parameter in model.parameters())
    moments = moments_per_parameter(config.optimizer) * trained
    return weights * (2 if config.optimizer.ema_decay else 1) + moments + 16 * train_samples


@contextmanager
def restore_dirs(folder: Path) -> Iterator[None]:
    """When the block ends, remove `folder` and its parent folders if they are empty and did not exist before."""
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        yield
    finally:
        for path in missing:
            try:
                path.rmdir()
            except OSError:  # removed by another rank, or never created
                continue
