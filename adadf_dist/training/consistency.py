"""Consistency checks before a multi-rank run: same code, settings and dataset on all nodes, and a shared run folder.

Otherwise differences between nodes show late or never: as wrong gradients, as a missing checkpoint when resuming, or as
a rank that exits while the others wait. Each check is a collective with the same result on every rank, so all ranks
exit together with a message that names the node.
"""

from __future__ import annotations

import hashlib
import platform
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

import adadf_dist
from adadf_dist.config.load import INPUT_FILES, flatten, to_dict
from adadf_dist.config.schema import Config, DataConfig
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.identity import digest_files
from adadf_dist.data.manifest import MANIFEST
from adadf_dist.data.remote.cache import streamed_splits
from adadf_dist.data.remote.client import is_remote, local_path
from adadf_dist.distributed.world import World, local_rank_from_env, num_nodes_from_env
from adadf_dist.errors import UserError

T = TypeVar("T")

SHARED_FS_TIMEOUT_S = 6.0
"""A shared file system may show a new file to other nodes with a delay (NFS caches attributes for 3 s or more)."""

NODE_LOCAL_KEYS = ("out", "data.shards", "data.cache")
"""Keys that may differ: a folder can have different names on different nodes."""

FILE_KEYS = INPUT_FILES
"""Keys of files whose contents must also be equal."""

CHECKED_PACKAGES = ("torchvision", "numpy", "nvidia-dali-cuda120", "deepspeed", "timm")
"""Packages that, besides torch, affect the result of a step."""

MAX_NODES_LISTED = 3
"""Maximum number of nodes named in a message; the rest are counted."""


def check_consistency(config: Config, world: World) -> None:
    """Raise `UserError` on every rank unless all nodes have the same code, settings and run folder. Collective."""
    if world.size == 1:
        return
    problem = find_version_mismatch(world) or find_config_mismatch(config, world)
    if not problem and config.out and num_nodes_from_env() > 1:
        problem = find_unshared_run_dir(Path(config.out), world)
    if problem:
        raise problem


def rank_label(world: World) -> str:
    """Return a human-readable label of this rank."""
    return f"{socket.gethostname()} (rank {world.rank})"


def gather_per_node(world: World, look: Callable[[], T]) -> dict[str, T]:
    """Call `look` on each node's first rank; return the results by `HOST (rank R)`, in rank order. Collective.

    Plain Python data only, so that nodes with different versions can read it.
    """
    report = None
    if local_rank_from_env() == 0:
        report = (rank_label(world), look())
    return dict(found for found in world.all_gather_object(report) if found is not None)


def find_version_mismatch(world: World) -> UserError | None:
    """Return an error if package versions differ between nodes. Collective."""
    return describe_mismatch(
        gather_per_node(world, installed_versions),
        "{name} is {values}",
        "all nodes must run the same code; install the same versions on every node",
    )


def find_config_mismatch(config: Config, world: World) -> UserError | None:
    """Return an error if a configuration key differs between nodes. Collective."""
    settings = {key: value for key, value in flatten(to_dict(config)) if key not in NODE_LOCAL_KEYS}
    settings["data.shards"] = shards_location(config.data.shards)  # the following collectives depend on it
    return describe_mismatch(
        gather_per_node(world, lambda: {**settings, **hash_config_files(settings)}),
        "{name} is {values}",
        "start every node with the same command and files",
    )


def shards_location(shards: str) -> str:
    return shards if is_remote(shards) else "a local folder" if shards else "empty"


def hash_config_files(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the digests of input files; unreadable files are reported later, when they are used."""
    return {f"the digest of {key}": digest[:12] for key, digest in digest_files(settings).items()}


def installed_versions() -> dict[str, str]:
    """Return the versions that must be equal on every node, by name."""
    return {
        "adadf_dist": adadf_dist.__version__,
        "the digest of adadf_dist's source files": source_hash(),
        "torch": torch.__version__,
        **{package: package_version(package) for package in CHECKED_PACKAGES},
        "python": platform.python_version(),
    }


def package_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@cache
def source_hash(folder: Path = Path(adadf_dist.__file__).parent) -> str:
    """Return the first 12 digits of the SHA-256 of the package's source files, to compare checkouts."""
    digest = hashlib.sha256()
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*.py")):
        content = (folder / path).read_bytes()
        digest.update(f"{path.as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def describe_mismatch(known: Mapping[str, Mapping[str, Any]], message: str, hint: str) -> UserError | None:
    """Return an error with the first name whose value differs between nodes, formatted into `message`."""
    for name in dict.fromkeys(name for values in known.values() for name in values):
        held: dict[str, list[str]] = {}
        for place, values in known.items():
            held.setdefault(str(values.get(name, "unknown")), []).append(place)
        if len(held) > 1:
            differing = " and ".join(f"{value} on {format_nodes(places)}" for value, places in held.items())
            return UserError(message.format(name=name, values=differing), hint)
    return None


def format_nodes(places: Sequence[str]) -> str:
    more = len(places) - MAX_NODES_LISTED
    return ", ".join(places[:MAX_NODES_LISTED]) + (f" and {more} more" if more > 0 else "")


def find_unshared_run_dir(folder: Path, world: World) -> UserError | None:
    """Return an error if a file that rank 0 writes to the run folder is not visible on every node.

    Collective: every rank must call this. Creates the folder; the test file is removed.
    """
    with ExitStack() as stack:
        token, problem = "", None
        if world.is_main:
            try:
                token = stack.enter_context(marker_file(folder)).name
            except OSError as error:
                problem = UserError(f"out: {folder} cannot be written ({error.strerror})", "choose another --out")
        token, problem = world.broadcast_object((token, problem))  # type: ignore[misc]
        if problem:
            return problem
        seen = gather_per_node(world, lambda: (wait_until_visible(folder / token), str(folder.absolute())))
    writer = next(iter(seen))
    blind = [f"{place} in {path}" for place, (found, path) in seen.items() if not found]
    if not blind:
        return None
    return UserError(
        f"out: {folder} is not shared: files written by {writer} to {seen[writer][1]} are not visible on "
        f"{format_nodes(blind)}",
        "choose an --out that all nodes share, because each reads the checkpoint from it when resuming",
    )


@contextmanager
def marker_file(folder: Path) -> Iterator[Path]:
    """Create a small temporary file in `folder`, which is created if missing. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".seen-by-all-{secrets.token_hex(8)}"
    try:
        path.write_text("test file: is this folder visible on all nodes?\n", encoding="utf-8")
        yield path
    finally:
        path.unlink(missing_ok=True)


def wait_until_visible(path: Path) -> bool:
    """Return whether a file becomes visible within `SHARED_FS_TIMEOUT_S`."""
    until = time.monotonic() + SHARED_FS_TIMEOUT_S
    while not path_exists(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def path_exists(path: Path) -> bool:
    """Return whether a path exists; False if its folder raises an error (a stale mount, no permission)."""
    try:
        return path.exists()
    except OSError:
        return False


def find_shards_mismatch(data: DataConfig, world: World) -> UserError | None:
    """Return an error if a node cannot read local `data.shards` or has a different dataset.

    Collective: every rank must call this.
    """
    found = gather_per_node(world, lambda: probe_shards(data))
    problems = {place: problem for place, (problem, _) in found.items() if problem}
    if len(problems) == len(found):
        return next(iter(problems.values()))
    if problems:
        problem = next(iter(problems.values()))
        well = format_nodes([place for place in found if place not in problems])
        return UserError(
            f"data.shards on {format_nodes(list(problems))}: {problem}; it can be read on {well}",
            "copy the dataset to every node, or use a folder that all nodes share",
        )
    return describe_mismatch(
        {place: {MANIFEST: digest} for place, (_, digest) in found.items()},
        "data.shards: the digest of {name} is {values}",
        "copy the same dataset to every node",
    )


def probe_shards(data: DataConfig) -> tuple[UserError | None, str]:
    """Return (problem or None, digest of dataset.json) of the dataset folder on this node."""
    folder = local_path(data.shards)
    try:
        open_dataset(folder, streamed_splits(data))
        return None, hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:12]
    except UserError as error:
        return error, ""
    except OSError as error:
        return UserError(f"{error.filename}: {error.strerror}"), ""
