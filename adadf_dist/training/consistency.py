"""Check before a multi-rank run that all nodes have the same code and settings, and share the run folder.

Without these checks, differences between nodes would show up late or never: as wrong gradients, as a missing checkpoint
when resuming, or as a rank that exits while the others wait. Each check is a collective with the same result on every
rank, so all ranks exit together with a message that names the node.
"""

from __future__ import annotations

import hashlib
import platform
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

import adadf_dist
from adadf_dist.config.fields import Role
from adadf_dist.config.keys import flatten, keys_with
from adadf_dist.config.load import to_dict
from adadf_dist.config.schema import Config
from adadf_dist.data.identity import digest_files
from adadf_dist.data.remote.client import is_remote
from adadf_dist.distributed.environment import num_nodes_from_env
from adadf_dist.distributed.nodes import describe_mismatch, format_nodes, gather_per_node
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError

SHARED_FS_TIMEOUT_S = 6.0
"""Seconds to wait until other nodes see a new file on a shared file system; NFS caches attributes for at least 3 s."""

CHECKED_PACKAGES = ("torchvision", "numpy", "nvidia-dali-cuda120", "deepspeed", "timm")
"""Packages besides torch whose versions can affect the result of a training step."""


def check_consistency(config: Config, world: World) -> None:
    """Raise `UserError` on every rank unless all nodes have the same code, settings and run folder. Collective."""
    if world.size == 1:
        return
    problem = find_version_mismatch(world) or find_config_mismatch(config, world)
    if not problem and config.out and num_nodes_from_env() > 1:
        problem = find_unshared_run_dir(Path(config.out), world)
    if problem:
        raise problem


def find_version_mismatch(world: World) -> UserError | None:
    """Return a `UserError` if package versions differ between nodes, otherwise None. Collective."""
    return describe_mismatch(
        gather_per_node(world, installed_versions),
        "{name} is {values}",
        "all nodes must run the same code; install the same versions on every node",
    )


def find_config_mismatch(config: Config, world: World) -> UserError | None:
    """Return a `UserError` if a configuration key differs between nodes, otherwise None. Collective."""
    settings = {key: value for key, value in flatten(to_dict(config)) if key not in keys_with(Role.PER_NODE)}
    shards = config.data.shards  # the following collectives depend on where they are, not on the path
    settings["data.shards"] = shards if is_remote(shards) else "a local folder" if shards else "empty"
    return describe_mismatch(
        gather_per_node(world, lambda: {**settings, **hash_config_files(settings)}),
        "{name} is {values}",
        "start every node with the same command and files",
    )


def hash_config_files(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the digests of the input files. Unreadable files are skipped; they are reported when they are used."""
    return {f"the digest of {key}": digest[:12] for key, digest in digest_files(settings).items()}


def installed_versions() -> dict[str, str]:
    """Return the versions that must be the same on every node, by package name."""
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
    """Return a digest of the package's source files (12 hex digits of SHA-256), for comparing installations."""
    digest = hashlib.sha256()
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*.py")):
        content = (folder / path).read_bytes()
        digest.update(f"{path.as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def find_unshared_run_dir(folder: Path, world: World) -> UserError | None:
    """Return a `UserError` if a file that rank 0 writes to the run folder is not visible on every node, otherwise None.

    Collective: every rank must call this. Creates the folder if it is missing, and removes the test file at the end.
    """
    with ExitStack() as stack:
        token, problem = "", None
        if world.is_main:
            try:
                token = stack.enter_context(marker_file(folder)).name
            except OSError as error:
                problem = UserError(f"--out {folder}: not writable ({error.strerror})", "choose another folder")
        token, problem = world.broadcast_object((token, problem))  # type: ignore[misc]
        if problem:
            return problem
        nodes = gather_per_node(world, lambda: (wait_until_visible(folder / token), str(folder.absolute())))
    writer = next(iter(nodes))
    without_file = [f"{node} in {path}" for node, (visible, path) in nodes.items() if not visible]
    if not without_file:
        return None
    return UserError(
        f"out: {folder} is not shared by all nodes: files written by {writer} to {nodes[writer][1]} are not visible on "
        f"{format_nodes(without_file)}",
        "choose an --out that all nodes share, because each node reads the checkpoint from it when resuming",
    )


@contextmanager
def marker_file(folder: Path) -> Iterator[Path]:
    """Create a small file in `folder` (created if missing), and remove it when the block ends.

    Raises `OSError` if the file cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".seen-by-all-{secrets.token_hex(8)}"
    try:
        path.write_text("test file: is this folder visible on all nodes?\n", encoding="utf-8")
        yield path
    finally:
        path.unlink(missing_ok=True)


def wait_until_visible(path: Path) -> bool:
    """Wait up to `SHARED_FS_TIMEOUT_S` for a file to become visible, and return whether it did."""
    until = time.monotonic() + SHARED_FS_TIMEOUT_S
    while not path_exists(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def path_exists(path: Path) -> bool:
    """Return whether a path exists; False if its folder cannot be accessed (stale mount, missing permission)."""
    try:
        return path.exists()
    except OSError:
        return False
