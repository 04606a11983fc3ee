"""A finished run to evaluate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.runs import settings, train_here


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train_here(settings(faces, out, epochs="2"))
    return out
