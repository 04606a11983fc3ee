"""Image folders as found in practice: system files, ambiguous layouts, suffixes, names of any bytes."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adadf_dist.data.build import folder_tree
from adadf_dist.data.build.folder_tree import Skipped, walk_files
from adadf_dist.data.jpeg import InvalidImageError, decode, image_suffixes
from adadf_dist.errors import UserError
from adadf_dist.files.text import unescape_name
from shards.doctor.dataset_view import open_dataset_view
from shards.doctor.report import diagnose
from shards.verify import verify
from tests.helpers import dataset_trees as trees
from tests.helpers.dataset_builds import facts, findings, places, run_build
from tests.helpers.dataset_trees import jpeg, write

JUNK = (
    "train/a/@eaDir/0000.jpg/SYNOPHOTO_THUMB_M.jpg",
    "train/@eaDir/x.jpg",
    "@eaDir/train/a/x.jpg",
    "__MACOSX/train/a/._0000.jpg",
    "train/a/__MACOSX/x.jpg",
    "train/a/._0000.jpg",
    "train/a/.DS_Store",
    "train/b/Thumbs.db",
    "train/b/thumbs.DB",
    "train/b/desktop.ini",
    "train/.ipynb_checkpoints/x.jpg",
    "train/b/.ipynb_checkpoints/0001-checkpoint.jpg",
    "$RECYCLE.BIN/S-1/x.jpg",
    "#recycle/train/a/x.jpg",
    "train/lost+found/x.jpg",
    "System Volume Information/x.jpg",
    ".Trash-1000/files/x.jpg",
    "@Recycle/x.jpg",
    "@tmp/x.jpg",
    "train/FOUND.000/x.jpg",
    "RECYCLED/x.jpg",
    "train/a/_vti_cnf/x.jpg",
)
FOLDERS = {"train": ["a", "b"] * 4, "test": ["a", "b"]}


def litter(root: Path) -> None:
    for number, path in enumerate(JUNK):
        write(root / path, jpeg(900 + number))


def test_system_files_are_not_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "faces"
    trees.class_folders(root, FOLDERS)
    litter(root)
    dataset = run_build("folder", tmp_path / "out", "--root", root, "--validation-fraction", 0)
    assert dataset.classes == ("a", "b")
    assert {name: info.samples for name, info in dataset.splits.items()} == {"train": 8, "test": 2}
    skipped = findings(dataset)["skipped"]
    assert isinstance(skipped, dict)
    assert (skipped["@eaDir"], skipped["__MACOSX"], skipped["._* files"], skipped["hidden"]) == (3, 2, 1, 1)
    assert sum(skipped.values()) == len(JUNK)  # each is one file or folder at its highest place
    assert [line for line in capsys.readouterr().err.splitlines() if "skipped" in line and "3 @eaDir" in line]
    assert len(open_dataset_view(root)) == 10  # the doctor's


@pytest.mark.parametrize("source", ["affectnet", "affectnet-folders", "sfew", "rafdb"])
def test_system_files_are_skipped_by_every_source(source: str, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    if source == "affectnet":
        trees.affectnet_2021(root, list(range(8)) * 2, list(range(8)))
        places_of_junk = ["train_set/images", "train_set/annotations"]
    elif source == "affectnet-folders":
        trees.class_folders(root, {"train": [str(n % 8) for n in range(16)], "val": [str(n) for n in range(8)]})
        places_of_junk = ["", "train", "train/0", "val", "val/7"]
    elif source == "sfew":
        names = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
        trees.class_folders(root, {"Train": names * 2, "Val": names})
        places_of_junk = ["", "Train", "Train/Angry", "Val", "Val/Sad"]
    else:
        trees.rafdb(root, {f"train_{n}.jpg": n % 7 + 1 for n in range(14)})
        places_of_junk = ["", "Image/aligned"]
    name = source.partition("-")[0]
    clean = run_build(name, tmp_path / "clean", "--root", root, "--validation-fraction", 0)
    for place in places_of_junk:
        for number, junk in enumerate(("@eaDir/x.jpg", "__MACOSX/y.jpg", "._z.jpg", "Thumbs.db")):
            write(root / place / junk, jpeg(900 + number))
    dataset = run_build(name, tmp_path / "littered", "--root", root, "--validation-fraction", 0)
    assert places(dataset) == places(clean)


def test_broken_links_pipes_and_unreadable_folders_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "faces"
    trees.class_folders(root, FOLDERS)
    os.symlink(root / "train", root / "train" / "a" / "round")
    os.symlink("me.jpg", root / "train" / "a" / "me.jpg")  # a link to itself
    os.symlink("gone.jpg", root / "train" / "a" / "dangling.jpg")
    os.mkfifo(root / "train" / "a" / "pipe.jpg")  # would block a process that opens it
    words = ("--root", root, "--validation-fraction", 0)
    with pytest.raises(UserError, match="2 of 12 images are invalid"):
        run_build("folder", tmp_path / "out", *words)
    dataset = run_build("folder", tmp_path / "out", *words, "--max-bad-images", 2)
    assert findings(dataset)["skipped"] == {"links to folders": 1, "special files": 1}

    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(folder_tree.os, "scandir", scandir)
    with pytest.raises(UserError, match=r"train/b: folder cannot be read \(Permission denied\)"):
        run_build("folder", tmp_path / "other", *words)
    with pytest.raises(UserError, match=r"b: folder cannot be read"):
        list(walk_files(root, Skipped()))


def test_circular_links_are_not_classes_and_are_skipped(tmp_path: Path) -> None:
    """Beside and inside class folders. A link to another folder still counts, since some collections consist of
    links.
    """
    root = tmp_path / "faces"
    trees.class_folders(root, {"": ["a", "b"] * 3})
    os.symlink(root, root / "round")
    os.symlink(".", root / "here")
    os.symlink("me.jpg", root / "a" / "me.jpg")
    os.symlink("me", root / "me")
    (tmp_path / "elsewhere").mkdir()
    (root / "b").rename(tmp_path / "elsewhere" / "b")
    os.symlink(tmp_path / "elsewhere" / "b", root / "b")
    dataset = run_build("folder", tmp_path / "out", "--root", root, "--validation-fraction", 0, "--max-bad-images", 1)
    assert dataset.classes == ("a", "b")
    assert dataset.splits["train"].class_counts == (3, 3)
    assert findings(dataset)["skipped"] == {"links to folders": 2}


def test_archives_beside_folders_are_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "faces"
    trees.class_folders(root, FOLDERS)
    write(root / "validation.zip", b"PK")
    write(root / "train" / "c.tar.gz", b"")
    run_build("folder", tmp_path / "out", "--root", root, "--validation-fraction", 0)
    err = capsys.readouterr().err
    assert f"{root}: warning: archives are not read: validation.zip;" in err
    assert f"{root / 'train'}: warning: archives are not read: c.tar.gz;" in err


@pytest.mark.parametrize("source", ["affectnet", "csv", "fer2013", "folder", "rafdb", "sfew"])
def test_archive_or_file_as_root_is_rejected(source: str, tmp_path: Path) -> None:
    csv = ("--csv", write(tmp_path / "list.csv", "path,label\n1.jpg,a\n")) if source == "csv" else ()
    archive, file = write(tmp_path / "faces.tar.gz", b""), write(tmp_path / "faces", b"")
    for root, reason in (
        (archive, "--root must be a folder, not an archive; unpack it first"),
        (file, "--root must be a folder, not a file"),
        (tmp_path / "nowhere", "no such folder; pass"),
    ):
        with pytest.raises(UserError) as caught:
            run_build(source, tmp_path / "out", "--root", root, *csv)
        assert f"{root}: {reason}" in str(caught.value)


def test_walks_are_sorted_files_first(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/1.jpg", "z.jpg", "a/x/1.jpg", "a/3.jpg"):
        write(tmp_path / name, b"")
    found = [os.path.relpath(path, tmp_path) for path in walk_files(tmp_path, Skipped())]
    assert found == ["z.jpg", "a/3.jpg", "a/x/1.jpg", "b/1.jpg", "b/2.jpg"]


READ: dict[str, tuple[str, str, str]] = {  # train, validation, test
    "train val test": ("train", "val", "test"),
    "FER2013": ("Training", "PublicTest", "PrivateTest"),
    "FER+ with classes": ("FER2013Train", "FER2013Valid", "FER2013Test"),
    "sets": ("train_set", "val_set", "test_set"),
    "capitals": ("TRAIN", "Validation", "Testing"),
}


@pytest.mark.parametrize("folders", READ.values(), ids=READ)
def test_usual_split_folder_names_are_recognized(folders: tuple[str, str, str], tmp_path: Path) -> None:
    trees.class_folders(
        tmp_path / "x", {name: ["a", "b"] * count for name, count in zip(folders, (3, 2, 1), strict=True)}
    )
    dataset = run_build("folder", tmp_path / "out", "--root", tmp_path / "x")
    assert {name: info.samples for name, info in dataset.splits.items()} == {"train": 6, "validation": 4, "test": 2}


LAYOUTS: dict[str, tuple[list[str], str]] = {
    "splits one level down": (
        ["images/train/a/1.jpg", "images/train/b/2.jpg", "images/validation/a/3.jpg", "images/validation/b/4.jpg"],
        "images is not a class: it contains the splits train, validation; pass --root {root}/images",
    ),
    "splits below one of several": (
        ["data/train/a/1.jpg", "data/train/b/2.jpg", "data/test/a/3.jpg", "docs/x.jpg"],
        "data is not a class: it contains the splits test, train; pass --root {root}/data",
    ),
    "splits below classes": (
        ["a/train/1.jpg", "a/test/2.jpg", "b/train/3.jpg", "b/test/4.jpg"],
        "a contains test, train, but split folders must contain the class folders: test/a, not a/test",
    ),
    "classes one level down": (["faces/a/1.jpg", "faces/b/2.jpg"], "its only folder faces contains a, b; if these are"),
    "YOLO": (
        ["images/1.jpg", "labels/1.txt"],
        "looks like a detection dataset (YOLO, VOC): it contains images, labels but no class folders",
    ),
    "FER+": (
        ["FER2013Train/1.png", "FER2013Train/label.csv", "FER2013Valid/2.png", "FER2013Test/3.png"],
        "its 1 images are in no class folder; for FER+'s folders use `python -m shards.build fer2013`",
    ),
    "parts of a dataset": (
        ["one/happy/1.jpg", "one/sadness/2.jpg", "two/happiness/3.jpg", "two/sad/4.jpg"],
        "one, two contain the same classes (happy, sad), so they look like splits rather than classes",
    ),
    "one class": (["a/1.jpg", "a/2.jpg"], "contains only class a, but"),
    "letter case": (["train/Happy/1.jpg", "train/sad/2.jpg", "test/happy/3.jpg"], "(train has Happy)"),
}


@pytest.mark.parametrize(("paths", "reason"), LAYOUTS.values(), ids=LAYOUTS)
def test_ambiguous_layouts_are_one_line(paths: list[str], reason: str, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for number, path in enumerate(paths):
        write(root / path, jpeg(number))
    with pytest.raises(UserError) as caught:
        run_build("folder", tmp_path / "out", "--root", root)
    assert reason.format(root=root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_outside_of_class_folders_are_counted(tmp_path: Path) -> None:
    trees.class_folders(tmp_path / "x", FOLDERS)
    write(tmp_path / "x" / "train" / "stray.jpg", jpeg(99))
    dataset = run_build("folder", tmp_path / "out", "--root", tmp_path / "x", "--validation-fraction", 0)
    assert findings(dataset)["images_outside_class_folders"] == 1


# Suffixes and formats


def test_every_suffix_of_every_accepted_format_is_read(tmp_path: Path) -> None:
    assert {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".tif", ".jp2", ".pgm"} <= image_suffixes()
    for number, suffix in enumerate(sorted(image_suffixes())):
        write(tmp_path / "x" / "ab"[number % 2] / f"{number}{suffix.upper() if number % 3 else suffix}", jpeg(number))
    write(tmp_path / "x" / "a" / "notes.txt", b"")
    dataset = run_build("folder", tmp_path / "out", "--root", tmp_path / "x", "--validation-fraction", 0)
    assert dataset.splits["train"].samples == len(image_suffixes())
    assert findings(dataset)["other_files"] == 1
    assert len(open_dataset_view(tmp_path / "x")) == len(image_suffixes())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HUGE = zlib.compress(b"x" * 3_000_000)
METADATA = {
    "zTXt": chunk(b"zTXt", b"k\0\0" + HUGE),
    "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + HUGE),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + HUGE),
    "many texts": b"".join(chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(b"x" * 1_000_000)) for n in range(70)),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
def test_png_with_huge_metadata_keeps_its_pixels(metadata: bytes, late: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    place = data.index(b"IEND") - 4 if late else data.index(b"IDAT") - 4
    assert np.array_equal(np.asarray(decode(data[:place] + metadata + data[place:])), pixels)
    if late:
        return
    with pytest.raises(InvalidImageError, match="failed to decode"):
        decode(data[:place] + metadata + data[place : place + 20])


# Names


LATIN = b"fr\xf6hlich\\1.jpg"
NEWLINE = b"new\nline.jpg"


def tree_of_names(root: Path) -> None:
    trees.class_folders(root, FOLDERS)
    for number, name in enumerate((LATIN, NEWLINE)):
        path = os.path.join(os.fsencode(root), b"train", b"a", name)
        Path(os.fsdecode(path)).write_bytes(jpeg(50 + number))


def test_names_of_any_bytes_are_stored_escaped(tmp_path: Path) -> None:
    root = tmp_path / "x"
    tree_of_names(root)
    leak = (root / os.fsdecode(b"train/a/" + LATIN)).read_bytes()
    write(root / "test" / "a" / "leak.jpg", leak)
    write(root / "train" / "b" / os.fsdecode(b"b\xe4d.jpg"), b"no image")
    words = ("--root", root, "--validation-fraction", 0)
    with pytest.raises(UserError, match=r"first: train/b/b\\xe4d\.jpg: failed to decode"):
        run_build("folder", tmp_path / "out", *words)
    dataset = run_build("folder", tmp_path / "out", *words, "--max-bad-images", 1, "--keep-leaks", "--discard-partial")
    sources = {entry["source"] for entry in facts(dataset, "train").values()}
    assert {"train/a/fr\\xf6hlich\\x5c1.jpg", "train/a/new\\x0aline.jpg"} <= sources
    assert all((root / unescape_name(source)).is_file() for source in sources)
    for path in dataset.folder.iterdir():
        content = path.read_bytes()
        if path.suffix in (".csv", ".json", ".md"):
            content.decode("utf-8")
        assert b"\\udc" not in content, f"{path}: a lone surrogate"
    assert verify(dataset.folder, 1)[1] == []


def test_doctor_reports_names_of_any_bytes(tmp_path: Path) -> None:
    root = tmp_path / "x"
    tree_of_names(root)
    write(root / "train" / "b" / os.fsdecode(b"b\xe4d.jpg"), b"no image")
    text = diagnose(open_dataset_view(root), 1).to_json()
    assert "\\udc" not in text
    names = {face["name"] for v in json.loads(text)["findings"] for group in v["groups"] for face in group["faces"]}
    assert "train/b/b\\xe4d.jpg" in names


@pytest.mark.parametrize("name", [b"tr\xe4urig", b"new\nline"])
def test_invalid_class_folder_names_are_one_line(name: bytes, tmp_path: Path) -> None:
    trees.class_folders(tmp_path / "x", {"train": ["a"]})
    folder = tmp_path / "x" / "train" / os.fsdecode(name)
    write(folder / "1.jpg", jpeg(9))
    with pytest.raises(UserError, match=r"train/(tr\\xe4urig|new\\x0aline): the folder name is used as a class name"):
        run_build("folder", tmp_path / "out", "--root", tmp_path / "x", "--validation-fraction", 0)


def test_dataset_folder_with_undecodable_name_is_one_line(tmp_path: Path) -> None:
    """Arrow cannot open them."""
    trees.class_folders(tmp_path / "x", FOLDERS)
    words = ("--root", tmp_path / "x", "--validation-fraction", 0)
    out = tmp_path / os.fsdecode(b"daten-\xfc")
    with pytest.raises(UserError, match=r"--out: .*daten-\\xfc: the path is not UTF-8 text"):
        run_build("folder", out, *words)
    run_build("folder", tmp_path / "plain", *words).folder.rename(out)
    with pytest.raises(UserError, match=r"daten-\\xfc: the path is not UTF-8 text"):
        verify(out, 1)
