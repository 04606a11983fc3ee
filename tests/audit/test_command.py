"""The audit command: options, user errors, unfinished and moved runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from adadf_dist.audit.__main__ import main
from adadf_dist.audit.training_dynamics import load_training_dynamics
from adadf_dist.errors import UserError
from adadf_dist.tracking.artifacts import load_samples
from tests.helpers.audits import copy_run
from tests.helpers.dataset_builds import run_build

CPU = torch.device("cpu")


def test_report_is_markdown_and_replaced_only_with_force(
    run: Path, audit_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(run)])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    (audit_folder / "relabel.csv").write_text("key,decision,label\n")
    before = (audit_folder / "audit.csv").read_bytes()
    main([str(run), "--max-images", "60", "--overwrite"])
    assert (audit_folder / "audit.csv").read_bytes() == before
    assert (audit_folder / "relabel.csv").exists()  # the audit must not remove a user's file


def test_options_reach_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[object, ...]] = []

    def take(*values: object) -> None:
        found.append(values)
        raise UserError("enough")

    monkeypatch.setattr("adadf_dist.audit.__main__.load_audit_inputs", take)
    words = ["--checkpoint", "last", "--shards", "a", "--cache-dir", "b", "--device", "cpu", "--precision", "bf16"]
    with pytest.raises(SystemExit):
        main([str(tmp_path), *words])
    assert found == [(tmp_path, "last", {"data.shards": "a", "data.cache_dir": "b"}, CPU, False, "bf16")]


def test_missing_cleanlab_is_reported(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_run(run, tmp_path)
    main([str(copy), "--max-images", "1", "--reference-labels", str(dataset)])
    note = capsys.readouterr().err
    assert note.count("\n") == 1
    assert f"python -m benchmarks audit {copy} --reference-labels {dataset}" in note
    assert (copy / "audit" / "audit.csv").exists()


def error_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("adadf_dist.audit: error: ")
    assert line.count("\n") == 1
    return line


def test_incomplete_run_is_rejected(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such run folder" in error_line(capsys, str(tmp_path / "nowhere"))
    copy = copy_run(run, tmp_path)
    moved = str(tmp_path / "gone")
    assert "gone" in error_line(capsys, str(copy), "--shards", moved)
    shutil.rmtree(copy / "history")
    assert "history/epoch-0001.npz" in error_line(capsys, str(copy))
    (copy / "samples.npz").unlink()
    assert "samples.npz: missing" in error_line(capsys, str(copy))
    shutil.rmtree(copy / "checkpoints")
    assert "no checkpoint found" in error_line(capsys, str(copy))
    assert "is a file" in error_line(capsys, str(copy / "config.yaml"))


def test_different_dataset_is_rejected(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_run(run, tmp_path)
    other = run_build("folder", tmp_path / "other", "--root", dataset.parent / "tinted", "--validation-fraction", 0.2)
    capsys.readouterr()  # the builder's progress
    assert "training samples differ from the run's" in error_line(capsys, str(copy), "--shards", str(other.folder))
    with np.load(copy / "samples.npz") as file:
        arrays = dict(file)
    arrays["labels"][0] = (arrays["labels"][0] + 1) % 7
    np.savez(copy / "samples.npz", **arrays)
    assert "training labels differ from the run's" in error_line(capsys, str(copy))


def test_mismatched_classes_are_rejected(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = Path(shutil.copytree(dataset, tmp_path / "renamed"))
    manifest = renamed / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"happy"', '"delighted"'))
    output = error_line(capsys, str(copy_run(run, tmp_path)), "--shards", str(renamed))
    assert "has the classes " in output
    assert "delighted" in output


def test_unfinished_run_is_audited_by_its_completed_epochs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_run(run, tmp_path)
    (copy / "history" / "epoch-0003.npz").unlink()
    (copy / "history" / "epoch-0003.partial.npz").write_bytes(b"half")
    main([str(copy), "--max-images", "1"])
    assert "the run has finished 2 of 3 epochs" in capsys.readouterr().out
    assert load_training_dynamics(copy, len(load_samples(copy).labels)).epochs == 2
    assert "2 of 3 epochs" in (copy / "audit" / "audit.html").read_text()


def test_moved_dataset_is_found_by_option(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = copy_run(run, tmp_path)
    selected = copy / "checkpoints" / "selected.pt"
    content = torch.load(selected, weights_only=True)
    content["config"]["data"]["shards"] = "gone/faces"
    torch.save(content, selected)
    assert "gone/faces: the run's dataset was not found; pass its location as --shards" in error_line(capsys, str(copy))


def test_history_of_other_samples_is_rejected(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = copy_run(run, tmp_path)
    three = np.zeros(3)
    np.savez(copy / "history" / "epoch-0002.npz", attention=three, loss=three, correct=three)
    assert "epoch-0002.npz: does not match the run's" in error_line(capsys, str(copy))
    (copy / "history" / "epoch-0002.npz").unlink()
    assert "history/epoch-0002.npz is missing" in error_line(capsys, str(copy))
