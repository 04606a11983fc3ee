"""Counts and class order, compared with the disk and with published releases."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from adadf_dist.data.synthetic.faces import EMOTIONS
from shards.doctor import release_checks
from shards.doctor.releases import RELEASES, Release
from tests.helpers.doctor_output import DoctorOutput


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
    assert [finding["severity"] for finding in output.json["findings"] if finding["check"] == "counts"] == ["ok"] * 3
    assert [finding["severity"] for finding in output.findings("class order")] == ["info"], (
        "sorted, so in another order"
    )
    next((root / "test" / "sad").iterdir()).unlink()
    [short] = DoctorOutput(root, tmp_path).findings("counts")
    assert "sad -1" in short["message"]
    for split in files:
        (root / split / "sad").rename(root / split / "x")
        (root / split / "happy").rename(root / split / "sad")
        (root / split / "x").rename(root / split / "happy")
    output = DoctorOutput(root, tmp_path)
    [swapped] = output.findings("class order", "warning")
    assert "happy should be sad" in swapped["message"]
    assert "sad should be happy" in swapped["message"]


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
