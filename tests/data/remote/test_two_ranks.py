"""Remote datasets on two ranks: one download per node, errors on all ranks, streaming."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.data.prepare import local_shards
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from tests.helpers.forked import train_forked
from tests.helpers.ranks import run_ranks
from tests.helpers.remote_datasets import TAR
from tests.helpers.remote_server import Fault, Site, serve
from tests.helpers.runs import numbers, settings


def list_available_tars(world: World, urls: list[str], folder: str) -> list[tuple[str, list[str]]]:
    """For each URL: the error message, or the tars that are available."""
    os.environ["LOCAL_RANK"] = str(world.rank)
    found = []
    for url in urls:
        config = build_config([ConfigLayer("test", {"data.shards": url, "data.cache_dir": folder})])
        try:
            with local_shards(config, world) as shards:
                found.append(("", sorted(path.name for path in shards.iterdir() if path.suffix == ".tar")))
        except UserError as error:
            found.append((str(error), []))
    return found


def test_one_rank_downloads_and_fails_for_all(site: Site, tmp_path: Path) -> None:
    site.faults = [Fault("train-.*tar", 3, stall_s=1.5)]
    shutil.copytree(site.folder, tmp_path / "other")
    (tmp_path / "other" / "dataset.json").write_text((site.folder / "dataset.json").read_text() + "\n")
    with serve(tmp_path / "other") as forbidden:
        forbidden.faults = [Fault(TAR, 999, status=403)]
        one, two = run_ranks(list_available_tars, 2, [site.url, forbidden.url], str(tmp_path / "cache"))
    assert one == two
    (message, tars), (error, no_tars) = one
    assert message == "" and len(tars) == 5
    assert set(site.count().values()) == {1}
    assert TAR in error and "access refused (403)" in error and "\n" not in error
    assert no_tars == []


@pytest.mark.slow
def test_two_ranks_train_from_a_url(site: Site, original: Path, tmp_path: Path) -> None:
    """Each file is downloaded once per node, even if that exceeds the ranks' timeout; the run equals the local one."""
    site.faults = [Fault("train-.*tar", 3, stall_s=8)]
    values = settings(
        Path("x"), tmp_path / "run", epochs="1", runtime__timeout_s="6", data__cache_dir=str(tmp_path / "c")
    )
    done = train_forked({**values, "data.shards": site.url}, 2, timeout=120)
    assert done.returncode == 0, done.stderr
    assert set(site.count().values()) == {1}
    local = train_forked(settings(original, tmp_path / "local", epochs="1"), 2, timeout=120)
    assert local.returncode == 0, local.stderr
    assert numbers(tmp_path / "run", "step") == numbers(tmp_path / "local", "step")


@pytest.mark.slow
def test_two_ranks_end_soon_when_one_download_fails(site: Site, tmp_path: Path) -> None:
    site.faults = [Fault(TAR, 999, status=403)]
    values = settings(Path("x"), tmp_path / "run", data__cache_dir=str(tmp_path / "c"), runtime__timeout_s="600")
    done = train_forked({**values, "data.shards": site.url}, 2, timeout=60)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith(("adadf_dist.train:", "adadf_dist.train["))]
    assert lines and all("access refused (403)" in line and TAR in line for line in lines), done.stderr


@pytest.mark.slow
def test_two_ranks_train_from_a_stream(site: Site, tmp_path: Path) -> None:
    values = settings(Path("x"), tmp_path / "run", data__cache_dir=str(tmp_path / "c"), data__access="stream")
    values |= {"data.shards": site.url, "data.num_workers": "2"}
    done = train_forked(values, 2, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "training tars are streamed" in done.stdout
    assert json.loads((tmp_path / "run" / "run_info.json").read_text())["access"]
    assert len(numbers(tmp_path / "run", "epoch")) == 2
