"""What the tests of remote datasets share: datasets to serve, configurations, downloads into a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config, DataConfig
from adadf_dist.data.build.builder import BuildOptions, build_dataset
from adadf_dist.data.datamodule import open_data
from adadf_dist.data.remote.cache import ensure_cached
from adadf_dist.data.remote.client import RetryPolicy
from adadf_dist.data.synthetic.dataset import make_synthetic_source
from adadf_dist.errors import UserError
from tests.helpers.remote_server import Site

QUICK = RetryPolicy(attempts=4, initial_backoff_s=0.01, read_timeout_s=20, chunk_bytes=4096)
CPU = torch.device("cpu")
TAR = "train-000001.tar"


def build(out: Path, seed: int = 0, **counts: int) -> Path:
    source = make_synthetic_source(counts or {"train": 60, "validation": 12, "test": 10}, 32, seed)
    build_dataset(source, out, BuildOptions(name="drawn", seed=seed, samples_per_shard=20))
    return out


def data_config(site: Site | str, tmp_path: Path, **more: object) -> DataConfig:
    url = site if isinstance(site, str) else site.url
    return DataConfig(shards=url, cache_dir=str(tmp_path / "cache"), **more)  # type: ignore[arg-type]


def fetch(config: DataConfig, transfer: RetryPolicy = QUICK) -> Path:
    with ensure_cached(config, transfer=transfer) as folder:
        return folder


def assert_same_files(folder: Path, original: Path) -> None:
    """Assert that every file of dataset.json exists with equal bytes."""
    names = [p.name for p in original.iterdir() if p.suffix in (".tar", ".parquet") or p.name == "dataset.json"]
    assert len(names) == 9
    for name in names:
        assert (folder / name).read_bytes() == (original / name).read_bytes(), name
    assert not list(folder.glob("*.partial"))


def fetch_error(config: DataConfig, transfer: RetryPolicy = QUICK) -> str:
    with pytest.raises(UserError) as caught:
        fetch(config, transfer)
    message = str(caught.value)
    assert "\n" not in message
    return message


def run_config(shards: str, tmp_path: Path, **more: object) -> Config:
    values = {
        "data.shards": shards,
        "data.cache_dir": str(tmp_path / "cache"),
        "data.image_size": 32,
        "batch_size": 14,
        "data.shuffle_buffer": 8,
    }
    return build_config([ConfigLayer("test", values | {k.replace("__", "."): v for k, v in more.items()})])


def streamed(config: Config, rank: int, ranks: int, epoch: int = 0, first: int = 0) -> list[int]:
    with open_data(config, rank, ranks, CPU) as opened:
        return [s for batch in opened.train_batches(epoch, first) for s in batch.sample_ids.tolist()]
