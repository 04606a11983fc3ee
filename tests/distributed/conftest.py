"""An uninterrupted run for comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from adadf_dist import train
from adadf_dist.config.load import ConfigLayer, build_config
from tests.helpers.runs import settings


@pytest.fixture(scope="module")
def reference(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two epochs on one rank."""
    out = tmp_path_factory.mktemp("runs") / "reference"
    train.run(build_config([ConfigLayer("test", settings(faces, out))]))
    return out
