"""Published datasets as they circulate: other separators, headers, file names and archives."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adadf_dist.data.label_noise import read_noise
from tests.helpers import dataset_trees as trees
from tests.helpers.dataset_builds import facts, findings, places, refused, run_build
from tests.helpers.dataset_trees import jpeg, write

# RAF-DB, AffectNet, FER2013

RAF_LISTS: dict[str, Callable[[int, str], str]] = {
    "plain": lambda n, name: f"{name} {n % 7 + 1}\n",
    "aligned names": lambda n, name: f"{name.replace('.jpg', '_aligned.jpg')} {n % 7 + 1}\n",
    "commas": lambda n, name: f"{name},{n % 7 + 1}\n",
    "floats and tabs": lambda n, name: f"{name}\t{n % 7 + 1}.0\n",
    "old mac": lambda n, name: f"{name} {n % 7 + 1}\r",
}
RAF_NAMES = [f"train_{n:05d}.jpg" for n in range(14)]


@pytest.mark.parametrize("form", RAF_LISTS.values(), ids=RAF_LISTS)
def test_rafdb_list_dialects_are_read(form: Callable[[int, str], str], tmp_path: Path) -> None:
    root = tmp_path / "raf"
    trees.rafdb(root, {name: n % 7 + 1 for n, name in enumerate(RAF_NAMES)})
    write(root / "EmoLabel/list_patition_label.txt", "".join(form(n, name) for n, name in enumerate(RAF_NAMES)))
    votes = [
        f"{name.replace('.jpg', '_aligned.jpg')} {' '.join(['0.5'] * 6)} {n}\n" for n, name in enumerate(RAF_NAMES)
    ]
    write(root / "EmoLabel/distribution.txt", "".join(votes))
    dataset = run_build("rafdb", tmp_path / "out", "--root", root, "--validation-fraction", 0)
    assert findings(dataset)["faces_with_votes"] == len(RAF_NAMES)
    for entry in facts(dataset, "train").values():
        number = int(entry["source"].rpartition("train_")[2][:5])
        assert entry["label"] == number % 7
        assert entry["votes"] == [0.5] * 6 + [number]


def test_rafdb_aligned_images_with_plain_names_are_read(tmp_path: Path) -> None:
    root = tmp_path / "raf"
    trees.rafdb(root, {name: n % 7 + 1 for n, name in enumerate(RAF_NAMES)}, images="original")
    (root / "Image" / "original").rename(root / "Image" / "aligned")
    dataset = run_build("rafdb", tmp_path / "out", "--root", root, "--validation-fraction", 0)
    assert dataset.splits["train"].samples == len(RAF_NAMES)


@pytest.mark.parametrize(
    ("votes", "reason"),
    [
        ("train_00001.jpg 1 0 0 0 0 0 0\nstranger.jpg 1 0 0 0 0 0 0\n", "line 2: votes for stranger.jpg, which"),
        ("train_00001.jpg 1 0 0 0 0 0 nan\n", "line 1: fractions must be nonnegative numbers, not 'nan'"),
        ("train_00001.jpg 1 0 0 0 0 0 1e39\n", "line 1: fractions must be at most 16,777,216, not '1e39'"),
        (
            "train_00001.jpg 1 0 0 0 0 0 0\ntrain_00001_aligned.jpg 1 0 0 0 0 0 0\n",
            "line 2: train_00001_aligned.jpg is listed twice",
        ),
        (
            "name a b c d e f g\ntrain_00001.jpg 1 0 0 0 0 0 0\n",
            "line 1: columns are a, b, c, d, e, f, g, expected surpr",
        ),
    ],
)
def test_rafdb_unusable_votes_are_rejected(votes: str, reason: str, tmp_path: Path) -> None:
    trees.rafdb(tmp_path / "raf", {name: n % 7 + 1 for n, name in enumerate(RAF_NAMES)})
    write(tmp_path / "raf/EmoLabel/distribution.txt", votes)
    assert reason in refused("rafdb", tmp_path, "--root", tmp_path / "raf")


def test_rafdb_votes_with_a_header_are_read(tmp_path: Path) -> None:
    trees.rafdb(tmp_path / "raf", {name: n % 7 + 1 for n, name in enumerate(RAF_NAMES)})
    header = "name Neutral Anger Sadness Happy Disgust Fear Surprise\n"
    write(tmp_path / "raf/EmoLabel/distribution.txt", header + f"{RAF_NAMES[0]} 7 6 5 4 3 2 1\n")
    dataset = run_build("rafdb", tmp_path / "out", "--root", tmp_path / "raf", "--validation-fraction", 0)
    votes = [entry["votes"] for entry in facts(dataset, "train").values() if entry["votes"]]
    assert votes == [[1, 2, 3, 4, 5, 6, 7]]  # surprise, fear, disgust, happiness, sadness, anger, neutral


def test_affectnet_2021_without_landmarks_is_read(tmp_path: Path) -> None:
    root = tmp_path / "A"
    trees.affectnet_2021(root, list(range(8)) * 2, list(range(8)))
    for path in root.glob("*/annotations/*_lnd.npy"):
        path.unlink()
    dataset = run_build("affectnet", tmp_path / "out", "--root", root, "--validation-fraction", 0)
    assert findings(dataset)["images_without_landmarks"] == 24
    assert all("landmarks" not in entry and entry["valence"] == -0.25 for entry in facts(dataset, "train").values())
    assert "no image has landmarks" in refused("affectnet", tmp_path, "--root", root, "--align", "landmarks")


@pytest.mark.parametrize("numbers", [np.arange(135.0), np.array([]), np.full(136, np.nan)])
def test_affectnet_2021_bad_annotation_is_one_line(numbers: Any, tmp_path: Path) -> None:
    trees.affectnet_2021(tmp_path / "A", list(range(8)) * 2, list(range(8)))
    np.save(tmp_path / "A/train_set/annotations/3_lnd.npy", numbers)
    words = ("--root", tmp_path / "A", "--validation-fraction", 0)
    assert "1 of 24 images are invalid (first: train_set/images/3.jpg: annotation 3_lnd.npy" in refused(
        "affectnet", tmp_path, *words
    )
    dataset = run_build("affectnet", tmp_path / "out", *words, "--max-bad-images", 1)
    assert dataset.splits["train"].samples == 15


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.encode("utf-16"), "training.csv: text is UTF-16"),
        (lambda text: text.replace("\n", "\r").encode(), "training.csv: has old Mac line endings"),
        (
            lambda text: text.replace("0/01.jpg", "0/\xff1.jpg").encode("latin-1"),
            "training.csv line 3: not a UTF-8 CSV file",
        ),
    ],
)
def test_affectnet_2017_unreadable_lists_are_rejected(
    change: Callable[[str], bytes], reason: str, tmp_path: Path
) -> None:
    trees.affectnet_2017(tmp_path / "A", {f"0/{n:02d}.jpg": n for n in range(8)}, {f"9/{n}.jpg": n for n in range(8)})
    path = tmp_path / "A" / "training.csv"
    path.write_bytes(change(path.read_text(encoding="utf-8")))
    assert reason in refused("affectnet", tmp_path, "--root", tmp_path / "A")


@pytest.mark.parametrize("form", ["plain", "byte order mark", "semicolons", "windows paths and floats"])
def test_affectnet_2017_list_dialects_are_read(form: str, tmp_path: Path) -> None:
    trees.affectnet_2017(tmp_path / "A", {f"0/{n:02d}.jpg": n for n in range(8)}, {f"9/{n}.jpg": n for n in range(8)})
    for path in (tmp_path / "A" / "training.csv", tmp_path / "A" / "validation.csv"):
        text = path.read_text(encoding="utf-8")
        if form == "semicolons":
            rows = [line.split(",") for line in text.splitlines()]
            text = "\r\n".join(";".join(f'"{cell}"' if ";" in cell else cell for cell in row) for row in rows)
        if form.startswith("windows"):
            text = text.replace("0/", "0\\").replace("9/", "9\\").replace(",-0.25,", ".0,-0.25,")
        path.write_bytes(b"\xef\xbb\xbf" * (form == "byte order mark") + text.encode())
    dataset = run_build("affectnet", tmp_path / "out", "--root", tmp_path / "A", "--validation-fraction", 0)
    assert findings(dataset)["images_without_annotation"] == 0
    for entry in facts(dataset, "train").values():
        assert int(entry["source"].rpartition("/")[2][:2]) == entry["label"]
        assert (entry["box"], entry["landmarks"][1], entry["valence"]) == ([4, 2, 20, 18], [10.1, 5.1], -0.25)


def fer_csv(separator: str = ",", label: str = "{}") -> str:
    rows = [(label.format(n % 7), " ".join([str(n)] * 2304), "Training" if n < 14 else "PublicTest") for n in range(21)]
    return "\n".join(separator.join(row) for row in (("emotion", "pixels", "Usage"), *rows)) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("fer2013", gzip.compress(fer_csv().encode())),
        ("fer2013.csv", fer_csv(";", "{}.0").encode()),
        ("fer2013.csv.gz", gzip.compress(fer_csv("\t").encode("utf-16"))),
        ("fer2013.txt", b"\xef\xbb\xbf" + fer_csv().replace("\n", "\r").encode()),
    ],
)
def test_fer2013_copies_are_read(name: str, content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    words = ("--csv", path, "--labels", "fer", "--validation-fraction", 0.3)
    dataset = run_build("fer2013", tmp_path / "out", *words)
    assert sum(info.samples for info in dataset.splits.values()) == 21
    assert all(int(source.rpartition(" ")[2]) % 7 == label for source, (_, label) in places(dataset).items())


def packed(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as file:
            file.writestr("fer2013/fer2013.csv", fer_csv())
    else:
        info = tarfile.TarInfo("fer2013/fer2013.csv")
        info.size = len(fer_csv())
        with tarfile.open(fileobj=stream, mode=kind) as tar:  # type: ignore[call-overload]
            tar.addfile(info, io.BytesIO(fer_csv().encode()))
    return stream.getvalue()


@pytest.mark.parametrize(("name", "kind"), [("fer2013.tar.gz", "w:gz"), ("fer2013.zip", "zip"), ("fer2013.tar", "w")])
def test_fer2013_archives_are_recognized(name: str, kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "download" / name, packed(kind))
    what = "a zip archive" if kind == "zip" else "a tar archive"
    assert f"{name}: is {what}, not text; unpack it" in refused("fer2013", tmp_path, "--csv", path, "--labels", "fer")
    by_root = refused("fer2013", tmp_path, "--root", path.parent, "--labels", "fer")
    assert f"{name} is an archive; unpack it" in by_root
    write(path.parent / "fer2013" / "fer2013.csv", fer_csv())
    deeper = refused("fer2013", tmp_path, "--root", path.parent, "--labels", "fer")
    assert deeper.endswith(f"pass --root {path.parent / 'fer2013'}")


def test_names_with_dots_and_decomposed_accents_are_read(tmp_path: Path) -> None:
    """Keys have no dots; macOS writes accents as two characters."""
    for number, name in enumerate(("fröhlich/a.1.jpg", "fröhlich/a.2.jpg", "sad/b.3.jpg")):
        write(tmp_path / "tree" / name, jpeg(number))
    dataset = run_build("folder", tmp_path / "out", "--root", tmp_path / "tree", "--validation-fraction", 0)
    decomposed = "fro\u0308hlich"
    path = write(tmp_path / "noise.txt", f"sad/b.3.jpg {decomposed}\na.1 sad\na.2.jpg sad\n")
    noise = read_noise(dataset.split("train"), path, 0)
    assert len(noise.changed) == 3
    split = tmp_path / "splits"
    for number, name in enumerate(("train/fröhlich/1.jpg", "train/sad/2.jpg", f"test/{decomposed}/3.jpg")):
        write(split / name, jpeg(number))
    assert "(train has fröhlich)" in refused("folder", tmp_path, "--root", split)
