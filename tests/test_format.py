"""The dataset folder: written once, read by us, by webdataset and by DALI; and every way in which it can be broken."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adadf_dist.data import dataset as dataset_format
from adadf_dist.data.build import builder
from adadf_dist.data.build.builder import BuildOptions, Provenance, SourceItem, build_dataset
from adadf_dist.data.build.writer import Sample, ustar_header
from adadf_dist.data.dataset import Dataset, Split, check_trainable, open_dataset
from adadf_dist.data.jpeg import Jpeg
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.data.workers.task_pool import ProcessPool
from adadf_dist.errors import UserError

CLASSES = ("calm", "glad", "cross")
COUNTS = {"train": 41, "test": 9}
PROVENANCE = Provenance("pictures", {})


def jpeg(number: int) -> Jpeg:
    """A small picture that no other number has."""
    width, height = 16 + number % 5, 16 + number % 3
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=80)
    return Jpeg(stream.getvalue(), width, height)


@dataclass(frozen=True)
class Pictures:
    """A source whose faces are known to the test: number n has label n % 3."""

    order: Sequence[int] = range(50)
    classes: tuple[str, ...] = CLASSES
    provenance: Provenance = PROVENANCE
    image_bytes: int = 50_000

    def items(self) -> list[SourceItem]:
        return [SourceItem("train" if n < COUNTS["train"] else "test", f"face_{n}", n) for n in self.order]

    def describe_item(self, number: int) -> str:
        return f"picture {number}"

    def label(self, number: int) -> int:
        return number % 3

    def fingerprint(self, number: int) -> bytes:
        return str(number).encode()

    def load(self, number: int) -> Sample:
        votes = None if number == 5 else [number % 4, number % 7, 1]
        return Sample(
            jpeg(number), number % 3, votes, [0.5, 0.25, 0.25], self.describe_item(number), {"room": number % 2}
        )


OPTIONS = BuildOptions(name="pictures", samples_per_shard=7)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build_dataset(Pictures(), tmp_path_factory.mktemp("built") / "pictures", OPTIONS)


@pytest.fixture
def copy(built: Dataset, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(built.folder, tmp_path / "copy"))


def number_of(key: str) -> int:
    return int(key.removeprefix("face_"))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What was written is what is read


@pytest.mark.parametrize(("name", "size"), [("a.jpg", 0), ("a" * 96 + ".jpg", 8**11 - 1), ("face_3.json", 12345)])
def test_headers_are_tarfiles(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    assert ustar_header(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("name", ["train", "test"])
def test_split_holds_what_the_source_gave(built: Dataset, name: str) -> None:
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


def test_dataset_json_says_what_the_files_are(built: Dataset) -> None:
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


def test_tars_are_ustar_without_traces_of_the_machine(built: Dataset) -> None:
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


def test_stored_order_is_global_and_drawn_from_the_seed(built: Dataset, tmp_path: Path) -> None:
    order = [number_of(key) for key in built.split("train").keys]
    first_shard = order[:7]
    assert max(first_shard) - min(first_shard) > 20, "the first tar should hold faces from all over"
    other = build_dataset(Pictures(), tmp_path / "other", replace(OPTIONS, seed=1))
    other_order = [number_of(key) for key in other.split("train").keys]
    assert other_order != order
    assert sorted(other_order) == sorted(order)


def test_rebuild_gives_the_same_bytes_whatever_order_the_source_lists(built: Dataset, tmp_path: Path) -> None:
    again = build_dataset(Pictures(order=range(49, -1, -1)), tmp_path / "again", OPTIONS)
    assert tree(again.folder) == tree(built.folder)


# Other readers


def test_webdataset_reads_the_same(built: Dataset) -> None:
    webdataset = pytest.importorskip("webdataset")
    split = built.split("train")
    urls = [str(built.folder / shard.file) for shard in built.splits["train"].shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == split.keys.tolist()
    assert [sample["cls"] for sample in samples] == split.labels.tolist()
    assert [sample["json"]["room"] for sample in samples] == [number_of(key) % 2 for key in split.keys]
    raw = webdataset.WebDataset(urls, shardshuffle=False)
    assert [sample["jpg"] for sample in raw] == [bytes(split.read(sample)) for sample in range(len(split))]


def test_dali_reads_the_same(built: Dataset) -> None:
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


def test_dali_index_is_what_dalis_own_tool_writes(built: Dataset, tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx")
    for path in sorted(built.folder.glob("*.tar")):
        with wds2idx.IndexCreator(str(path), str(tmp_path / "theirs"), verbose=False) as creator:
            creator.create_index()
        assert path.with_suffix(".idx").read_text() == (tmp_path / "theirs").read_text()


def test_gnu_tar_lists_a_shard_without_complaint(built: Dataset) -> None:
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


def test_views_outlive_the_mapping_that_makes_room(built: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_format, "MAX_OPEN_MMAPS", 1)
    split = built.split("train")
    views = [split.read(sample) for sample in range(len(split))]
    assert len(split._maps) == 1
    assert [bytes(view) for view in views] == [jpeg(number_of(key)).data for key in split.keys]


# What is wrong is told in one line


def edit_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_index(folder: Path, column: str, change: Callable[[list[Any]], object]) -> None:
    path = folder / "train.parquet"
    table = pq.read_table(path)
    cells = table[column].to_pylist()
    change(cells)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(cells, table.schema.field(column).type)), path)


def put(key: str, value: object) -> Callable[[Any], None]:
    """A change: table[key] = value; `key` may be a path with dots, numbers being places in a list."""

    def change(table: Any) -> None:
        *path, last = [int(word) if word.isdigit() else word for word in key.split(".")]
        for word in path:
            table = table[word]
        table[last] = value

    return change


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder gone": (shutil.rmtree, "no such dataset folder"),
    "no dataset.json": (lambda f: (f / "dataset.json").unlink(), "no dataset.json"),
    "newer": (lambda f: edit_json(f, put("format_version", 2)), "format version 2.*update adadf_dist"),
    "no version": (lambda f: edit_json(f, lambda table: table.pop("format_version")), "missing field format_version"),
    "damaged": (lambda f: os.truncate(f / "dataset.json", 300), "dataset.json: corrupt"),
    "no object": (lambda f: (f / "dataset.json").write_text("[]"), "not a JSON object"),
    "truncated tar": (lambda f: os.truncate(f / "train-000002.tar", 5000), "train-000002.tar: truncated: 5,000 bytes"),
    "longer tar": (lambda f: os.truncate(f / "train-000002.tar", 10**6), "train-000002.tar: changed"),
    "no tar": (lambda f: (f / "test-000001.tar").unlink(), "test-000001.tar: missing"),
    "no index": (lambda f: (f / "train.parquet").unlink(), "train.parquet: missing"),
    "damaged index": (lambda f: os.truncate(f / "train.parquet", 400), "train.parquet: corrupt"),
    "foreign index": (
        lambda f: pq.write_table(pa.table({"face": [1]}), f / "train.parquet"),
        "train.parquet: not an index",
    ),
    "index of another split": (
        lambda f: shutil.copy(f / "test.parquet", f / "train.parquet"),
        "train.parquet: 9 rows where dataset.json has 41",
    ),
    "outside the tar": (lambda f: edit_index(f, "offset", put("3", 10**9)), r"row 3 \(key face_.*outside its tar"),
    "beyond the tar": (lambda f: edit_index(f, "size", put("3", 10**9)), r"row 3 \(key face_.*outside its tar"),
    "negative offset": (lambda f: edit_index(f, "offset", put("3", -1)), "outside its tar"),
    "unknown shard": (lambda f: edit_index(f, "shard", put("4", 99)), "row 4 .*shard number"),
    "label too large": (lambda f: edit_index(f, "label", put("2", 3)), "row 2 .*label outside the 3 classes"),
    "label negative": (lambda f: edit_index(f, "label", put("2", -1)), "label outside the 3 classes"),
    "label empty": (lambda f: edit_index(f, "label", put("2", None)), "label has empty cells"),
    "labels miscounted": (
        lambda f: edit_index(f, "label", lambda cells: put("0", (cells[0] + 1) % 3)(cells)),
        "class counts differ from dataset.json",
    ),
    "votes too short": (lambda f: edit_index(f, "votes", put("0", [1.0])), "train.parquet: not an index"),
    "no samples": (lambda f: edit_json(f, put("splits.test.samples", 0)), "splits.test has no samples"),
    "samples miscounted": (lambda f: edit_json(f, put("splits.test.shards.0.samples", 3)), "counts that sum to 3"),
    "class twice": (lambda f: edit_json(f, put("classes", ["calm", "glad", "calm"])), "'calm' is listed twice"),
    "no classes": (lambda f: edit_json(f, put("classes", [])), "classes must be a list of names"),
    "unknown split": (lambda f: edit_json(f, put("splits.dev", {})), "'dev' is not one of"),
    "wrong type": (lambda f: edit_json(f, put("name", 5)), "name is '5', not of type str"),
    "path in file": (lambda f: edit_json(f, put("splits.test.index", "../x.parquet")), "not a plain file name"),
}


@pytest.mark.parametrize(("break_it", "line"), BREAKS.values(), ids=BREAKS)
def test_broken_dataset_is_told_in_one_line(copy: Path, break_it: Callable[[Path], object], line: str) -> None:
    open_dataset(copy).split("train")  # whole before
    break_it(copy)
    with pytest.raises(UserError, match=line) as error:
        open_dataset(copy).split("train")
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)


def test_missing_split_names_those_there(built: Dataset) -> None:
    with pytest.raises(UserError, match="no validation split; it has train, test"):
        built.split("validation")


def test_one_class_cannot_be_trained(built: Dataset) -> None:
    split = built.split("train")
    check_trainable(split)
    with pytest.raises(UserError, match="split train contains only class glad"):
        check_trainable(split.subset(np.flatnonzero(split.labels == 1), "train"))


# A folder appears whole or not at all


class BreakOffError(Exception):
    pass


@dataclass(frozen=True)
class Failing(Pictures):
    """Breaks off in the middle."""

    def load(self, number: int) -> Sample:
        if number == 20:
            raise BreakOffError
        return super().load(number)


def test_failed_build_spares_the_old(copy: Path, tmp_path: Path) -> None:
    before = tree(copy)
    with pytest.raises(BreakOffError):
        build_dataset(Failing(), copy, replace(OPTIONS, overwrite=True))
    with pytest.raises(BreakOffError):
        build_dataset(Failing(), tmp_path / "new", OPTIONS)
    assert tree(copy) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"copy", "copy.partial", "new.partial"}


def test_existing_dataset_is_replaced_only_when_told(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset already exists; pass --overwrite"):
        build_dataset(Pictures(), copy, OPTIONS)
    new = build_dataset(Pictures(), copy, replace(OPTIONS, samples_per_shard=50, overwrite=True))
    assert len(new.splits["train"].shards) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
    assert not (copy / "train-000001.tar").exists()


def test_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not a dataset folder"):
        build_dataset(Pictures(), tmp_path / "home", replace(OPTIONS, overwrite=True))
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_what_a_killed_build_left_is_cleared_away(built: Dataset, tmp_path: Path) -> None:
    partial = tmp_path / "new.partial"
    partial.mkdir()
    (partial / "train-000099.tar").write_bytes(b"half")
    new = build_dataset(Pictures(), tmp_path / "new", OPTIONS)
    assert tree(new.folder) == tree(built.folder)
    assert not partial.exists()


@dataclass(frozen=True)
class Stopping(Pictures):
    """Is asked for at most so many faces, and breaks off then."""

    asked: list[int] = field(default_factory=list)
    limit: int = 20

    def load(self, number: int) -> Sample:
        self.asked.append(number)
        if len(self.asked) > self.limit:
            raise BreakOffError
        return super().load(number)


def test_an_unfinished_build_is_gone_on_with(built: Dataset, tmp_path: Path) -> None:
    first, second = Stopping(), Stopping(limit=50)
    with pytest.raises(BreakOffError):
        build_dataset(first, tmp_path / "new", OPTIONS)
    assert not (tmp_path / "new").exists()
    output: list[int] = []
    new = build_dataset(second, tmp_path / "new", OPTIONS, on_samples=output.append)
    assert tree(new.folder) == tree(built.folder)
    assert sum(output) == 50
    done = (len(first.asked) - 1) // 7 * 7  # whole shards of 7 at most: 41 faces are 6 shards
    assert len(second.asked) <= 50 - done + 7
    assert len(second.asked) < 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def test_a_torn_tar_of_an_unfinished_build_is_written_again(built: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BreakOffError):
        build_dataset(Stopping(), tmp_path / "new", OPTIONS)
    with (tmp_path / "new.partial" / "train-000000.tar").open("r+b") as stream:
        stream.truncate(1000)
    assert tree(build_dataset(Pictures(), tmp_path / "new", OPTIONS).folder) == tree(built.folder)


def test_an_unfinished_build_with_other_options_is_noticed(built: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BreakOffError):
        build_dataset(Stopping(), tmp_path / "new", OPTIONS)
    with pytest.raises(UserError, match=r"samples_per_shard was 7, is 9.*--discard-partial"):
        build_dataset(Pictures(), tmp_path / "new", replace(OPTIONS, samples_per_shard=9))
    new = build_dataset(Pictures(), tmp_path / "new", replace(OPTIONS, samples_per_shard=9, restart=True))
    assert len(new.splits["train"].shards) == 5
    assert tree(build_dataset(Pictures(), tmp_path / "again", OPTIONS).folder) == tree(built.folder)


def test_a_disk_without_room_is_told_before_the_work(tmp_path: Path) -> None:
    source = Stopping(image_bytes=10**18)
    with pytest.raises(UserError, match=r"GB are free, but the dataset needs about 1000000000\.0 GB"):
        build_dataset(source, tmp_path / "new", OPTIONS)
    assert source.asked == []


def test_little_room_is_told_in_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.shutil, "disk_usage", lambda path: SimpleNamespace(free=7 * 10**4))
    with pytest.raises(UserError, match=r"0\.1 MB are free, but the dataset needs about 0\.2 MB"):  # 50 kB and 50 x 2.6
        build_dataset(Pictures(), tmp_path / "new", OPTIONS)
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Meeting(Pictures):
    """Starts the same build again from within."""

    out: Path = Path()

    def load(self, number: int) -> Sample:
        build_dataset(Pictures(), self.out, OPTIONS)
        return super().load(number)


def test_two_builds_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="locked by another build"):
        build_dataset(Meeting(out=tmp_path / "new"), tmp_path / "new", OPTIONS)


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 8 KB, as on a disk that is full; pytest's own log must not be written meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    full = r"train-000000\.tar: cannot be written: .*free some space"
    with pytest.raises(UserError, match=full) as error, small_files():
        build_dataset(Pictures(), tmp_path / "new", OPTIONS)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot be written: .*choose a writable folder"):
        build_dataset(Pictures(), tmp_path / "file" / "new", OPTIONS)


@dataclass(frozen=True)
class Deadly(Pictures):
    """Kills the process that loads from it."""

    def load(self, number: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_worker_is_a_one_line_error(tmp_path: Path) -> None:
    killed = r"^worker \d \(process \d+\) was killed by SIGKILL; .*--num-workers \(now 2\)$"
    with pytest.raises(UserError, match=killed):
        build_dataset(Deadly(), tmp_path / "new", OPTIONS, ProcessPool(2))
    assert list(tmp_path.iterdir()) == []


def test_what_fails_in_a_worker_fails_the_build(tmp_path: Path) -> None:
    with pytest.raises(BreakOffError):
        build_dataset(Failing(), tmp_path / "new", OPTIONS, ProcessPool(2))
    assert not (tmp_path / "new").exists()


# Drawn faces


def test_embedded_faces_are_a_dataset(tmp_path: Path) -> None:
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


def test_more_training_faces_leave_the_test_faces_alone(tmp_path: Path) -> None:
    few = build_synthetic_dataset(tmp_path / "few", {"train": 3, "test": 6}, size=32)
    many = build_synthetic_dataset(tmp_path / "many", {"train": 20, "test": 6}, size=32)
    other = build_synthetic_dataset(tmp_path / "other", {"train": 3, "test": 6}, size=32, seed=1)
    assert tree(few.folder)["test-000000.tar"] == tree(many.folder)["test-000000.tar"]
    assert tree(few.folder)["test-000000.tar"] != tree(other.folder)["test-000000.tar"]
