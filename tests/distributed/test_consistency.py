"""Ranks with different code, settings, folders or datasets are rejected: real processes, two "nodes"."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from adadf_dist.config.fields import Role
from adadf_dist.config.keys import keys_with
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.distributed.nodes import describe_mismatch
from adadf_dist.distributed.world import World, init_world
from adadf_dist.errors import UserError
from adadf_dist.training import consistency
from tests.helpers.forked import Start, finish_forked, two_nodes
from tests.helpers.nodes import finish_all, free_port, launcher_environment, words
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import ROOT, settings

HOST = socket.gethostname()


def our_lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("adadf_dist.train:", "adadf_dist.train["))]


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Path, Path]:
    folders = tmp_path / "node-a", tmp_path / "node-b"
    for folder in folders:
        folder.mkdir()
    return folders


def test_separate_run_folders_are_rejected_by_every_rank(faces: Path, nodes: tuple[Path, Path]) -> None:
    values = settings(faces, Path("runs/mine"), epochs="1")
    ended = two_nodes(nodes, values)
    for status, output in ended:
        assert status != 0
        (line,) = our_lines(output)
        assert (
            f"files written by {HOST} (rank 0) to {nodes[0] / 'runs/mine'} are not visible on {HOST} (rank 1)" in line
        )
        assert f"in {nodes[1] / 'runs/mine'}; choose an --out that all nodes share" in line
    left = [path.name for node in nodes for path in (node / "runs/mine").glob("*")]
    assert left == []


def test_shared_run_folder_of_two_nodes_is_accepted(faces: Path, nodes: tuple[Path, Path], tmp_path: Path) -> None:
    ended = two_nodes(nodes, settings(faces, tmp_path / "shared", epochs="1"))
    assert [status for status, _ in ended] == [0, 0], ended
    assert (tmp_path / "shared" / "result.json").exists()
    assert not list((tmp_path / "shared").glob(".seen*"))


def test_shards_on_only_one_node_are_rejected(faces: Path, nodes: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(faces, nodes[0] / "faces")
    ended = two_nodes(
        nodes, settings(Path("faces"), tmp_path / "shared", runtime__timeout_s="600")
    )  # no rank waits so long
    for status, output in ended:
        assert status != 0
        (line,) = our_lines(output)
        assert f"data.shards on {HOST} (rank 1): {nodes[1] / 'faces'}: no such dataset folder" in line
        assert f"it can be read on {HOST} (rank 0); copy the dataset to every node" in line


@pytest.mark.slow
def test_different_shards_on_another_node_are_rejected(faces: Path, nodes: tuple[Path, Path], tmp_path: Path) -> None:
    for node in nodes:
        shutil.copytree(faces, node / "faces")
    manifest = nodes[1] / "faces" / "dataset.json"
    manifest.write_text(manifest.read_text().replace("embedded-faces", "other-faces"))
    for status, output in two_nodes(nodes, settings(Path("faces"), tmp_path / "shared")):
        assert status != 0
        (line,) = our_lines(output)
        assert "data.shards: the digest of dataset.json is" in line
        assert "copy the same dataset to every node" in line


def test_different_checkouts_of_one_version_are_rejected(faces: Path, tmp_path: Path) -> None:
    """They differ in a comment; each rank starts in its own checkout."""
    other = tmp_path / "checkout"
    shutil.copytree(ROOT / "adadf_dist", other / "adadf_dist", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "adadf_dist" / "metrics" / "classification.py").open("a") as file:
        file.write("# changed\n")
    port = free_port()
    command = [sys.executable, "-m", "adadf_dist.train", *words(settings(faces, tmp_path / "out"))]
    ended = finish_all(
        [
            (ROOT, command, launcher_environment(0, port)),
            (other, command, {**launcher_environment(1, port), "PYTHONPATH": str(other)}),
        ]
    )
    mine, theirs = consistency.source_hash(), consistency.source_hash(other / "adadf_dist")
    assert mine != theirs
    for status, output in ended:
        assert status == 2
        (line,) = output.strip().splitlines()
        assert f"source files is {mine} on {HOST} (rank 0) and {theirs} on {HOST} (rank 1); all nodes must run" in line


def test_different_settings_on_another_node_are_rejected(faces: Path, tmp_path: Path) -> None:
    port = free_port()
    commands = []
    for rank, batch_size in enumerate(("16", "32")):
        values = settings(faces, tmp_path / "out", batch_size=batch_size)
        commands.append(Start(words(values), launcher_environment(rank, port)))
    for done in finish_forked(commands):
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert f"batch_size is 16 on {HOST} (rank 0) and 32 on {HOST} (rank 1); start every node with the" in line


def test_unreachable_rank_0_is_one_line(faces: Path, tmp_path: Path) -> None:
    """A worker whose rank 0 never starts gives up after the stated time, with one line."""
    port = free_port()
    values = settings(faces, tmp_path / "out", runtime__timeout_s="3")
    (done,) = finish_forked([Start(words(values), launcher_environment(1, port))], timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"adadf_dist.train[rank 1]: error: rank 0 cannot be reached at 127.0.0.1:{port}")
    assert "no connection within 3 s (runtime.timeout_s)" in line


@pytest.mark.slow
def test_missing_ranks_are_one_line(faces: Path, tmp_path: Path) -> None:
    """Rank 0 listens, and rank 1 never starts."""
    port = free_port()
    values = settings(faces, tmp_path / "out", runtime__timeout_s="3")
    (done,) = finish_forked([Start(words(values), launcher_environment(0, port))], timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"rendezvous of 2 ranks at 127.0.0.1:{port}" in line
    assert "within 3 s (runtime.timeout_s)" in line


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is '99999': set it to a free port"),
        ({"MASTER_ADDR": "no.such.host.invalid"}, "MASTER_ADDR is 'no.such.host.invalid'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"RANK": "5"}, "RANK is '5': give each rank a different number from 0 to 1"),
    ],
)
def test_contradictory_environment_is_one_line(
    wrong: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**launcher_environment(0, free_port()), **wrong}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught, init_world(1.0):
        pass
    assert str(caught.value).startswith(words)


KINDS = [("data/a", "data/b", ""), ("data/a", "", "a local folder"), ("data/a", "https://host/a", "https://host/a")]
"""`data.shards` of two ranks, and the reported value."""


def reported_kinds(world: World) -> list[str]:
    configs = [build_config([ConfigLayer("test", {"data.shards": pair[world.rank]})]) for pair in KINDS]
    return [str(consistency.find_config_mismatch(config, world) or "") for config in configs]


def test_shard_paths_may_differ_by_name_but_not_by_kind() -> None:
    for rank in run_ranks(reported_kinds, 2):
        for output, (_, _, wanted) in zip(rank, KINDS, strict=True):
            assert bool(output) == bool(wanted)
            assert wanted in output


def test_files_of_one_name_must_be_identical(tmp_path: Path) -> None:
    values = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "labels.csv").write_text(f"sample,label\nface,{number}\n")
    names = [str(tmp_path / str(number) / "labels.csv") for number in range(2)]
    values = [{"data.label_noise_file": name} for name in names]
    digests = [
        consistency.hash_config_files({**dict.fromkeys(keys_with(Role.INPUT_FILE), ""), **value}) for value in values
    ]
    assert digests[0].keys() == {"the digest of data.label_noise_file"}
    assert digests[0] != digests[1]


def test_folder_with_io_errors_is_not_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: Path) -> bool:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "exists", stale)
    assert not consistency.path_exists(Path("anything"))


def test_launcher_without_an_address_is_one_line(faces: Path, tmp_path: Path) -> None:
    start = Start(words(settings(faces, tmp_path / "out")), {"RANK": "1", "WORLD_SIZE": "2"})
    (done,) = finish_forked([start], timeout=60)
    assert done.returncode == 2
    assert "WORLD_SIZE is 2, but MASTER_ADDR is not set: start the ranks with torchrun" in done.stderr


def installation_of(world: World, versions: Sequence[str]) -> str:
    consistency.installed_versions = lambda: {"adadf_dist": "1", "torch": versions[world.rank]}
    return str(consistency.find_version_mismatch(world) or "")


def test_different_torch_versions_are_named_with_their_hosts() -> None:
    output = run_ranks(installation_of, 2, ("2.14.0", "2.15.0"))
    assert output[0] == output[1]
    assert output[0].startswith(f"torch is 2.14.0 on {HOST} (rank 0) and 2.15.0 on {HOST} (rank 1); all nodes must run")
    assert run_ranks(installation_of, 2, ("2.15.0", "2.15.0")) == ["", ""]


def test_many_differences_are_counted() -> None:
    known = {f"node-{rank} (rank {rank})": {"torch": "a" if rank else "b"} for rank in range(7)}
    named = "b on node-0 (rank 0) and a on node-1 (rank 1), node-2 (rank 2), node-3 (rank 3) and 3 more"
    assert str(describe_mismatch(known, "{name}: {values}", "hint")) == f"torch: {named}; hint"
