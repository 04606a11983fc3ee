"""Rebuilding after a failed build or a changed source gives the same dataset as a fresh build."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adadf_dist.data.build import builder, staging
from adadf_dist.data.build.builder import BuildOptions, build_dataset
from adadf_dist.data.dataset import Dataset, open_dataset
from adadf_dist.errors import UserError
from shards.build import build, parse_arguments
from tests.helpers.dataset_trees import jpeg
from tests.helpers.numbered_images import OPTIONS, Pictures

CLASSES = ("cross", "glad", "calm")
NUMBERS = range(30)


def build_csv(root: Path, out: Path, *options: str) -> Dataset:
    words = ["csv", "--csv", str(root / "list.csv"), "--out", str(out), "--name", "faces", "--num-workers", "1"]
    words += ["--samples-per-shard", "5", "--validation-fraction", "0"]
    return build(parse_arguments([*words, *options]))


def write_list(root: Path, labels: dict[int, str]) -> None:
    lines = [f"{number:02d}.jpg,{label}" for number, label in labels.items()]
    (root / "list.csv").write_text("\n".join(["path,label", *lines]) + "\n")


def labels_of(root: Path) -> dict[int, str]:
    lines = [line.split(",") for line in (root / "list.csv").read_text().splitlines()[1:]]
    return {int(path.removesuffix(".jpg")): label for path, label in lines}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """30 images and their list; image 7 cannot be decoded."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in NUMBERS:
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number))
    write_list(folder, {number: CLASSES[number % 3] for number in NUMBERS})
    (folder / "07.jpg").write_bytes(b"broken")
    return folder


def fix_image(root: Path) -> None:
    (root / "07.jpg").write_bytes(jpeg(7))


def add_image(root: Path) -> None:
    fix_image(root)
    (root / "30.jpg").write_bytes(jpeg(30))
    write_list(root, labels_of(root) | {30: "glad"})


def remove_bad_image(root: Path) -> None:
    (root / "07.jpg").unlink()
    write_list(root, {number: label for number, label in labels_of(root).items() if number != 7})


def remove_a_shard(root: Path) -> None:
    write_list(root, {number: label for number, label in labels_of(root).items() if not 7 <= number < 16})


def change_image(root: Path) -> None:
    fix_image(root)
    (root / "11.jpg").write_bytes(jpeg(99))


def change_label(root: Path) -> None:
    fix_image(root)
    write_list(root, labels_of(root) | {11: "cross"})


def rename_class(root: Path) -> None:
    fix_image(root)
    write_list(root, {number: label.replace("glad", "happy") for number, label in labels_of(root).items()})


CHANGES = (fix_image, add_image, remove_bad_image, remove_a_shard, change_image, change_label, rename_class)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_source_gives_a_fresh_build(root: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    with pytest.raises(UserError, match="1 of 30 images are invalid"):
        build_csv(root, tmp_path / "out")
    assert list((tmp_path / "out.partial").glob("*.tar"))
    change(root)
    resumed = build_csv(root, tmp_path / "out")
    assert tree(resumed.folder) == tree(build_csv(root, tmp_path / "fresh").folder)
    assert not (tmp_path / "out.partial").exists()


def test_only_the_shard_of_the_fixed_image_is_rewritten(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError):
        build_csv(root, tmp_path / "out")
    fix_image(root)
    written = []
    write = builder.build_shard
    monkeypatch.setattr(builder, "build_shard", lambda *args: written.append(args[1].path.name) or write(*args))
    build_csv(root, tmp_path / "out")
    assert len(written) == 1


def test_long_image_changed_in_its_middle_is_rewritten(root: Path, tmp_path: Path) -> None:
    image = jpeg(3)
    comment = b"\xff\xfe\xff\xff" + bytes(2**16 - 3)
    padded = image[:2] + 3 * comment + image[2:]
    (root / "03.jpg").write_bytes(padded)
    with pytest.raises(UserError):
        build_csv(root, tmp_path / "out")
    fix_image(root)
    stamp = (root / "03.jpg").stat().st_mtime_ns
    middle = len(padded) // 2
    (root / "03.jpg").write_bytes(padded[:middle] + b"x" + padded[middle + 1 :])
    os.utime(root / "03.jpg", ns=(stamp + 1, stamp + 1))
    resumed = build_csv(root, tmp_path / "out")
    assert tree(resumed.folder) == tree(build_csv(root, tmp_path / "fresh").folder)


def test_other_options_still_need_restart(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        build_csv(root, tmp_path / "out")
    fix_image(root)
    with pytest.raises(
        UserError, match=r"unfinished build with different settings \(seed was 0, is 1\).*--discard-partial"
    ):
        build_csv(root, tmp_path / "out", "--seed", "1")
    assert build_csv(root, tmp_path / "out", "--seed", "1", "--discard-partial").splits["train"].samples == 30


# A dataset is opened before it replaces another one


def without_index(folder: Path) -> None:
    (folder / "train.parquet").unlink()


def changed_index(folder: Path) -> None:
    (folder / "train.parquet").write_bytes((folder / "test.parquet").read_bytes())


def truncated_tar(folder: Path) -> None:
    tar = folder / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1])


def without_dali_index(folder: Path) -> None:
    (folder / "train-000000.idx").unlink()


def other_manifest(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "dataset.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


FAULTS: dict[str, Callable[[Path], None]] = {
    "empty class": other_manifest('"left"', '""'),
    "class twice": other_manifest('"left"', '"right"'),
    "version": other_manifest('"format_version": 1', '"format_version": 2'),
    "not JSON": other_manifest("{", ""),
    "split name": other_manifest('"train": {', '"training": {'),
    "no index": without_index,
    "other index": changed_index,
    "truncated tar": truncated_tar,
    "no DALI index": without_dali_index,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_invalid_dataset_does_not_replace_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    source = Pictures(classes=("left", "right", "front"))
    before = tree(build_dataset(source, out, OPTIONS).folder)
    assemble = builder.finalize_dataset

    def faulty(folder: Path, *args: object) -> None:
        assemble(folder, *args)  # type: ignore[arg-type]
        fault(folder)

    monkeypatch.setattr(builder, "finalize_dataset", faulty)
    again = BuildOptions(name="again", samples_per_shard=7, overwrite=True)
    with pytest.raises(UserError, match="could not be opened") as error:
        build_dataset(source, out, again)
    assert "\n" not in str(error.value)
    assert tree(out) == before
    monkeypatch.undo()
    assert build_dataset(source, out, again).name == "again"


@pytest.mark.parametrize("classes", [("left", "", "front"), ("left", "front", "left"), ()])
def test_bad_class_names_are_rejected_before_reading_images(tmp_path: Path, classes: tuple[str, ...]) -> None:
    before = tree(build_dataset(Pictures(), tmp_path / "out", OPTIONS).folder)
    again = BuildOptions(name="again", overwrite=True)
    with pytest.raises(UserError, match="classes"):
        build_dataset(Pictures(classes=classes), tmp_path / "out", again)
    assert tree(tmp_path / "out") == before
    assert not (tmp_path / "out.partial").exists()


def test_old_dataset_is_restored_when_the_swap_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    before = tree(build_dataset(Pictures(), out, OPTIONS).folder)
    rename = os.rename

    def refuse(old: Path, new: Path) -> None:
        if str(old).endswith(".partial"):
            raise PermissionError(13, "Permission denied", str(new))
        rename(old, new)

    monkeypatch.setattr(staging.os, "rename", refuse)
    with pytest.raises(UserError, match="cannot be written"):
        build_dataset(Pictures(), out, BuildOptions(name="again", overwrite=True))
    assert tree(out) == before
    assert open_dataset(out).name == "pictures"
