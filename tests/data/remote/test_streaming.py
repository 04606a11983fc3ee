"""Streaming from a server: order, coverage, faults."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from adadf_dist.data.batch import Batch
from adadf_dist.data.datamodule import open_data
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.loaders.streaming import StreamPlan
from adadf_dist.data.remote.client import Remote
from adadf_dist.errors import UserError
from tests.helpers.remote_datasets import CPU, QUICK, build, run_config, streamed
from tests.helpers.remote_server import Fault, Site


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 1), (2, 2), (3, 0)])
def test_streaming_visits_each_sample_once_in_equal_steps(
    site: Site, original: Path, tmp_path: Path, ranks: int, workers: int
) -> None:
    """Three tars over any number of workers: none runs dry, every rank has its slice of every global batch."""
    config = run_config(site.url, tmp_path, data__access="stream", data__num_workers=workers)
    split = open_dataset(original).split("train")
    everything: list[list[Batch]] = []
    for rank in range(ranks):
        with open_data(config, rank, ranks, CPU) as opened:
            batches = list(opened.train_batches(0))
            assert len(batches) == opened.num_batches(0) == 5
            everything.append(batches)
            evaluation = [s for batch in opened.val_batches() for s in batch.sample_ids.tolist()]
            assert len(set(evaluation)) == len(evaluation)
    for pieces in zip(*everything, strict=True):
        assert sum(len(p.labels) for p in pieces) == pieces[0].global_size == 12
        assert [p.offset for p in pieces] == [sum(len(p.labels) for p in pieces[:n]) for n in range(ranks)]
    seen = [s for batches in everything for b in batches for s in b.sample_ids.tolist()]
    assert Counter(seen) == Counter(range(60))
    for batch in everything[0]:
        assert batch.labels.tolist() == split.labels[batch.sample_ids.numpy()].tolist()
    assert not list((tmp_path / "cache").rglob("train*.tar*"))


def test_streamed_images_equal_cached_ones(site: Site, original: Path, tmp_path: Path) -> None:
    images = []
    for access in ("cache", "stream"):
        config = run_config(site.url if access == "stream" else str(original), tmp_path, data__access=access)
        with open_data(config, 0, 1, CPU) as opened:
            images.append(
                {s: i for b in opened.train_batches(1) for s, i in zip(b.sample_ids.tolist(), b.images, strict=True)}
            )
    assert images[0].keys() == images[1].keys() == set(range(60))
    assert all(torch.equal(images[0][n], images[1][n]) for n in range(60))


def test_streamed_order_is_shuffled_repeats_and_resumes(original: Path, tmp_path: Path) -> None:
    config = run_config(str(original), tmp_path, data__access="stream", data__num_workers=0)
    first, again, other = (streamed(config, 0, 1, epoch) for epoch in (0, 0, 1))
    assert first == again != other
    assert first != sorted(first)
    assert streamed(config, 0, 1, 0, first=2) == first[24:]


def test_runs_cover_every_epoch_exactly(original: Path) -> None:
    split = open_dataset(original).split("train")
    for ranks in (1, 2, 5):
        for lanes in (1, 3):
            for number in (0, 1):
                epoch = StreamPlan(split, [16, 15, 15, 14], 3, number)
                runs = [run for r in range(ranks) for n in range(lanes) for run in epoch.runs(r, ranks, n, lanes)]
                assert sorted(s for run in runs for s in run.samples.tolist()) == list(range(60))
                assert len(runs) <= 3 + ranks * lanes  # a tar is opened once, and again where a run starts in it
                size = {n: (original / name).stat().st_size for n, name in enumerate(split.shards)}
                assert all(0 <= run.start < run.end <= size[run.shard] for run in runs)


def test_streaming_retries_faults_and_names_permanent_ones(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adadf_dist.data.datamodule.Remote", lambda url: Remote(url, QUICK))
    config = run_config(site.url, tmp_path, data__access="stream", data__num_workers=1)
    site.faults = [Fault("train-.*tar", 2, cut=0.5), Fault("train-.*tar", 1, status=500)]
    assert sorted(streamed(config, 0, 1)) == list(range(60))
    site.faults = [Fault("train-.*tar", 999, status=500)]
    with pytest.raises(UserError, match=r"train-00000\d\.tar: the server answered 500 \(4 attempts"):
        streamed(config, 0, 1)
    site.faults = [Fault("train-.*tar", 999, wrong=True)]
    with pytest.raises(UserError, match="tar does not match its index"):
        streamed(config, 0, 1)


def test_unsupported_streaming_options_are_one_line(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.sampler .* data\.access is stream"):
        run_config(site.url, tmp_path, data__access="stream", data__sampler="balanced")
    build(tmp_path / "two", train=20, test=5)
    config = run_config(str(tmp_path / "two"), tmp_path, data__access="stream")
    with pytest.raises(UserError, match="no validation split"), open_data(config, 0, 1, CPU):
        pass
