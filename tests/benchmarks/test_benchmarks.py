"""Benchmarks run and write their tables. No speed is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.__main__ import main


@pytest.mark.slow
def test_data_benchmark_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["adadf_dist torch", "files + torchvision", "limit: read"]
    words = [
        "--num-samples",
        "64",
        "--image-sizes",
        "32",
        "--seconds",
        "0.2",
        "--batch-size",
        "16",
        "--num-workers",
        "1",
    ]
    main(["loaders", *words, "--only", *names, "--json", str(tmp_path / "out.json")])
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert sorted(figures) == sorted(names)
    assert sorted(figures["adadf_dist torch"]) == ["32", "32 augmented"]
    rates = {name: max(found[0][0] for found in row.values()) for name, row in figures.items()}
    assert 0 < rates["adadf_dist torch"] < rates["limit: read"]
    table = capsys.readouterr().out
    assert all(name in table for name in names)
    assert "MB" in table


def test_folder_without_shards_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["loaders", "--shards", str(tmp_path / "nowhere")])
    assert "nowhere" in capsys.readouterr().err


def test_step_benchmark_writes_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["step", "--image-sizes", "32", "--batch-size", "8", "--steps", "1", "--backbone", "resnet10"])
    assert "resnet10 at 32x32, batch 8:" in capsys.readouterr().out


def test_images_benchmark_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    main(["loader-images", "--num-samples", "6", "--image-size", "40", "--out", str(tmp_path / "pairs.png")])
    with Image.open(tmp_path / "pairs.png") as page:
        assert page.size == (4 * (3 * 40 + 12) - 12, 2 * 44 - 4)
    assert "6 samples at 40 pixels" in capsys.readouterr().out
