"""Published dataset layouts, each built from a small tree."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adadf_dist.data.dataset import Dataset
from adadf_dist.errors import UserError
from tests.helpers import dataset_trees as trees
from tests.helpers.dataset_builds import facts, findings, pixels, places, run_build
from tests.helpers.dataset_trees import jpeg, write

OFFICIAL = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
RAF = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
SFEW = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
NO_CARVING = ("--validation-fraction", 0)


def labels(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """Source -> (split, class)."""
    return {source: (split, dataset.classes[label]) for source, (split, label) in places(dataset).items()}


def stored(dataset: Dataset) -> dict[str, bytes]:
    """Source -> the JPEG."""
    found = {}
    for name in dataset.splits:
        split, output = dataset.split(name), facts(dataset, name)
        for number, key in enumerate(split.keys):
            found[output[str(key)]["source"]] = bytes(split.read(number))
    return found


@pytest.mark.parametrize("classes", [7, 8])
def test_affectnet_2017_is_built(classes: int, release_2017: Path, tmp_path: Path) -> None:
    dataset = run_build("affectnet", tmp_path / "out", "--root", release_2017, "--classes", classes, *NO_CARVING)
    assert dataset.classes == OFFICIAL[:classes]
    wanted = {
        f"Manually_Annotated_Images/{n % 3}/{n:02d}.jpg": ("train", OFFICIAL[n % 11])
        for n in range(22)
        if n % 11 < classes
    } | {f"Manually_Annotated_Images/9/v{n}.jpg": ("test", OFFICIAL[n]) for n in range(classes)}
    assert labels(dataset) == wanted
    found = findings(dataset)
    assert found["without_expression"] == 6  # 8, 9 and 10, twice each
    assert found.get("contempt_left_out", 0) == (0 if classes == 8 else 3)
    assert found["images_without_annotation"] == 0
    output = next(iter(facts(dataset, "train").values()))
    assert (output["box"], output["valence"], output["arousal"]) == ([4, 2, 20, 18], -0.25, 0.5)
    assert np.allclose(output["landmarks"], [[10 + i / 10, 5 + i / 10] for i in range(68)])


def test_affectnet_2017_crops_the_face(release_2017: Path, tmp_path: Path) -> None:
    """The box is 16 x 16 at (4, 2) of 40 x 30; with a margin of half a box it is 32 x 32, clipped to the image."""
    cut = run_build("affectnet", tmp_path / "cut", "--root", release_2017, *NO_CARVING)
    wide = run_build("affectnet", tmp_path / "wide", "--root", release_2017, "--margin", 0.5, *NO_CARVING)
    whole = run_build("affectnet", tmp_path / "whole", "--root", release_2017, "--no-crop", *NO_CARVING)
    for source, data in stored(whole).items():
        photo = release_2017 / source
        assert data == photo.read_bytes()
    split = cut.split("train")
    key = str(split.keys[0])
    photo = np.asarray(Image.open(release_2017 / facts(cut, "train")[key]["source"])).astype(int)
    assert np.abs(pixels(split, 0).astype(int) - photo[2:18, 4:20]).mean() < 4  # JPEG at quality 95
    assert pixels(wide.split("train"), 0).shape == (26, 28, 3)


def test_affectnet_2017_counts_skipped_rows(release_2017: Path, tmp_path: Path) -> None:
    csv = release_2017 / "training.csv"
    rows = csv.read_text().splitlines()
    again, other = trees.affectnet_row("0/00.jpg", 0), trees.affectnet_row("1/01.jpg", 5)
    csv.write_text("\n".join([*rows, again, other, trees.affectnet_row("2/gone.jpg", 1)]) + "\n")
    write(release_2017 / "Manually_Annotated_Images" / "0" / "extra.jpg", jpeg(999))
    with pytest.raises(UserError, match=r"2/gone\.jpg: cannot be read: No such file.*--max-bad-images 1"):
        run_build("affectnet", tmp_path / "out", "--root", release_2017, *NO_CARVING)
    dataset = run_build("affectnet", tmp_path / "out", "--root", release_2017, *NO_CARVING, "--max-bad-images", 1)
    found = findings(dataset)
    assert (found["repeated_rows"], found["repeated_rows_of_another_label"]) == (1, 1)
    assert (found["images_without_annotation"], found["skipped_images"]) == (1, 1)
    assert labels(dataset)["Manually_Annotated_Images/1/01.jpg"] == ("train", "happy")  # the first row wins


def test_affectnet_2017_box_outside_the_image_is_quarantined(release_2017: Path, tmp_path: Path) -> None:
    csv = release_2017 / "training.csv"
    csv.write_text(csv.read_text().replace("0/00.jpg,4,2,16,16", "0/00.jpg,400,2,16,16"))
    with pytest.raises(UserError, match=r"0/00\.jpg: face box \(400, 2, 416, 18\) leaves"):
        run_build("affectnet", tmp_path / "out", "--root", release_2017, *NO_CARVING)


def test_affectnet_2021_is_built(tmp_path: Path) -> None:
    root = tmp_path / "AffectNet"
    trees.affectnet_2021(root, [*range(8), *range(8)], list(range(8)))
    write(root / "train_set" / "images" / "77.jpg", jpeg(7777))
    np.save(root / "val_set" / "annotations" / "78_exp.npy", "1")
    dataset = run_build("affectnet", tmp_path / "out", "--root", root, "--classes", 7, *NO_CARVING)
    wanted = {f"train_set/images/{n}.jpg": ("train", OFFICIAL[n % 8]) for n in range(16) if n % 8 < 7}
    wanted |= {f"val_set/images/{n}.jpg": ("test", OFFICIAL[n]) for n in range(7)}
    assert labels(dataset) == wanted
    found = findings(dataset)
    assert (found["contempt_left_out"], found["images_without_annotation"]) == (3, 1)
    assert found["annotations_without_image"] == 1
    assert dataset.manifest.provenance["options"]["layout"] == "release of 2021"  # type: ignore[index, call-overload]
    assert all(data == (root / source).read_bytes() for source, data in stored(dataset).items())
    output = next(iter(facts(dataset, "test").values()))
    assert output["landmarks"] == np.arange(136.0).reshape(68, 2).tolist()


@pytest.mark.parametrize(
    "names",
    [[str(n) for n in range(8)], ["Neutral", "Happiness", "Sad", "surprise", "Fear", "Disgust", "Angry", "contempt"]],
)
def test_affectnet_as_folders_is_built(names: list[str], tmp_path: Path) -> None:
    trees.class_folders(tmp_path / "copy", {"train": names * 2, "val": names})
    dataset = run_build("affectnet", tmp_path / "out", "--root", tmp_path / "copy", *NO_CARVING)
    assert dataset.classes == OFFICIAL
    for source, (split, name) in labels(dataset).items():
        folder, given, _ = source.split("/")
        assert (split, name) == ({"train": "train", "val": "test"}[folder], OFFICIAL[names.index(given)])


# RAF-DB


def test_rafdb_is_built(tmp_path: Path) -> None:
    root = tmp_path / "basic"
    given = {f"train_{n:05d}.jpg": n % 7 + 1 for n in range(21)} | {f"test_{n:04d}.jpg": n + 1 for n in range(7)}
    trees.rafdb(root, given)
    write(
        root / "EmoLabel" / "distribution.txt", "train_00003.jpg 0.1 0.2 0.3 0.4 0 0\ntest_0000.jpg 1 0 0 0 0 0 0.5\n"
    )
    write(root / "Image" / "aligned" / "stray_aligned.jpg", jpeg(555))
    for base in (root, tmp_path / "over"):
        if base != root:
            base.mkdir()
            root.rename(base / "basic")
        dataset = run_build("rafdb", tmp_path / f"out-{base.name}", "--root", base, *NO_CARVING)
        assert dataset.classes == RAF
        prefix = "" if base == root else "basic/"
        wanted = {
            f"{prefix}Image/aligned/{name.removesuffix('.jpg')}_aligned.jpg": (name.partition("_")[0], RAF[label - 1])
            for name, label in given.items()
        }
        assert labels(dataset) == wanted
    found = findings(dataset)
    assert (found["images_without_label"], found["faces_with_votes"]) == (1, 2)
    train, output = dataset.split("train"), facts(dataset, "train")
    assert train.votes is not None
    row = next(n for n, key in enumerate(train.keys) if output[str(key)]["source"].endswith("train_00003_aligned.jpg"))
    assert train.votes[row].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0, 0, 0])
    assert train.votes.sum() == pytest.approx(1)


def test_rafdb_original_images_are_built(tmp_path: Path) -> None:
    given = {"train_00001.jpg": 4, "test_0001.jpg": 7}
    trees.rafdb(tmp_path / "raf", given | {f"train_{n}.jpg": n for n in range(1, 8)}, images="original")
    with pytest.raises(UserError, match=r"Image/aligned: no such folder; --images aligned needs it"):
        run_build("rafdb", tmp_path / "out", "--root", tmp_path / "raf")
    dataset = run_build("rafdb", tmp_path / "out", "--root", tmp_path / "raf", "--images", "original", *NO_CARVING)
    assert labels(dataset)["Image/original/train_00001.jpg"] == ("train", "happiness")


@pytest.mark.parametrize("images", ["aligned", "original"])
def test_rafdb_subgroups_are_stored(images: str, tmp_path: Path) -> None:
    """Gender, race and age as in RAF-DB's readme, for both kinds of images; landmarks alone, or an unknown number."""
    root = tmp_path / "basic"
    trees.rafdb(root, {f"train_{n}.jpg": n for n in range(1, 8)}, images)
    points = "1.5\t2\n" * 5
    for number, codes in {1: "0\n0\n0\n", 2: "1\n2\n4\n", 3: "2\n1\n7\n", 4: ""}.items():
        write(root / "Annotation" / "manual" / f"train_{number}_manu_attri.txt", points + codes)
    dataset = run_build("rafdb", tmp_path / "out", "--root", root, "--images", images, *NO_CARVING)
    output = {f["label"] + 1: [f.get(k) for k in ("gender", "race", "age")] for f in facts(dataset, "train").values()}
    assert output == {
        1: ["male", "Caucasian", "0-3"],
        2: ["female", "Asian", "70+"],
        3: ["unsure", "African-American", None],
        **{label: [None, None, None] for label in (4, 5, 6, 7)},
    }


# SFEW


@pytest.mark.parametrize("aligned", [False, True])
def test_sfew_is_built(aligned: bool, tmp_path: Path) -> None:
    root = tmp_path / "SFEW"
    inner = {"Train": "Train/Train_Aligned_Faces", "Val": "Val/Val_Aligned_Faces"} if aligned else {}
    trees.class_folders(root, {inner.get("Train", "Train"): SFEW * 2, inner.get("Val", "Val"): SFEW})
    (root / "Test").mkdir()
    write(root / "Test" / "unlabelled.jpg", jpeg(1))
    dataset = run_build("sfew", tmp_path / "out", "--root", root, *NO_CARVING)
    assert dataset.classes == SFEW
    for source, (split, name) in labels(dataset).items():
        assert source.split("/")[-2] == name
        assert split == {"Train": "train", "Val": "test"}[source.partition("/")[0]]


def test_sfew_with_a_labeled_test_split(tmp_path: Path) -> None:
    trees.class_folders(tmp_path / "SFEW", {"Train": SFEW, "Val": SFEW, "Test": SFEW})
    dataset = run_build("sfew", tmp_path / "out", "--root", tmp_path / "SFEW")
    assert {name: info.samples for name, info in dataset.splits.items()} == {"train": 7, "validation": 7, "test": 7}


# Lists


def test_csv_with_splits_and_votes_is_built(tmp_path: Path) -> None:
    lines = ["path,label,split,votes_sad,votes_glad,age"]
    for number in range(12):
        write(tmp_path / "pics" / f"gesicht-ä{number}.jpg", jpeg(number))
        split, label = ("train", "val", "test")[number % 3], ("glad", "sad")[number // 3 % 2]
        lines.append(f"gesicht-ä{number}.jpg,{label},{split},{number},{12 - number},30")
    csv = write(tmp_path / "list.csv", "\n".join(lines))
    dataset = run_build("csv", tmp_path / "out", "--csv", csv, "--root", tmp_path / "pics", "--classes", "glad,sad")
    assert dataset.classes == ("glad", "sad")
    for split, number, counts in votes_by_source(dataset):
        assert split == ("train", "validation", "test")[number % 3]
        assert counts == [12 - number, number]
    assert all(key.isascii() for name in dataset.splits for key in map(str, dataset.split(name).keys))


def votes_by_source(dataset: Dataset) -> list[tuple[str, int, list[float]]]:
    found = []
    for name in dataset.splits:
        split, output = dataset.split(name), facts(dataset, name)
        assert split.votes is not None
        for key, votes in zip(map(str, split.keys), split.votes.tolist(), strict=True):
            found.append((name, int(output[key]["source"].removeprefix("gesicht-ä").removesuffix(".jpg")), votes))
    return found


def test_csv_with_numeric_labels_is_built(tmp_path: Path) -> None:
    rows = "".join(f"{n}.jpg,{n % 3}\n" for n in range(9))
    for number in range(9):
        write(tmp_path / f"{number}.jpg", jpeg(number))
    csv = write(tmp_path / "list.csv", "path,label\n" + rows)
    assert run_build("csv", tmp_path / "plain", "--csv", csv, *NO_CARVING).classes == ("0", "1", "2")
    named = run_build("csv", tmp_path / "named", "--csv", csv, "--classes", "a,b,c", *NO_CARVING)
    assert labels(named)["4.jpg"] == ("train", "b")


# Files


def test_mixed_image_files_are_built(tmp_path: Path) -> None:
    """EXIF rotation is applied; a PNG named jpg is stored as a JPEG; circular links end."""
    root = tmp_path / "faces"
    trees.class_folders(root, {"train": ["a", "b"] * 3})
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated clockwise to be upright
    tall = Image.new("RGB", (40, 20), (200, 10, 10))
    tall.save(root / "train" / "a" / "turned.jpg", exif=exif)
    write(root / "train" / "b" / "png.jpg", jpeg(50, kind="PNG"))
    os.symlink(root / "train", root / "train" / "a" / "round")
    dataset = run_build("folder", tmp_path / "out", "--root", root, *NO_CARVING)
    sizes = {source: Image.open(io.BytesIO(data)) for source, data in stored(dataset).items()}
    assert sizes["train/a/turned.jpg"].size == (20, 40)
    assert sizes["train/b/png.jpg"].format == "JPEG"
    assert len(sizes) == 8


def test_long_files_are_distinguished_by_size_start_and_end(tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for split, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        trees.class_folders(tmp_path / "faces", {split: [name] * 2}, first=1000 * len(split) + ord(name))
    Image.fromarray(big).save(tmp_path / "faces" / "train" / "a" / "big.jpg", quality=100)
    data = (tmp_path / "faces" / "train" / "a" / "big.jpg").read_bytes()
    assert len(data) > 2**17
    write(tmp_path / "faces" / "test" / "b" / "copy.jpg", data)
    dataset = run_build("folder", tmp_path / "out", "--root", tmp_path / "faces", *NO_CARVING)
    assert findings(dataset)["leaks_dropped"] == 1
    assert "train/a/big.jpg" not in labels(dataset)


BROKEN: dict[str, tuple[bytes, str]] = {
    "truncated": (jpeg(1, (64, 64))[:300], "failed to decode"),
    "empty": (b"", "failed to decode"),
    "text": (b"<html>not found</html>", "failed to decode"),
    "tiny": (jpeg(2, (5, 5)), "each side must have at least 8"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_quarantined(name: str, tmp_path: Path) -> None:
    content, reason = BROKEN[name]
    given = {f"train_{n}.jpg": n % 7 + 1 for n in range(14)}
    trees.rafdb(tmp_path / "raf", given)
    write(tmp_path / "raf" / "Image" / "aligned" / "train_3_aligned.jpg", content)
    with pytest.raises(UserError, match=r"1 of 14 images are invalid.*train_3_aligned\.jpg"):
        run_build("rafdb", tmp_path / "out", "--root", tmp_path / "raf", *NO_CARVING)
    dataset = run_build("rafdb", tmp_path / "out", "--root", tmp_path / "raf", *NO_CARVING, "--max-bad-images", 1)
    assert reason in (dataset.folder / "skipped_images.csv").read_text()
    assert "0x" not in (dataset.folder / "skipped_images.csv").read_text()
    assert dataset.splits["train"].samples == 13


def test_rebuild_is_bit_identical(release_2017: Path, tmp_path: Path) -> None:
    half = ("--validation-fraction", 0.5)
    one, two = (run_build("affectnet", tmp_path / name / "x", "--root", release_2017, *half) for name in ("one", "two"))
    digests = [{p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in d.folder.iterdir()} for d in (one, two)]
    assert digests[0] == digests[1]
    assert Counter(split for split, _ in places(one).values())["validation"] > 0
