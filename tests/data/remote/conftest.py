"""A dataset on a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.remote_datasets import build
from tests.helpers.remote_server import Site, serve


@pytest.fixture(scope="package")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training faces in 3 tars, 12 for validation, 10 for test."""
    return build(tmp_path_factory.mktemp("remote") / "faces")


@pytest.fixture
def site(original: Path) -> Iterator[Site]:
    with serve(original) as site:
        yield site


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
