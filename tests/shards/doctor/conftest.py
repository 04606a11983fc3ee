"""A tree of synthetic faces, and one with injected faults."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.doctor_output import DoctorOutput
from tests.helpers.synthetic_faults import draw_tree, plant


@pytest.fixture(scope="package")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean") / "faces"
    draw_tree(root)
    return root


@pytest.fixture(scope="package")
def faulty(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DoctorOutput, dict[str, list[set[str]]]]:
    root = tmp_path_factory.mktemp("faulty") / "faces"
    shutil.copytree(clean, root)
    faults = plant(root)
    return DoctorOutput(root, root.parent), faults
