"""The builder and its sources, and the verifier, against naive recomputations and every bad input we could think of."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from adadf_dist.data.dataset import Dataset, Split, open_dataset
from adadf_dist.errors import UserError
from shards.build import build, parse_arguments, summary
from shards.build import main as build_main
from shards.duplicates import hold_out_splits
from shards.verify import main as verify_main
from shards.verify import verify
from tests.patience import wait_until

ROOT = Path(__file__).parents[1]
FER2013 = ROOT.parent / "shared" / "data" / "fer2013"
FER = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
FERPLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
FER_AS_FERPLUS = {"angry": "anger", "happy": "happiness", "sad": "sadness"}


def run_build(source: str, out: Path, *options: object, workers: int = 1) -> Dataset:
    """The command line, in this process."""
    words = [source, "--out", out, "--num-workers", workers, *options]
    return build(parse_arguments([str(word) for word in words]))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def findings(dataset: Dataset) -> Mapping[str, Any]:
    found = dataset.manifest.built["findings"]
    assert isinstance(found, Mapping)
    return found


def facts(dataset: Dataset, split: str) -> dict[str, dict[str, Any]]:
    """KEY.json by key, read with tarfile."""
    found = {}
    for shard in dataset.splits[split].shards:
        with tarfile.open(dataset.folder / shard.file) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    found[member.name.removesuffix(".json")] = json.load(tar.extractfile(member))  # type: ignore[arg-type]
    return found


def pixels(split: Split, sample: int) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(split.read(sample))))


def places(dataset: Dataset) -> dict[str, tuple[str, int]]:
    """Source -> (split, label) of every stored face."""
    found = {}
    for name in dataset.splits:
        split, output = dataset.split(name), facts(dataset, name)
        for key, label in zip(split.keys, split.labels, strict=True):
            found[output[key]["source"]] = (name, int(label))
    return found


# FER2013 as it is


@pytest.fixture(scope="module")
def mini() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The rows of the two small files, read with csv alone."""
    if not (FER2013 / "mini_fer2013.csv.gz").is_file():
        pytest.skip("FER2013 is not at hand here")
    with gzip.open(FER2013 / "mini_fer2013.csv.gz", "rt") as stream:
        faces = list(csv.DictReader(stream))
    with (FER2013 / "mini_fer2013new.csv").open() as stream:
        return faces, list(csv.DictReader(stream))


MINI = ("--csv", FER2013 / "mini_fer2013.csv.gz", "--ferplus", FER2013 / "mini_fer2013new.csv")


@pytest.fixture(scope="module")
def ferplus(mini: object, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return run_build("fer2013", tmp_path_factory.mktemp("fer") / "ferplus", *MINI, "--samples-per-shard", 100)


def test_ferplus_labels_votes_and_leaks_match_a_naive_count(
    ferplus: Dataset, mini: tuple[list[dict[str, str]], list[dict[str, str]]]
) -> None:
    faces, votes = mini
    expected: dict[int, int] = {}
    for row, cells in enumerate(votes):
        counts = [int(cells[name]) for name in FERPLUS]
        if sum(counts):
            expected[row] = counts.index(max(counts))
    test = {row for row in expected if faces[row]["Usage"] == "PublicTest"}
    test_pixels = {faces[row]["pixels"] for row in test}
    leaks = {row for row in expected if row not in test and faces[row]["pixels"] in test_pixels}
    assert leaks, "the small files are known to hold leaks"
    stored = places(ferplus)
    assert {source.split()[-1] for source in stored} == {str(row) for row in expected.keys() - leaks}
    for row in expected.keys() - leaks:
        split, label = stored[f"mini_fer2013.csv.gz row {row}"]
        assert label == expected[row]
        assert (split == "test") == (row in test)
    assert findings(ferplus)["leaks_dropped"] == len(leaks)
    with (ferplus.folder / "leaks.csv").open() as stream:
        listed = [line["source"] for line in csv.DictReader(stream)]
    assert sorted(listed) == sorted(f"mini_fer2013.csv.gz row {row}" for row in leaks)


def test_ferplus_votes_and_pixels_are_those_of_the_row(
    ferplus: Dataset, mini: tuple[list[dict[str, str]], list[dict[str, str]]]
) -> None:
    faces, votes = mini
    for name in ferplus.splits:
        split, output = ferplus.split(name), facts(ferplus, name)
        assert split.votes is not None
        for sample, key in enumerate(split.keys):
            row = int(output[key]["source"].split()[-1])
            assert split.votes[sample].tolist() == [int(votes[row][column]) for column in FERPLUS]
            assert output[key]["fer_emotion"] == FER[int(faces[row]["emotion"])]
            assert output[key]["all_votes"]["NF"] == int(votes[row]["NF"])
            image = pixels(split, sample)
            assert image.shape == (48, 48)
            original = np.array(faces[row]["pixels"].split(), dtype=int).reshape(48, 48)
            assert np.abs(image - original).max() <= 2, "JPEG at quality 100 changes next to nothing"


def test_validation_is_a_tenth_of_each_class_and_shares_no_face(ferplus: Dataset) -> None:
    train, validation = ferplus.split("train"), ferplus.split("validation")
    for label in range(len(FERPLUS)):
        of_class = [int((split.labels == label).sum()) for split in (train, validation)]
        assert abs(of_class[1] - 0.1 * sum(of_class)) <= 1.5, "rounded, and at most one twin more"
    images = [{bytes(split.read(sample)) for sample in range(len(split))} for split in (train, validation)]
    assert not images[0] & images[1]


def test_fer_labels_keep_every_row_and_map_the_votes(
    mini: tuple[list[dict[str, str]], list[dict[str, str]]], tmp_path: Path
) -> None:
    faces, votes = mini
    dataset = run_build("fer2013", tmp_path / "fer", *MINI, "--labels", "fer", "--keep-leaks")
    assert dataset.classes == FER
    assert sum(info.samples for info in dataset.splits.values()) == len(faces)
    assert findings(dataset)["leaks_dropped"] == 0
    assert findings(dataset)["leaks"] == {"train face also in test": 2}
    split, output = dataset.split("test"), facts(dataset, "test")
    assert split.votes is not None
    for sample, key in enumerate(split.keys):
        row = int(output[key]["source"].split()[-1])
        assert split.labels[sample] == int(faces[row]["emotion"])
        assert split.votes[sample].tolist() == [int(votes[row][FER_AS_FERPLUS.get(name, name)]) for name in FER]


def test_bytes_do_not_depend_on_the_workers(ferplus: Dataset, tmp_path: Path) -> None:
    again = run_build("fer2013", tmp_path / "ferplus", *MINI, "--samples-per-shard", 100, workers=3)
    assert tree(again.folder) == tree(ferplus.folder)


# FER2013 made by hand


def face(value: int) -> str:
    return " ".join([str(value)] * 2304)


def write_csv(folder: Path, rows: Sequence[tuple[object, ...]], header: str = "emotion,pixels,Usage") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "fer2013.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def write_votes(folder: Path, rows: Sequence[tuple[str, Sequence[int]]]) -> None:
    lines = [f"{usage},x.png,{','.join(map(str, counts))}" for usage, counts in rows]
    header = f"Usage,Image name,{','.join(FERPLUS)},unknown,NF"
    (folder / "fer2013new.csv").write_text("\n".join([header, *lines]) + "\n")


GOOD = [(n % 7, face(n), "Training" if n < 28 else "PublicTest") for n in range(35)]


def build_fer(folder: Path, *options: object) -> Dataset:
    return run_build("fer2013", folder.parent / "out", "--root", folder, "--labels", "fer", *options)


def test_private_test_makes_public_test_the_validation_split(tmp_path: Path) -> None:
    rows = [(0, face(1), "Training"), (1, face(2), "PublicTest"), (2, face(3), "PrivateTest"), (3, face(4), "Training")]
    dataset = build_fer(write_csv(tmp_path / "fer", rows).parent)
    assert places(dataset) == {
        "fer2013.csv row 0": ("train", 0),
        "fer2013.csv row 1": ("validation", 1),
        "fer2013.csv row 2": ("test", 2),
        "fer2013.csv row 3": ("train", 3),
    }


def test_a_face_stays_in_the_split_that_judges(tmp_path: Path) -> None:
    rows = [
        *[(0, face(1), "Training"), (0, face(2), "Training"), (0, face(3), "Training"), (1, face(9), "Training")],
        *[(0, face(2), "PublicTest"), (0, face(4), "PublicTest"), (1, face(5), "PublicTest")],
        *[(0, face(3), "PrivateTest"), (6, face(4), "PrivateTest"), (6, face(4), "PrivateTest")],
    ]
    dataset = build_fer(write_csv(tmp_path / "fer", rows).parent)
    kept = {int(source.split()[-1]): split for source, (split, _) in places(dataset).items()}
    assert kept == {0: "train", 3: "train", 4: "validation", 6: "validation", 7: "test", 8: "test", 9: "test"}
    assert findings(dataset)["leaks"] == {
        "train face also in test": 1,
        "train face also in validation": 1,
        "validation face also in test": 1,
    }
    with (dataset.folder / "leaks.csv").open() as stream:
        lines = [
            (line["source"], line["class"], line["twin_source"], line["twin_class"]) for line in csv.DictReader(stream)
        ]
    assert lines == [
        ("fer2013.csv row 1", "angry", "fer2013.csv row 4", "angry"),
        ("fer2013.csv row 2", "angry", "fer2013.csv row 7", "angry"),
        ("fer2013.csv row 5", "angry", "fer2013.csv row 8", "neutral"),
    ]


def test_twins_and_their_conflicts_are_counted(tmp_path: Path) -> None:
    rows = [
        *[(0, face(1), "Training"), (0, face(1), "Training"), (0, face(2), "Training"), (3, face(2), "Training")],
        *[(5, face(2), "Training"), (4, face(3), "Training"), (4, face(4), "PublicTest"), (4, face(4), "PublicTest")],
    ]
    rows.append((4, face(7), "PrivateTest"))
    dataset = build_fer(write_csv(tmp_path / "fer", rows).parent)
    twins = findings(dataset)["twins"]
    assert twins["train"] == {"groups": 2, "faces": 5, "conflicting_groups": 1, "conflicting_faces": 3}
    assert twins["validation"] == {"groups": 1, "faces": 2, "conflicting_groups": 0, "conflicting_faces": 0}


def test_votes_decide_and_ties_go_to_the_first_column(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer", [(0, face(n), "Training") for n in range(6)])
    counts = [
        (0, 1, 9, 0, 0, 0, 0, 0, 0, 0),
        (0, 4, 0, 4, 2, 0, 0, 0, 0, 0),  # a tie: happiness stands before sadness
        (0, 0, 0, 0, 0, 0, 0, 1, 9, 0),  # `unknown` does not count
        (0, 0, 0, 0, 0, 0, 0, 0, 4, 6),  # no vote left
        (9, 0, 0, 0, 0, 0, 0, 0, 0, 0),  # nine annotators
        (0, 0, 0, 0, 0, 5, 5, 0, 0, 0),  # a tie: disgust stands before fear
    ]
    write_votes(path.parent, [("Training", row) for row in counts])
    dataset = run_build("fer2013", tmp_path / "out", "--root", path.parent, "--validation-fraction", 0.01)
    labels = {int(source.split()[-1]): FERPLUS[label] for source, (_, label) in places(dataset).items()}
    assert labels == {0: "surprise", 1: "happiness", 2: "contempt", 4: "neutral", 5: "disgust"}
    assert (findings(dataset)["dropped_without_votes"], findings(dataset)["tied_votes"]) == (1, 2)


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    rows = [(usage, emotion, text) for emotion, text, usage in GOOD]
    path = write_csv(tmp_path / "fer", rows, header="Usage, emotion, pixels")
    assert sum(info.samples for info in build_fer(path.parent).splits.values()) == len(GOOD)


def change_row(number: int, *cells: object) -> list[tuple[object, ...]]:
    return [*GOOD[:number], cells, *GOOD[number + 1 :]]


BAD_CSVS: dict[str, tuple[list[tuple[object, ...]], str]] = {
    "pixel missing": (change_row(3, 0, face(1)[2:], "Training"), r"line 5: 2,303 pixels, expected 48 x 48 = 2,304"),
    "pixel too bright": (
        change_row(3, 0, face(256), "Training"),
        r"line 5: pixels must be integers from 0 to 255",
    ),
    "pixel no number": (change_row(0, 0, face(1) + "x", "Training"), r"line 2: pixels must be integers"),
    "emotion unknown": (change_row(4, 7, face(1), "Training"), r"line 6: emotion '7' is unknown; known: 0 angry"),
    "emotion no number": (change_row(4, "joy", face(1), "Training"), r"line 6: emotion 'joy' is unknown"),
    "usage unknown": (change_row(5, 0, face(1), "Test"), r"line 7: Usage 'Test' is unknown; known: Training"),
    "cell missing": (change_row(5, 0, face(1)), r"line 7: 2 cells where the header has 3"),
    "no rows": ([], r"no faces in it"),
    "no training face": ([row for row in GOOD if row[2] == "PublicTest"], r"no training samples"),
}


@pytest.mark.parametrize(("rows", "line"), BAD_CSVS.values(), ids=BAD_CSVS)
def test_bad_csv_is_told_in_one_line(tmp_path: Path, rows: list[tuple[object, ...]], line: str) -> None:
    path = write_csv(tmp_path / "fer", rows)
    with pytest.raises(UserError, match=line) as error:
        build_fer(path.parent)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_wrong_header_is_told(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer", GOOD, header="label,pixels,Usage")
    with pytest.raises(UserError, match=r"line 1: no column emotion; the header has label, pixels, Usage.*right file"):
        build_fer(path.parent)


def test_missing_csv_says_what_was_sought_and_seen(tmp_path: Path) -> None:
    (tmp_path / "fer").mkdir()
    (tmp_path / "fer" / "faces.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"expected fer2013\.csv, .* found faces\.txt; use --csv"):
        build_fer(tmp_path / "fer")


def test_two_csvs_are_not_chosen_between(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer", GOOD)
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"contains fer2013\.csv and fer2013\.csv\.gz; pass one"):
        build_fer(path.parent)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no gzip" + data])
def test_damaged_gzip_is_told(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    data = write_csv(tmp_path / "fer", GOOD).read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(damage(gzip.compress(data)))
    with pytest.raises(UserError, match=r"cut\.csv\.gz: corrupt gzip file"):
        run_build("fer2013", tmp_path / "out", "--csv", tmp_path / "cut.csv.gz", "--labels", "fer")


def test_votes_must_list_the_same_faces(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer", GOOD)
    votes = [(usage, [10] + [0] * 9) for _, _, usage in GOOD]
    write_votes(path.parent, votes[:-1])
    with pytest.raises(UserError, match=r"fer2013new\.csv: 34 rows, but fer2013\.csv has 35"):
        build_fer(path.parent)
    write_votes(path.parent, [*votes[1:], votes[0]])
    with pytest.raises(UserError, match=r"line 29: Usage 'PublicTest', but fer2013\.csv has 'Training'"):
        build_fer(path.parent)
    write_votes(path.parent, [("Training", [-1] + [0] * 9), *votes[1:]])
    with pytest.raises(UserError, match=r"line 2: negative number of votes"):
        build_fer(path.parent)


def test_ferplus_labels_need_the_votes(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer", GOOD)
    with pytest.raises(UserError, match=r"--labels ferplus needs fer2013new\.csv"):
        run_build("fer2013", tmp_path / "out", "--root", path.parent)


# Carving


@pytest.mark.parametrize("seed", [0, 1])
def test_carved_shares_are_exact_and_keep_twins_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    faces = rng.integers(0, 600, 1000).tolist()  # many twins
    labels = [content % 3 if content % 10 else int(rng.integers(3)) for content in faces]  # some in conflict
    digests = [str(content).encode() for content in faces]
    carved = hold_out_splits(range(1000), digests, labels, {"test": 0.2, "validation": 0.1}, seed)
    homes: dict[int, set[str]] = {}
    for number, content in enumerate(faces):
        homes.setdefault(content, set()).add(carved.get(number, "train"))
    assert all(len(home) == 1 for home in homes.values())
    first_label = {content: labels[faces.index(content)] for content in set(faces)}
    most_twins = max(Counter(faces).values())
    for label in range(3):
        of_class = [number for number, content in enumerate(faces) if first_label[content] == label]
        for split, fraction in (("test", 0.2), ("validation", 0.1)):
            got = sum(carved.get(number) == split for number in of_class)
            assert 0 <= got - round(fraction * len(of_class)) < most_twins
    assert hold_out_splits(range(1000), digests, labels, {"test": 0.2, "validation": 0.1}, seed + 7) != carved


# A tree of folders


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (24, 20), **options: Any) -> Path:
    """A picture that depends on its name alone."""
    seed = zlib.crc32(path.name.encode())
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """root/CLASS/*: two classes of 20 JPEGs."""
    for name in ("cross", "glad"):
        for number in range(20):
            save(tmp_path / "faces" / name / f"{name}.{number:02d}.jpg")
    return tmp_path / "faces"


def build_folder(root: Path, *options: object) -> Dataset:
    return run_build("folder", root.parent / "out", "--root", root, *options)


def test_flat_tree_is_carved_and_jpegs_pass_through(faces: Path) -> None:
    dataset = build_folder(faces, "--test-fraction", 0.2)
    assert dataset.classes == ("cross", "glad")
    assert {name: info.class_counts for name, info in dataset.splits.items()} == {
        "train": (14, 14),
        "validation": (2, 2),
        "test": (4, 4),
    }
    stored: dict[str, bytes] = {}
    for name in dataset.splits:
        split, output = dataset.split(name), facts(dataset, name)
        assert split.votes is None
        assert split.distributions is None
        stored |= {output[key]["source"]: bytes(split.read(sample)) for sample, key in enumerate(split.keys)}
    assert stored == {path.relative_to(faces).as_posix(): path.read_bytes() for path in faces.glob("*/*")}


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_split_folders_are_kept_and_leaks_dropped(tmp_path: Path, name: str) -> None:
    root = tmp_path / "faces"
    for split, count in (("train", 5), (name, 2), ("test", 2)):
        for kind in ("cross", "glad"):
            for number in range(count):
                save(root / split / kind / f"{split}{kind}{number}.jpg")
    shutil.copy(root / "test" / "glad" / "testglad0.jpg", root / "train" / "cross" / "copy.jpg")
    dataset = build_folder(root)
    assert {split: info.samples for split, info in dataset.splits.items()} == {"train": 10, "validation": 4, "test": 4}
    for source, (split, label) in places(dataset).items():
        folder, kind, _ = source.split("/")
        assert (folder, kind) == ({"validation": name}.get(split, split), dataset.classes[label])
    assert findings(dataset)["leaks"] == {"train face also in test": 1}


ENCODED: dict[str, tuple[str, str, str]] = {
    "grey JPEG": ("L", "a.jpg", "L"),
    "CMYK JPEG": ("CMYK", "a.jpg", "RGB"),
    "palette PNG": ("P", "a.png", "RGB"),
    "transparent PNG": ("RGBA", "a.png", "RGB"),
    "grey and alpha PNG": ("LA", "a.png", "L"),
    "black and white PNG": ("1", "a.png", "L"),
    "BMP": ("RGB", "a.bmp", "RGB"),
    "WebP": ("RGB", "a.webp", "RGB"),
    "GIF": ("P", "a.gif", "RGB"),
    "TIFF": ("RGB", "a.tif", "RGB"),
}


@pytest.mark.parametrize(("mode", "file", "stored_mode"), ENCODED.values(), ids=ENCODED)
def test_every_kind_of_picture_becomes_a_plain_jpeg(faces: Path, mode: str, file: str, stored_mode: str) -> None:
    path = save(faces / "glad" / file, mode, (40, 32))
    dataset = build_folder(faces, "--validation-fraction", 0)
    split, output = dataset.split("train"), facts(dataset, "train")
    sample = [output[key]["source"] for key in split.keys].index(f"glad/{file}")
    image = Image.open(io.BytesIO(split.read(sample)))
    assert (image.format, image.mode, image.size) == ("JPEG", stored_mode, (40, 32))
    original = np.asarray(Image.open(path).convert(stored_mode), dtype=int)
    assert np.abs(np.asarray(image, dtype=int) - original).mean() < 6, "noise at quality 95"


def test_phone_picture_with_a_second_one_inside_is_stored_as_a_plain_jpeg(faces: Path) -> None:
    pictures = [Image.new("RGB", (40, 32), colour) for colour in ("red", "blue")]
    pictures[0].save(faces / "glad" / "phone.jpg", "MPO", save_all=True, append_images=pictures[1:])
    dataset = build_folder(faces, "--validation-fraction", 0)
    split, output = dataset.split("train"), facts(dataset, "train")
    sample = [output[key]["source"] for key in split.keys].index("glad/phone.jpg")
    image = Image.open(io.BytesIO(split.read(sample)))
    assert image.format == "JPEG"
    assert np.abs(np.asarray(image, dtype=int) - [255, 0, 0]).max() < 4


def test_16_bit_grey_is_scaled_not_clipped(faces: Path) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(faces / "glad" / "deep.png")
    dataset = build_folder(faces, "--validation-fraction", 0)
    split, output = dataset.split("train"), facts(dataset, "train")
    sample = [output[key]["source"] for key in split.keys].index("glad/deep.png")
    assert np.abs(pixels(split, sample).astype(int) - ramp / 257).max() < 5


def test_rotation_in_exif_is_carried_out(faces: Path) -> None:
    upright = Image.new("L", (40, 24), 0)
    upright.paste(255, (0, 0, 20, 24))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees: white then is on top
    upright.save(faces / "glad" / "turned.jpg", exif=exif, quality=95)
    dataset = build_folder(faces, "--validation-fraction", 0)
    split, output = dataset.split("train"), facts(dataset, "train")
    sample = [output[key]["source"] for key in split.keys].index("glad/turned.jpg")
    image = pixels(split, sample)
    assert image.shape == (40, 24)
    assert image[:18].mean() > 250
    assert image[22:].mean() < 5


def test_large_pictures_are_made_smaller_and_small_ones_left(faces: Path) -> None:
    save(faces / "glad" / "large.jpg", size=(90, 60))
    dataset = build_folder(faces, "--validation-fraction", 0, "--max-side", 30)
    split, output = dataset.split("train"), facts(dataset, "train")
    sizes = {output[key]["source"]: pixels(split, sample).shape[:2] for sample, key in enumerate(split.keys)}
    assert sizes.pop("glad/large.jpg") == (30, 45)
    assert set(sizes.values()) == {(20, 24)}


def test_names_become_plain_unique_keys(faces: Path) -> None:
    for name in ("a b.jpg", "a.b.jpg", "a-b.jpg", "é.jpg", "ü.jpg", "x" * 150 + ".jpg", "ab/deep.JPEG"):
        save(faces / "glad" / name)
    (faces / "glad" / ".hidden.jpg").write_bytes(b"")
    (faces / "glad" / "notes.txt").write_text("not a picture")
    dataset = build_folder(faces, "--validation-fraction", 0)
    keys = dataset.split("train").keys.tolist()
    assert len(set(keys)) == len(keys) == 47
    assert all(key.isascii() and "." not in key and "/" not in key and len(key) <= 90 for key in keys)
    assert findings(dataset)["other_files"] == 1


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def one_pixel() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "JPEG")
    return stream.getvalue()


def half_jpeg() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(stream, "JPEG")
    return stream.getvalue()[:900]


def float_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), dtype=np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def wide_png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (65_501, 8)).save(stream, "PNG")
    return stream.getvalue()


BAD_IMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "failed to decode"),
    "text": (b"hello, I am no picture", "failed to decode"),
    "truncated": (half_jpeg(), "failed to decode"),
    "one pixel": (one_pixel(), "1 x 1 pixels; each side must have at least 8"),
    "bomb": (png_header(30_000, 30_000), "more pixels than the limit of 67,108,864"),
    "below Pillow's limit": (png_header(9_000, 9_000), "9,000 x 9,000 pixels, more than the limit of 67,108,864"),
    "wider than a JPEG": (wide_png(), "65,501 x 8 pixels; a JPEG has sides of at most 65,500"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n", "failed to decode"),
    "no range": (float_tiff(), "have no fixed range"),
}


@pytest.mark.parametrize(("data", "reason"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_are_an_error_and_then_quarantined(faces: Path, data: bytes, reason: str) -> None:
    (faces / "glad" / "bad.jpg").write_bytes(data)
    with pytest.raises(
        UserError, match=r"1 of 41 images are invalid \(first: glad/bad\.jpg.*--max-bad-images 1"
    ) as error:
        build_folder(faces, "--validation-fraction", 0)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert not (faces.parent / "out").exists()
    assert reason in (faces.parent / "out.partial" / "quarantine.csv").read_text()
    dataset = build_folder(faces, "--validation-fraction", 0, "--max-bad-images", 1)
    assert dataset.splits["train"].samples == 40
    assert findings(dataset)["quarantined"] == 1
    with (dataset.folder / "quarantine.csv").open() as stream:
        (line,) = csv.DictReader(stream)
    assert (line["split"], line["source"]) == ("train", "glad/bad.jpg")
    assert reason in line["reason"]


def test_shard_without_a_good_image_leaves_no_gap(faces: Path) -> None:
    order = [facts(build_folder(faces, "--validation-fraction", 0), "train")]
    sources = [told["source"] for told in order[0].values()]
    for source in sources[10:20]:
        (faces / source).write_bytes(b"broken")
    options = ("--validation-fraction", 0, "--samples-per-shard", 10, "--max-bad-images", 10, "--overwrite")
    dataset = build_folder(faces, *options)
    assert [shard.file for shard in dataset.splits["train"].shards] == [f"train-00000{n}.tar" for n in range(3)]
    assert sorted(path.name for path in dataset.folder.glob("*.idx")) == [f"train-00000{n}.idx" for n in range(3)]
    assert verify(dataset.folder, 1)[1] == []


def test_a_class_without_a_good_image_is_an_error(faces: Path) -> None:
    for path in (faces / "glad").iterdir():
        path.write_bytes(b"broken")
    count = len(list((faces / "glad").iterdir()))
    with pytest.raises(UserError, match=rf"class glad: all its training images are invalid.*\({count} invalid "):
        build_folder(faces, "--validation-fraction", 0, "--max-bad-images", 99)
    assert not (faces.parent / "out").exists()


def test_not_one_good_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "faces" / "glad").mkdir(parents=True)
    (tmp_path / "faces" / "glad" / "a.jpg").write_bytes(b"broken")
    (tmp_path / "faces" / "sad").mkdir()
    (tmp_path / "faces" / "sad" / "b.jpg").write_bytes(b"broken too")
    with pytest.raises(UserError, match="split train: all images are invalid"):
        build_folder(tmp_path / "faces", "--max-bad-images", 9)


BAD_TREES: dict[str, tuple[list[str], tuple[object, ...], str]] = {
    "no folders": ([], (), "no folders in it"),
    "empty class": (["glad/a.jpg", "cross/"], (), "class cross has no training images"),
    "no train": (["val/glad/a.jpg"], (), "contains val but no train"),
    "two validations": (["train/glad/a.jpg", "val/glad/b.jpg", "valid/glad/c.jpg"], (), "contains both val and valid"),
    "stranger": (["train/glad/a.jpg", "extra/glad/b.jpg"], (), "extra: not a split folder, but next to some"),
    "unknown class": (["train/glad/a.jpg", "test/Glad/b.jpg"], (), "test/Glad: class is not in train"),
    "no classes": (["train/"], (), "train: no folders in it"),
    "carved twice": (["train/glad/a.jpg", "val/glad/b.jpg"], ("--validation-fraction", 0.1), "already has that split"),
    "fraction": (["glad/a.jpg"], ("--test-fraction", 1.5), "--test-fraction 1.5: must be"),
    "nothing left": (
        ["glad/a.jpg"],
        ("--test-fraction", 0.6, "--validation-fraction", 0.6),
        "no training images",
    ),
    "image size": (["glad/a.jpg"], ("--max-side", 3), "--max-side 3: must be at least 16"),
}


@pytest.mark.parametrize(("paths", "options", "line"), BAD_TREES.values(), ids=BAD_TREES)
def test_bad_tree_is_told_in_one_line(tmp_path: Path, paths: list[str], options: tuple[object, ...], line: str) -> None:
    root = tmp_path / "faces"
    root.mkdir()
    for path in paths:
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
        else:
            save(root / path)
    with pytest.raises(UserError, match=line) as error:
        build_folder(root, *options)
    assert "\n" not in str(error.value)


# The programs


def run_program(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_programs_build_and_verify(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    done = run_program(
        "shards.build", "folder", "--root", faces, "--out", out, "--test-fraction", 0.2, "--num-workers", 1
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout == summary(open_dataset(out)) + "\n"
    assert "validation" in done.stdout
    checked = run_program("shards.verify", out, "--num-workers", 1)
    assert checked.returncode == 0, checked.stdout
    assert "train" in checked.stdout


def test_programs_fail_with_a_line(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = build_folder(faces).folder
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        build_main(["folder", "--root", str(faces), "--out", str(out)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"shards.build: error: {out}: dataset already exists; pass --overwrite to replace it, or choose another --out"
    ]
    (out / "train-000000.idx").unlink()
    with pytest.raises(SystemExit) as stop:
        verify_main([str(out), "--num-workers", "1"])
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{out / 'train-000000.idx'}: missing; DALI would have to scan the tar",
        f"{out}: 1 finding",
    ]
    with pytest.raises(SystemExit) as stop:
        verify_main([str(faces)])
    assert stop.value.code == 2


def descendants(process: int) -> set[int]:
    children = set(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    return children.union(*map(descendants, children))


def test_killed_build_leaves_no_dataset_and_no_process(tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    words = ["shards.build", "synthetic", "--out", out, "--num-workers", 2, "--train", 10**6]
    with subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=ROOT, stderr=subprocess.DEVNULL) as build:
        wait_until(lambda: len(list(partial.glob("*.tar"))) == 2)
        workers = descendants(build.pid)
        assert len(workers) > 2
        build.kill()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert not out.exists()
    few = ("--train", 5, "--validation", 0, "--test", 0)
    if list((partial / ".unfinished").glob("train-*.json")):
        with pytest.raises(UserError, match="unfinished build with different settings"):
            run_build("synthetic", out, *few)
    dataset = run_build("synthetic", out, *few, "--discard-partial")
    assert not partial.exists()
    assert sorted(path.name for path in dataset.folder.glob("*.tar")) == ["train-000000.tar"]


def test_killed_build_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    counts = ("--train", 600, "--validation", 50, "--test", 50, "--image-size", 32, "--samples-per-shard", 50)
    whole = tree(run_build("synthetic", tmp_path / "whole", *counts, "--name", "faces").folder)
    out, notes = tmp_path / "out", tmp_path / "out.partial" / ".unfinished"
    words = ["shards.build", "synthetic", "--out", out, "--num-workers", 2, *counts, "--name", "faces"]
    for number in (1, 3):
        with subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=ROOT, stderr=subprocess.DEVNULL) as build:
            wait_until(lambda wanted=number: len(list(notes.glob("train-*.json"))) >= wanted)  # type: ignore[misc]
            build.kill()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("*.tar")}
    assert kept
    assert tree(run_build("synthetic", out, *counts, "--name", "faces").folder) == whole


@pytest.mark.slow
def test_ray_builds_the_same_bytes(tmp_path: Path) -> None:
    counts = (
        "--train",
        40,
        "--validation",
        5,
        "--test",
        5,
        "--image-size",
        32,
        "--samples-per-shard",
        10,
        "--name",
        "faces",
    )
    plain = run_build("synthetic", tmp_path / "plain", *counts)
    spread = run_build("synthetic", tmp_path / "spread", *counts, "--ray", "local")
    assert tree(spread.folder) == tree(plain.folder)


def test_help_explains(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in ((["--help"], "synthetic"), (["fer2013", "--help"], "PublicTest becomes test")):
        with pytest.raises(SystemExit) as stop:
            parse_arguments(words)
        assert stop.value.code == 0
        assert expected in capsys.readouterr().out


def test_output_above_the_source_is_refused(faces: Path) -> None:
    with pytest.raises(UserError, match="contains the source"):
        run_build("folder", faces.parent, "--root", faces, "--overwrite")


def test_drawn_faces_from_the_command_line(tmp_path: Path) -> None:
    counts = ("--train", 12, "--validation", 0, "--test", 3, "--image-size", 32)
    dataset = run_build("synthetic", tmp_path / "out", *counts)
    assert {name: info.samples for name, info in dataset.splits.items()} == {"train": 12, "test": 3}
    assert verify(dataset.folder, 1)[1] == []
    with pytest.raises(UserError, match="--train 0"):
        run_build("synthetic", tmp_path / "none", "--train", 0)


# Verifying


def rewrite(folder: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Change members of the first training tar, and make hashes, sizes and DALI's index fit again."""
    path = folder / "train-000000.tar"
    members = []
    with tarfile.open(path) as tar:
        for member in tar:
            members.append((member, change(member.name, tar.extractfile(member).read())))  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    lines: dict[str, list[str]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, extension = member.name.split(".")
            lines.setdefault(key, []).append(f"{extension} {member.offset_data} {member.size} {member.name}")
    text = "\n".join([f"v1.2 {len(lines)}", *(" ".join(line) for line in lines.values())])
    path.with_suffix(".idx").write_text(text + "\n")
    rehash(folder)


def rehash(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    for split in content["splits"].values():
        split["index_sha256"] = hashlib.sha256((folder / split["index"]).read_bytes()).hexdigest()
        for shard in split["shards"]:
            data = (folder / shard["file"]).read_bytes()
            shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "dataset.json").write_text(json.dumps(content))


def edit_first(extension: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the first member with this extension, to as many bytes, so that nothing behind it moves."""

    def apply(folder: Path) -> None:
        done: list[str] = []

        def once(name: str, data: bytes) -> bytes:
            if done or not name.endswith(extension):
                return data
            done.append(name)
            changed = change(data)
            return changed[: len(data)] + b" " * (len(data) - len(changed))

        rewrite(folder, once)

    return apply


def flip_byte(folder: Path) -> None:
    path = folder / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def swap_keys(folder: Path) -> None:
    table = pq.read_table(folder / "train.parquet")
    keys = table["key"].to_pylist()
    keys[:2] = keys[1::-1]
    pq.write_table(table.set_column(table.column_names.index("key"), "key", pa.array(keys)), folder / "train.parquet")
    rehash(folder)


def grow_png(data: bytes) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 20)).save(stream, "PNG")
    return stream.getvalue()


def drop_line(folder: Path) -> None:
    path = folder / "train-000000.idx"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


SPOILS: dict[str, tuple[Callable[[Path], object], str]] = {
    "byte flipped": (flip_byte, "train-000000.tar: SHA-256 differs from dataset.json"),
    "truncated": (lambda f: (f / "train-000000.tar").write_bytes(b"x" * 9999), "truncated: 9,999 bytes"),
    "index of DALI": (drop_line, "train-000000.idx: does not match the members"),
    "index touched": (lambda f: (f / "train.parquet").open("ab").write(b"x"), "train.parquet: SHA-256 differs"),
    "keys swapped": (swap_keys, "the Parquet index has"),
    "label": (edit_first("cls", lambda data: b"0001" if data == b"0000" else b"0000"), "KEY.cls is b'000"),
    "label no number": (edit_first("cls", lambda data: b"glad"), "KEY.cls is b'glad'"),
    "class in json": (
        edit_first("json", lambda data: re.sub(rb'"label":\d', b'"label":2', data)),
        "KEY.json has class",
    ),
    "size in json": (
        edit_first("json", lambda data: data.replace(b'"width":24', b'"width":25')),
        "KEY.json has (25, 20) pixels, but the image has (24, 20)",
    ),
    "json damaged": (edit_first("json", lambda data: data[:-1]), "KEY.json is corrupt"),
    "votes in json": (edit_first("json", lambda data: data.replace(b"null", b"[1] ")), "KEY.json has votes"),
    "image corrupt": (
        edit_first("jpg", lambda data: b"\xff\xd8" + b"\0" * (len(data) - 2)),
        "image: failed to decode",
    ),
    "image a PNG": (edit_first("jpg", grow_png), "image is PNG, not JPEG"),
    "image a bomb": (edit_first("jpg", lambda data: png_header(30_000, 30_000)), "image: more pixels than"),
    "image one pixel": (edit_first("jpg", lambda data: one_pixel()), "image: 1 x 1 pixels"),
    "tar gone": (lambda f: (f / "test-000000.tar").unlink(), "test-000000.tar: missing"),
}


@pytest.mark.parametrize(("spoil", "line"), SPOILS.values(), ids=SPOILS)
def test_verify_finds_what_is_wrong(faces: Path, spoil: Callable[[Path], object], line: str) -> None:
    folder = build_folder(faces, "--test-fraction", 0.2).folder
    assert verify(folder, 1)[1] == []
    spoil(folder)
    found = verify(folder, 1)[1]
    assert any(line in finding for finding in found), found
    assert all("\n" not in finding for finding in found)
