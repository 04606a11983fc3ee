"""Shared input: a few drawn faces as shards, and the settings of a run small enough for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from adadf_dist.data.embedded import build_embedded

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real faces and golden vectors, where there are some."""


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of 96 training, 40 validation and 50 test faces of 32x32."""
    folder = tmp_path_factory.mktemp("shards") / "faces"
    build_embedded(folder, {"train": 96, "validation": 40, "test": 50}, size=32, workers=1)
    return folder
