"""The dataset folder: file layout, determinism, and reading by this package, webdataset and DALI."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import pickle
import shutil
import subprocess
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adadf_dist.data import dataset as dataset_format
from adadf_dist.data.build.builder import build_dataset
from adadf_dist.data.build.writer import ustar_header
from adadf_dist.data.dataset import Dataset, Split
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from tests.helpers.numbered_images import CLASSES, COUNTS, OPTIONS, Pictures, jpeg, tree


def number_of(key: str) -> int:
    return int(key.removeprefix("face_"))


# Reading returns what was written


@pytest.mark.parametrize(("name", "size"), [("a.jpg", 0), ("a" * 96 + ".jpg", 8**11 - 1), ("face_3.json", 12345)])
def test_tar_headers_equal_tarfile(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    assert ustar_header(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("name", ["train", "test"])
def test_split_holds_the_samples_of_the_source(built: Dataset, name: str) -> None:
    split = built.split(name)
    numbers = [number_of(key) for key in split.keys]
    assert sorted(numbers) == [n for n in range(50) if (n < 41) == (name == "train")]
    for sample, number in enumerate(numbers):
        assert bytes(split.read(sample)) == jpeg(number).data
        assert split.labels[sample] == number % 3
        assert split.votes is not None
        assert split.distributions is not None
        assert split.votes[sample].tolist() == ([0, 0, 0] if number == 5 else [number % 4, number % 7, 1])
        assert split.distributions[sample].tolist() == [0.5, 0.25, 0.25]


def test_dataset_json_describes_the_files(built: Dataset) -> None:
    content = json.loads((built.folder / "dataset.json").read_text())
    assert content["format_version"] == 1
    assert content["classes"] == list(CLASSES)
    assert content["smallest_image"] == [16, 16]
    assert content["largest_image"] == [20, 18]
    for name, samples in COUNTS.items():
        split = content["splits"][name]
        assert split["samples"] == samples == sum(shard["samples"] for shard in split["shards"])
        assert max(shard["samples"] for shard in split["shards"]) <= 7
        for shard in split["shards"]:
            data = (built.folder / shard["file"]).read_bytes()
            assert shard["bytes"] == len(data)
            assert shard["sha256"] == hashlib.sha256(data).hexdigest()


def test_tars_are_ustar_without_machine_metadata(built: Dataset) -> None:
    for path in built.folder.glob("*.tar"):
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
        assert [member.name.split(".")[1] for member in members] == ["jpg", "cls", "json"] * (len(members) // 3)
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        header = path.read_bytes()[:512]
        assert header[257:265] == b"ustar\x0000"
        assert path.stat().st_size % 10240 == 0


def test_labels_in_the_tar_have_a_fixed_width(built: Dataset) -> None:
    with tarfile.open(built.folder / "test-000000.tar") as tar:
        labels = [tar.extractfile(m).read() for m in tar if m.name.endswith(".cls")]  # type: ignore[union-attr]
    assert {len(label) for label in labels} == {4}
    assert {int(label) for label in labels} <= {0, 1, 2}


def test_stored_order_is_a_global_permutation_by_seed(built: Dataset, tmp_path: Path) -> None:
    order = [number_of(key) for key in built.split("train").keys]
    first_shard = order[:7]
    assert max(first_shard) - min(first_shard) > 20, "the first tar should hold faces from all over"
    other = build_dataset(Pictures(), tmp_path / "other", replace(OPTIONS, seed=1))
    other_order = [number_of(key) for key in other.split("train").keys]
    assert other_order != order
    assert sorted(other_order) == sorted(order)


def test_rebuild_is_bit_identical_for_any_source_order(built: Dataset, tmp_path: Path) -> None:
    again = build_dataset(Pictures(order=range(49, -1, -1)), tmp_path / "again", OPTIONS)
    assert tree(again.folder) == tree(built.folder)


# Other readers


def test_webdataset_reads_the_same_samples(built: Dataset) -> None:
    webdataset = pytest.importorskip("webdataset")
    split = built.split("train")
    urls = [str(built.folder / shard.file) for shard in built.splits["train"].shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == split.keys.tolist()
    assert [sample["cls"] for sample in samples] == split.labels.tolist()
    assert [sample["json"]["room"] for sample in samples] == [number_of(key) % 2 for key in split.keys]
    raw = webdataset.WebDataset(urls, shardshuffle=False)
    assert [sample["jpg"] for sample in raw] == [bytes(split.read(sample)) for sample in range(len(split))]


def test_dali_reads_the_same_samples(built: Dataset) -> None:
    dali, fn = pytest.importorskip("nvidia.dali"), pytest.importorskip("nvidia.dali.fn")
    files = [built.folder / shard.file for shard in built.splits["train"].shards]

    @dali.pipeline_def(batch_size=8, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def read() -> Any:
        images, labels = fn.readers.webdataset(
            paths=[str(file) for file in files],
            index_paths=[str(file.with_suffix(".idx")) for file in files],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
        )
        return images, labels

    split, pipe = built.split("train"), read()
    pipe.build()
    images: list[bytes] = []
    labels: list[int] = []
    while len(images) < len(split):
        jpgs, digits = pipe.run()
        images += [np.asarray(jpgs.at(place)).tobytes() for place in range(8)]
        labels += [int(np.asarray(digits.at(place)).tobytes()) for place in range(8)]
    assert images[: len(split)] == [bytes(split.read(sample)) for sample in range(len(split))]
    assert labels[: len(split)] == split.labels.tolist()


def test_dali_index_equals_dalis_own_tool(built: Dataset, tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx")
    for path in sorted(built.folder.glob("*.tar")):
        with wds2idx.IndexCreator(str(path), str(tmp_path / "theirs"), verbose=False) as creator:
            creator.create_index()
        assert path.with_suffix(".idx").read_text() == (tmp_path / "theirs").read_text()


def test_gnu_tar_lists_a_shard(built: Dataset) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar program here")
    done = subprocess.run(["tar", "tf", built.folder / "test-000000.tar"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.split()) == 3 * built.splits["test"].shards[0].samples


# Splits in other processes, and parts of splits


def hash_sample(split: Split, sample: int) -> str:
    return hashlib.sha256(split.read(sample)).hexdigest()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_split_reads_in_worker_processes(built: Dataset, method: str) -> None:
    split = built.split("test")
    expected = [hash_sample(split, sample) for sample in range(len(split))]  # maps the tars here first
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert list(pool.map(hash_sample, [split] * len(split), range(len(split)))) == expected


def test_pickled_split_carries_no_image_bytes(built: Dataset) -> None:
    split = built.split("train")
    split.read(0)
    data = pickle.dumps(split)
    assert len(data) < 200 * len(split) + 4096
    assert bytes(pickle.loads(data).read(3)) == bytes(split.read(3))


def test_subset_renumbers_the_samples(built: Dataset) -> None:
    split, chosen = built.split("train"), np.array([7, 0, 30])
    part = split.subset(chosen, "validation")
    assert (part.name, len(part)) == ("validation", 3)
    for place, sample in enumerate(chosen.tolist()):
        assert part.keys[place] == split.keys[sample]
        assert part.labels[place] == split.labels[sample]
        assert bytes(part.read(place)) == bytes(split.read(sample))


def test_views_outlive_an_evicted_mapping(built: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_format, "MAX_OPEN_MMAPS", 1)
    split = built.split("train")
    views = [split.read(sample) for sample in range(len(split))]
    assert len(split._maps) == 1
    assert [bytes(view) for view in views] == [jpeg(number_of(key)).data for key in split.keys]


# Synthetic faces


def test_embedded_faces_open_as_a_dataset(tmp_path: Path) -> None:
    counts = {"train": 30, "validation": 5, "test": 6}
    dataset = build_synthetic_dataset(tmp_path / "faces", counts, size=32)
    assert {name: info.samples for name, info in dataset.splits.items()} == counts
    assert dataset.manifest.smallest_image == dataset.manifest.largest_image == (32, 32)
    split = dataset.split("train")
    assert split.votes is not None
    assert split.distributions is not None
    assert np.abs(split.distributions.sum(axis=1) - 1).max() < 1e-5
    assert (split.votes.sum(axis=1) > 0).all()
    assert Image.open(io.BytesIO(split.read(0))).size == (32, 32)


def test_more_training_faces_keep_the_test_faces(tmp_path: Path) -> None:
    few = build_synthetic_dataset(tmp_path / "few", {"train": 3, "test": 6}, size=32)
    many = build_synthetic_dataset(tmp_path / "many", {"train": 20, "test": 6}, size=32)
    other = build_synthetic_dataset(tmp_path / "other", {"train": 3, "test": 6}, size=32, seed=1)
    assert tree(few.folder)["test-000000.tar"] == tree(many.folder)["test-000000.tar"]
    assert tree(few.folder)["test-000000.tar"] != tree(other.folder)["test-000000.tar"]
