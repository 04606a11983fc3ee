"""Leftovers of an environment: launcher variables, broken packages, unwritable folders."""

from __future__ import annotations

import builtins
import errno
import importlib
from pathlib import Path
from typing import Any

import numba.core.caching
import numpy as np
import pytest
import torchvision

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import ModelConfig
from adadf_dist.data import datamodule
from adadf_dist.data.augment import compiled
from adadf_dist.distributed.environment import (
    local_rank_from_env,
    num_nodes_from_env,
    rank_from_env,
    world_size_from_env,
)
from adadf_dist.distributed.world import init_world
from adadf_dist.errors import UserError, install_or_repair
from adadf_dist.method.pretrained import imagenet_weights
from adadf_dist.tracking.async_tracker import AsyncTracker
from adadf_dist.tracking.tensorboard import TensorBoardSink
from tests.helpers.runs import settings

LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("value", ["", " ", "3", "garbage"])
@pytest.mark.parametrize("name", [name for name in LAUNCHER if name != "WORLD_SIZE"])
def test_leftover_launcher_variables_are_ignored(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without WORLD_SIZE there is one process, whatever else an earlier launcher exported."""
    monkeypatch.setenv(name, value)
    found = world_size_from_env(), rank_from_env(), local_rank_from_env(), num_nodes_from_env()
    assert found == (1, 0, 0, 1)
    with init_world() as world:
        assert world.size == 1


@pytest.mark.parametrize("value", ["", "1", " 1 "])
def test_world_of_one_process(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    monkeypatch.setenv("LOCAL_RANK", "")
    with init_world() as world:
        assert (world.size, local_rank_from_env()) == (1, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORLD_SIZE", "two"), ("WORLD_SIZE", "²"), ("LOCAL_RANK", "first"), ("LOCAL_RANK", "-1"), ("RANK", "x")],
)
def test_invalid_launcher_variables_are_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other, usual in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(other, usual)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name} is {value!r}") as caught:
        local_rank_from_env() if name == "LOCAL_RANK" else init_world(1.0).__enter__()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_empty_variable_counts_as_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other, usual in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(other, usual)
    monkeypatch.setenv(name, "")
    with pytest.raises(UserError, match=f"^WORLD_SIZE is 2, but {name} is not set"), init_world(1.0):
        pass


def test_long_ray_socket_paths_are_shortened() -> None:
    cluster = pytest.importorskip("tune.runners.ray_cluster")
    error = OSError(f"validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /{'x' * 120}/s")
    output = cluster.why_not_started(error)
    assert "shorten TMPDIR" in output
    assert "--address" not in output


def test_local_search_looks_for_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = pytest.importorskip("tune.runners.ray_cluster")

    def fail(**more: Any) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr(cluster.ray, "init", fail)
    with pytest.raises(UserError, match=r"^Ray failed to start: .*shorten TMPDIR"), cluster.connect(""):
        pass


@pytest.mark.parametrize("error", [ImportError("cannot import name"), TypeError("Descriptors cannot be created")])
def test_broken_tensorboard_gives_a_warning(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = builtins.__import__

    def broken(name: str, *more: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise error
        return own(name, *more)

    monkeypatch.setattr(builtins, "__import__", broken)
    board = TensorBoardSink(tmp_path / "tensorboard", purge_step=0)
    for step in range(3):
        board.add("train", {"total": 1.0}, step)
    board.flush()
    board.close()
    output = capsys.readouterr().err
    assert output.count("warning: TensorBoard does not work (") == 1
    assert str(error) in output


def test_broken_tracker_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_tracker.py").write_text("raise TypeError('Descriptors cannot be created')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("adadf_dist.tracking.async_tracker.MODULES", {"wandb": "broken_tracker"})
    tracker = AsyncTracker("wandb", build_config([ConfigLayer("test", settings(tmp_path, tmp_path / "out"))]))
    tracker.add("train", {"total": 1.0}, 1)
    tracker.close()
    output = capsys.readouterr().err
    assert output.count("warning: wandb: import failed (Descriptors cannot be created)") == 1


def test_uncacheable_compiled_code_is_handled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a read-only package and no home, numba has no place for its cache."""
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])

    def double(values: Any) -> Any:
        return values * 2

    fast = compiled.compiled(double)
    assert fast(np.arange(3)).tolist() == [0, 2, 4]
    compiled.report_uncached()
    compiled.report_uncached()
    assert capsys.readouterr().err.count("NUMBA_CACHE_DIR") == 1


def test_installation_is_advised_for_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert install_or_repair(ModuleNotFoundError("No module named 'x'"), "tune") == (
        "install it with pip install 'adadf_dist[tune]'"
    )
    own = importlib.import_module

    def broken(name: str) -> Any:
        if name == datamodule.DALI_LOADER:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return own(name)

    monkeypatch.setattr(datamodule, "import_module", broken)
    output = datamodule.dali_unavailable_reason()
    assert "libcuda.so.1" in output
    assert "it is installed but broken" in output


def test_uncacheable_weights_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Weights:
        def get_state_dict(self, **more: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", "/.cache")

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: {"IMAGENET1K_V1": Weights()})
    with pytest.raises(UserError, match=r"cannot be stored in /\.cache .*TORCH_HOME"):
        imagenet_weights(ModelConfig().backbone, 224)
