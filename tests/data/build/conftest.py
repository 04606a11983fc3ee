"""Dataset folders of numbered images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adadf_dist.data.build.builder import build_dataset
from adadf_dist.data.dataset import Dataset
from tests.helpers.numbered_images import OPTIONS, Pictures


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build_dataset(Pictures(), tmp_path_factory.mktemp("built") / "pictures", OPTIONS)


@pytest.fixture
def copy(built: Dataset, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(built.folder, tmp_path / "copy"))
