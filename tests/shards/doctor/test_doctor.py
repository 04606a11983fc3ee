"""The doctor on trees with injected faults finds each of them and nothing else."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.synthetic.faces import EMOTIONS, render_sample
from shards.build import build, parse_arguments
from shards.doctor import release_checks
from shards.doctor.__main__ import main
from shards.doctor.dataset_view import open_dataset_view
from shards.doctor.duplicates import connected_components
from shards.doctor.fingerprint import (
    MAX_HAMMING_DISTANCE,
    MIN_SIMILARITY,
    MIRROR,
    MIRROR_BITS,
    NO_FLIP,
    fingerprint,
    hashes,
    near_pairs,
    similarity,
)
from shards.doctor.releases import RELEASES, Release
from tests.conftest import SHARED
from tests.helpers import dataset_trees as trees
from tests.helpers.synthetic_faults import draw_tree, plant


class DoctorOutput:
    """The output of a run of the doctor."""

    def __init__(self, folder: Path, out: Path, *options: str) -> None:
        words = [
            str(folder),
            "--json",
            str(out / "doctor.json"),
            "--html",
            str(out / "doctor.html"),
            "--overwrite",
            *options,
        ]
        with pytest.raises(SystemExit) as ended:
            main([*words, "--num-workers", "1"] if "--num-workers" not in options else words)
        self.status = ended.value.code
        self.json: dict[str, Any] = json.loads((out / "doctor.json").read_text())
        self.html = (out / "doctor.html").read_text()

    def verdicts(self, check: str, worse_than: str = "ok") -> list[dict[str, Any]]:
        words = ["ok", "info", "warning", "error"]
        return [
            verdict
            for verdict in self.json["findings"]
            if verdict["check"] == check and words.index(verdict["severity"]) > words.index(worse_than)
        ]

    def groups(self, check: str, containing: str = "", where: str = "") -> list[set[str]]:
        return [
            {face["name"] for face in group["faces"]}
            for verdict in self.verdicts(check)
            if containing in verdict["message"] and where in verdict["location"]
            for group in verdict["groups"]
        ]


def same(found: list[set[str]], planted: list[set[str]]) -> bool:
    return sorted(map(sorted, found)) == sorted(map(sorted, planted))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean") / "faces"
    draw_tree(root)
    return root


@pytest.fixture(scope="module")
def faulty(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DoctorOutput, dict[str, list[set[str]]]]:
    root = tmp_path_factory.mktemp("faulty") / "faces"
    shutil.copytree(clean, root)
    faults = plant(root)
    return DoctorOutput(root, root.parent), faults


# Injected faults


def test_every_injected_fault_is_found_and_no_other(faulty: tuple[DoctorOutput, dict[str, list[set[str]]]]) -> None:
    output, faults = faulty
    assert same(output.groups("leaks", "exact"), faults["exact across"])
    assert same(output.groups("leaks", "near"), faults["near across"])
    assert same(output.groups("leaks", "mirrored"), faults["mirrored across"])
    assert same(output.groups("duplicates"), faults["relabeled"])
    assert same(output.groups("labels"), faults["relabeled"])
    assert same(output.groups("blank"), faults["blank"])
    assert same(output.groups("tiny"), faults["tiny"])
    assert same(output.groups("unreadable"), faults["unreadable"])
    assert same(output.groups("suspicious"), faults["suspicious"])
    assert output.status == 2


def test_leaks_name_both_splits_and_their_count(faulty: tuple[DoctorOutput, dict[str, list[set[str]]]]) -> None:
    output, _ = faulty
    [exact] = [verdict for verdict in output.verdicts("leaks") if "exact" in verdict["message"]]
    assert (exact["severity"], exact["location"]) == ("error", "train")
    assert "3 faces" in exact["message"]
    assert "test" in exact["message"]
    for group in exact["groups"]:
        assert {face["split"] for face in group["faces"]} == {"train", "test"}
    [conflict] = output.verdicts("labels")
    for group in conflict["groups"]:
        assert len({face["class"] for face in group["faces"]}) == 2


def test_reasons_are_explained(faulty: tuple[DoctorOutput, dict[str, list[set[str]]]]) -> None:
    output, faults = faulty
    remarks = {
        group["faces"][0]["name"]: group["note"]
        for check in ("unreadable", "suspicious")
        for verdict in output.verdicts(check)
        for group in verdict["groups"]
    }
    assert "empty file" in remarks["train/happy/empty.jpg"]
    [renamed] = faults["suspicious"][0]
    assert "PNG inside" in remarks[renamed]
    assert not any("0x" in remark for remark in remarks.values()), "no addresses of objects"


def test_clean_tree_has_no_findings(clean: Path, tmp_path: Path) -> None:
    output = DoctorOutput(clean, tmp_path)
    accused = [verdict for verdict in output.json["findings"] if verdict["severity"] != "ok"]
    # 30 and 60 samples of 7 classes are few, and synthetic faces are no published dataset: both are reported.
    assert {verdict["check"] for verdict in accused} <= {"classes", "dataset"}
    assert {verdict["severity"] for verdict in accused} == {"info"}
    assert output.status == 0


def test_workers_do_not_change_the_report(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    one = DoctorOutput(clean, tmp_path)
    assert DoctorOutput(clean, tmp_path / "two", "--num-workers", "2").json == one.json


def test_dataset_folder_with_leaks_kept_and_dropped(clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    shutil.copytree(clean, root)
    for path in sorted((root / "train").glob("*/*"))[:4]:
        shutil.copy(path, root / "test" / path.parent.name / f"copy-{path.name}")
    for name, option, status in (("kept", ["--keep-leaks"], 2), ("dropped", [], 0)):
        words = ["folder", "--root", str(root), "--out", str(tmp_path / name), "--num-workers", "1", *option]
        build(parse_arguments(words))
        output = DoctorOutput(tmp_path / name, tmp_path)
        assert output.status == status
        assert output.json["kind"] == "dataset folder"
        assert len(output.groups("leaks")) == (4 if name == "kept" else 0)
    assert ["4 leaks" in verdict["message"] for verdict in output.verdicts("builder")] == [True]


def test_missing_splits_and_classes_are_found(clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    shutil.copytree(clean / "train", root / "train")
    shutil.copytree(clean / "validation", root / "validation")
    shutil.rmtree(root / "validation" / "fear")
    output = DoctorOutput(root, tmp_path)
    [missing] = output.verdicts("splits")
    assert (missing["severity"], "test" in missing["message"]) == ("warning", True)
    assert [verdict["location"] for verdict in output.verdicts("classes", "info")] == ["validation"]
    assert output.status == 1


def test_gray_train_and_color_test_are_found(clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    shutil.copytree(clean, root)
    for path in (root / "train").glob("*/*.png"):
        Image.open(path).convert("L").save(path)
    output = DoctorOutput(root, tmp_path)
    [grey] = output.verdicts("color")
    assert grey["severity"] == "warning"
    assert "train 100.0%" in grey["message"]
    assert "test 0.0%" in grey["message"]


# Counts and class order


def test_table_counts_equal_the_disk(clean: Path, tmp_path: Path) -> None:
    output = DoctorOutput(clean, tmp_path)
    for split, facts in output.json["splits"].items():
        files = Counter(path.parent.name for path in (clean / split).glob("*/*.png"))
        assert dict(zip(output.json["classes"], facts["class_counts"], strict=True)) == files
        assert facts["faces"] == sum(files.values())


def test_swapped_class_names_are_found_by_published_counts(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release made of our own samples, in another label order; then two class folders swap names."""
    root = tmp_path / "faces"
    shutil.copytree(clean, root)
    classes = tuple(EMOTIONS)
    for label, name in enumerate(classes):  # 10, 9, ... samples: classes that are distinguishable by their counts
        for extra in sorted((root / "train" / name).iterdir())[10 - label :]:
            extra.unlink()
    files = {
        split: Counter(path.parent.name for path in (root / split).glob("*/*"))
        for split in ("train", "validation", "test")
    }
    counts = {split: tuple(found[name] for name in classes) for split, found in files.items()}
    assert counts["train"] == (10, 9, 8, 7, 6, 5, 4)
    monkeypatch.setattr(release_checks, "RELEASES", (Release("drawn", "Drawn Faces 1", classes, counts),))
    output = DoctorOutput(root, tmp_path)
    assert [verdict["severity"] for verdict in output.json["findings"] if verdict["check"] == "counts"] == ["ok"] * 3
    assert [verdict["severity"] for verdict in output.verdicts("class order")] == ["info"], (
        "sorted, so in another order"
    )
    next((root / "test" / "sad").iterdir()).unlink()
    [short] = DoctorOutput(root, tmp_path).verdicts("counts")
    assert "sad -1" in short["message"]
    for split in files:
        (root / split / "sad").rename(root / split / "x")
        (root / split / "happy").rename(root / split / "sad")
        (root / split / "x").rename(root / split / "happy")
    output = DoctorOutput(root, tmp_path)
    [swapped] = output.verdicts("class order", "warning")
    assert "happy is sad" in swapped["message"]
    assert "sad is happy" in swapped["message"]


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.title)
def test_published_counts_add_up(release: Release) -> None:
    """Totals as printed in the papers (Goodfellow 2013, Li 2017, Mollahosseini 2017; SFEW's as in Ada-DF's paper)."""
    totals = {
        "fer2013": {"train": 28709, "validation": 3589, "test": 3589},
        "rafdb": {"train": 12271, "test": 3068},
        "sfew": {"train": 891, "test": 431} if "aligned" in release.title else {"train": 958, "test": 436},
        "affectnet": {
            "train": 287651 if len(release.classes) == 8 else 283901,
            "test": 3999 if "2021" in release.title else 500 * len(release.classes),
        },
    }[release.dataset]
    for split, counts in release.counts.items():
        assert sum(counts) == totals[split]
        assert len(counts) == len(release.classes)


# The search, against brute force


@pytest.mark.parametrize("flip", [NO_FLIP, MIRROR_BITS])
def test_near_pairs_equal_brute_force(flip: np.uint64) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, 1200, dtype=np.uint64)
    for bits in range(10):  # copies 0 to 9 bits away, of which those up to RADIUS must be found
        for number in range(60):
            turned = np.bitwise_xor.reduce(np.uint64(1) << rng.choice(64, bits, replace=False).astype(np.uint64))
            codes[600 + 60 * bits + number] = codes[number] ^ turned ^ flip
    distances = np.bitwise_count(codes[:, None] ^ codes[None] ^ flip)
    naive = {(int(i), int(j)) for i, j in np.argwhere(distances <= MAX_HAMMING_DISTANCE) if i < j}
    found = [tuple(pair) for chunk in near_pairs(codes, flip) for pair in chunk.tolist()]
    assert len(found) == len(set(found)), "each pair once"
    assert set(found) == naive
    assert len(naive) > 400


def test_equal_hashes_are_all_paired() -> None:
    codes = np.full(50, 12345, dtype=np.uint64)
    assert sum(len(chunk) for chunk in near_pairs(codes)) == 50 * 49 // 2
    assert not list(near_pairs(codes[:1]))
    assert not list(near_pairs(codes[:0]))


def test_synthetic_faces_are_no_near_duplicates() -> None:
    """Every pair, not only those with near hashes; mirrored too. The threshold's docstring has the same for 2,000."""
    prints = np.stack(
        [fingerprint(Image.fromarray(render_sample(3, index, 48).image).convert("L")) for index in range(400)]
    ).astype(np.float32)
    for other in (prints, prints * MIRROR):
        alike = prints @ other.T
        np.fill_diagonal(alike, 0)
        assert alike.max() < MIN_SIMILARITY
        assert alike.max() > 0.5, "faces are alike, or the test would say nothing"


def test_mirrored_fingerprint_equals_that_of_the_mirrored_image() -> None:
    grey = Image.fromarray(render_sample(1, 5, 64).image).convert("L")
    straight, mirrored = (fingerprint(image).astype(np.float32) for image in (grey, ImageOps.mirror(grey)))
    assert np.abs(straight * MIRROR - mirrored).max() < 5e-3
    assert np.abs(straight - mirrored).max() > 0.05
    both = np.stack([straight, mirrored]).astype(np.float16)
    pair = np.array([[0, 1]])
    assert similarity(both, pair, mirrored=True)[0] > 0.999
    codes = hashes(both)
    assert np.bitwise_count(codes[0] ^ codes[1] ^ MIRROR_BITS) <= 2


def test_groups_are_joined_transitively() -> None:
    assert connected_components([(5, 6), (1, 2), (9, 5), (2, 3)]) == [[1, 2, 3], [5, 6, 9]]
    assert connected_components([]) == []


# The page


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_shows_every_verdict_and_its_images(faulty: tuple[DoctorOutput, dict[str, list[set[str]]]]) -> None:
    output, faults = faulty
    page = Page(output.html)
    assert not page.open, "every tag is closed"
    for verdict in output.json["findings"]:
        assert verdict["message"] in output.html
    shown = {attributes["alt"] for tag, attributes in page.tags if tag == "img"}
    for fault, groups in faults.items():
        if fault != "unreadable":
            assert set().union(*groups) <= shown
    sources = [str(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "http" not in re.sub(r"base64,[^\"]*", "", output.html), "nothing is loaded from elsewhere"


def test_page_escapes_names_from_the_data(clean: Path, tmp_path: Path) -> None:
    hostile = "<script>alert('&')<"
    root = tmp_path / "a&b<i>"
    for split in ("train", "test"):
        for name, new in (("happy", hostile), ("sad", "sad")):
            shutil.copytree(clean / split / name, root / split / new)
    face = next((root / "train" / hostile).iterdir())
    shutil.copy(face, root / "test" / hostile / '"><b>.png')
    output = DoctorOutput(root, tmp_path)
    page = Page(output.html)
    assert not page.open
    assert not {"script", "i"} & {tag for tag, attributes in page.tags if "style" not in attributes}
    assert "&lt;script&gt;" in output.html
    assert any('"><b>.png' in str(attributes.get("alt")) for _, attributes in page.tags)


# Bad input


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    lines = [line for line in said.err.splitlines() if line.startswith("shards.doctor: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_bad_input_is_one_line(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in fails(capsys, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "line 1: no column" in fails(capsys, tmp_path / "file")  # read as a csv list
    (tmp_path / "odd" / "deep").mkdir(parents=True)
    (tmp_path / "odd" / "notes.txt").write_text("")
    line = fails(capsys, tmp_path / "odd")
    assert "dataset.json" in line
    assert "fer2013.csv" in line
    assert "found deep/, notes.txt" in line
    (tmp_path / "empty").mkdir()
    assert "an empty folder" in fails(capsys, tmp_path / "empty")
    assert str(tmp_path / "file") in fails(capsys, clean, "--html", tmp_path / "file" / "x.html")
    assert "is a folder" in fails(capsys, clean, "--html", tmp_path)
    assert "is not a folder" in fails(capsys, clean, "--json", tmp_path / "file" / "x.json")


def test_damaged_dataset_folder_is_one_line(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    tar = next((tmp_path / "faces").glob("train-*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1000])
    assert "truncated" in fails(capsys, tmp_path / "faces")


def test_unreadable_image_in_a_dataset_folder_is_found(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    split = open_dataset(faces).split("test")
    encoded = bytes(split.read(3))
    tar = next((tmp_path / "faces").glob("test-*.tar"))
    tar.write_bytes(tar.read_bytes().replace(encoded, b"\xff" * len(encoded)))
    output = DoctorOutput(tmp_path / "faces", tmp_path)
    assert output.groups("unreadable") == [{str(split.keys[3])}]
    assert output.status == 2


# Real images


def test_fer2013_sample_equals_its_csv(tmp_path: Path) -> None:
    """Exact copies are equal pixel strings."""
    path = SHARED / "data" / "fer2013" / "mini_fer2013.csv.gz"
    if not path.is_file():
        pytest.skip("FER2013 is not at hand here")
    root = tmp_path / "fer"
    root.mkdir()
    shutil.copy(path, root / "fer2013.csv.gz")
    output = DoctorOutput(root, tmp_path)
    with gzip.open(path, "rt") as stream:
        rows = list(csv.DictReader(stream))
    test = {row["pixels"] for row in rows if row["Usage"] == "PublicTest"}
    alike: dict[str, set[str]] = {}
    for number, row in enumerate(rows):
        if row["Usage"] == "Training":
            alike.setdefault(row["pixels"], set()).add(f"fer2013.csv.gz row {number}")
    leaks = sum(len(twins) for pixels, twins in alike.items() if pixels in test)
    [exact] = [verdict for verdict in output.verdicts("leaks") if "exact" in verdict["message"]]
    assert exact["message"].split()[0] == str(leaks)
    twins = [found for found in alike.values() if len(found) > 1]
    assert twins
    assert same(output.groups("duplicates", "exact", "train"), twins)


def test_raw_trees_are_recognized(tmp_path: Path) -> None:
    """Each layout by itself, with all samples: none held out, none dropped."""
    trees.affectnet_2017(
        tmp_path / "2017", {f"1/{n}.jpg": n % 8 for n in range(16)}, {f"2/{n}.jpg": n for n in range(8)}
    )
    trees.affectnet_2021(tmp_path / "2021", list(range(8)), list(range(8)))
    trees.rafdb(tmp_path / "raf", {f"train_{n}.jpg": n for n in range(1, 8)} | {"test_1.jpg": 1})
    emotions = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
    trees.class_folders(tmp_path / "sfew", {"Train": emotions, "Val": emotions})
    trees.class_folders(tmp_path / "own", {"train": ["a", "b"], "val": ["a", "b"]})
    wanted = {
        "2017": ("affectnet", 24),
        "2021": ("affectnet", 16),
        "raf": ("rafdb", 8),
        "sfew": ("sfew", 14),
        "own": ("folder", 4),
    }
    for name, (source, faces) in wanted.items():
        material = open_dataset_view(tmp_path / name)
        assert (material.source, len(material)) == (source, faces)
        assert "validation" not in material.splits or name == "own"
