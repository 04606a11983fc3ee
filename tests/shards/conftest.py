"""Inputs of the dataset builder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import dataset_trees as trees
from tests.helpers.dataset_builds import save


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """root/CLASS/*: two classes of 20 JPEGs."""
    for name in ("cross", "glad"):
        for number in range(20):
            save(tmp_path / "faces" / name / f"{name}.{number:02d}.jpg")
    return tmp_path / "faces"


@pytest.fixture
def release_2017(tmp_path: Path) -> Path:
    train = {f"{n % 3}/{n:02d}.jpg": n % 11 for n in range(22)}
    trees.affectnet_2017(tmp_path / "AffectNet", train, {f"9/v{n}.jpg": n for n in range(8)})
    return tmp_path / "AffectNet"
