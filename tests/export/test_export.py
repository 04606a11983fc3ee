"""Exported files predict like the training network, hold metadata, and come with a model card."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from adadf_dist.checkpoint.storage import read_checkpoint
from adadf_dist.checkpoint.trained_model import load_trained_model
from adadf_dist.data.synthetic.faces import render_sample
from adadf_dist.export import onnx_format, safetensors_format
from adadf_dist.export.__main__ import main
from adadf_dist.export.exported_model import load_model
from adadf_dist.export.licenses import data_license
from adadf_dist.export.metadata import ExportMetadata
from adadf_dist.export.target_network import TargetNetwork
from adadf_dist.export.verify import max_abs_diff
from adadf_dist.predict.__main__ import main as predict
from tests.helpers.networks import random_network, save_checkpoint, small_config
from tests.helpers.runs import ROOT, settings, train_here

CLASSES = ("glad", "bad", 'älso "odd", quoted')
KINDS = ("onnx", "safetensors", "pt2")


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train_here(settings(faces, out, model__attention_on="features"))
    return out


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` in every format, and the printed text in `said`."""
    folder = tmp_path_factory.mktemp("exported")
    words = [str(run), "--onnx", f"{folder}/model.onnx", "--safetensors", f"{folder}/model.safetensors"]
    with redirect_stdout(StringIO()) as said:
        main([*words, "--torch-export", f"{folder}/model.pt2"])
    (folder / "said").write_text(said.getvalue())
    return folder


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A checkpoint of a network with random weights, whose dataset does not exist."""
    config = small_config({"data.shards": str(tmp_path / "nowhere")})
    save_checkpoint(tmp_path / "drawn.pt", config, random_network(config, len(CLASSES)), CLASSES)
    return tmp_path / "drawn.pt"


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_exported_file_predicts_like_the_training_network(run: Path, exported: Path, kind: str, rows: int) -> None:
    images = torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(rows))
    with torch.no_grad():
        wanted = load_trained_model(run).model(images).target_logits.numpy()
    if kind == "onnx":  # as another program opens it
        session = onnxruntime.InferenceSession(exported / "model.onnx")
        assert [value.name for value in session.get_inputs() + session.get_outputs()] == ["images", "logits"]
        logits = session.run(None, {"images": images.numpy()})[0]
    elif kind == "pt2":
        logits = torch.export.load(exported / "model.pt2").module()(images).detach().numpy()
    else:
        logits = load_model(exported / "model.safetensors", "cpu").logits(images).numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-5)


def test_exported_file_has_metadata(run: Path, exported: Path) -> None:
    checkpoint = run / "checkpoints" / "selected.pt"
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    extra = {"adadf_dist.json": ""}
    torch.export.load(exported / "model.pt2", extra_files=extra)
    with safe_open(exported / "model.safetensors", framework="pt") as file:
        in_safetensors = file.metadata()
    assert in_safetensors.pop("format") == "pt"
    kept = read_checkpoint(checkpoint)
    for said in (session.get_modelmeta().custom_metadata_map, json.loads(extra["adadf_dist.json"]), in_safetensors):
        assert json.loads(said["classes"]) == kept["preprocessing"]["classes"]
        assert json.loads(said["preprocessing"]) == kept["preprocessing"]
        assert json.loads(said["model"])["backbone"] == "resnet10"
        assert said["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        assert int(said["epoch"]) == kept["progress"]["epoch"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", said["adadf_dist"])


@pytest.mark.parametrize("kind", KINDS)
def test_exported_file_holds_no_auxiliary_branch_and_no_path(run: Path, exported: Path, kind: str) -> None:
    data = (exported / f"model.{kind}").read_bytes()
    weights = read_checkpoint(run / "checkpoints" / "selected.pt")["engine"]["model"]
    target = sum(w.nbytes for name, w in weights.items() if not name.startswith("auxiliary."))
    auxiliary = sum(w.nbytes for name, w in weights.items() if name.startswith("auxiliary."))
    assert len(data) < target + 0.1 * auxiliary
    for place in (ROOT, Path(sys.prefix), run.parent):
        assert str(place).encode() not in data


def test_export_prints_a_summary(exported: Path) -> None:
    said = (exported / "said").read_text().splitlines()
    assert "both branches" in said[0]
    assert "faces of embedded-faces, test (batch sizes 1, 2, 7)" in said[1]
    for line, kind in zip(said[2:5], KINDS, strict=True):
        size = (exported / f"model.{kind}").stat().st_size / 1e6
        assert f"model.{kind}: {size:.1f} MB" in line
        assert all(float(off) < 1e-5 for off in re.findall(r"(\S+) on (?:random images|faces)", line))
    assert sorted(path.name for path in exported.iterdir()) == sorted(
        ["model.onnx", "model.safetensors", "model.pt2", "model.md", "said"]
    )


def test_model_card_content(run: Path, exported: Path) -> None:
    _, front, body = (exported / "model.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    result = json.loads((run / "result.json").read_text())
    by_split = {entry["dataset"]["split"]: entry["metrics"][0]["value"] for entry in head["model-index"][0]["results"]}
    assert by_split["validation"] == pytest.approx(result["validation_accuracy"], abs=1e-4)
    assert by_split["test"] == pytest.approx(result["test"]["accuracy"], abs=1e-4)
    low, high = result["test"]["accuracy_interval"]
    assert f"{low:.2%} to {high:.2%}" in body
    assert "| train | 64 |" in body
    assert "synthetic faces" in body
    assert "An expression is not an emotion" in body
    assert str(run.parent) not in body


def test_model_card_code_runs(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(render_sample(3, 0, 48).image).save(tmp_path / "FACE.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "model.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) == 5
    (tmp_path / "model.onnx").symlink_to(exported / "model.onnx")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        predict(["model.onnx", "FACE.jpg"])
    assert done.stdout.strip() == capsys.readouterr().out.splitlines()[1].split(",")[1], done.stderr


def test_baseline_exports(tmp_path: Path) -> None:
    config = small_config({"loss.supervision": "one_hot"})
    model = random_network(config, 3)
    save_checkpoint(tmp_path / "baseline.pt", config, model, CLASSES)
    main([f"{tmp_path}/baseline.pt", "--safetensors", f"{tmp_path}/b.safetensors", "--onnx", f"{tmp_path}/b.onnx"])
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        wanted = model.target.classifier(model.target.features(model.extractor(images)))
    for name in ("b.safetensors", "b.onnx"):
        opened = load_model(tmp_path / name, "cpu")
        assert opened.classes == CLASSES
        torch.testing.assert_close(opened.logits(images), wanted, atol=1e-5, rtol=0)
    card = (tmp_path / "b.md").read_text()
    assert "single-label baseline" in card
    assert "Unknown: the dataset was not available" in card
    assert "`--data-license` was not set" in card
    assert "model-index" not in yaml.safe_load(card.split("---\n")[1])


def test_file_with_different_predictions_is_not_kept(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = safetensors_format.write

    def forgetful(network: TargetNetwork, facts: ExportMetadata, path: Path) -> None:
        with torch.no_grad():
            network.target.classifier.bias += 1e-2
        honest(network, facts, path)
        with torch.no_grad():
            network.target.classifier.bias -= 1e-2

    monkeypatch.setattr(safetensors_format, "write", forgetful)
    before = sorted(drawn.parent.iterdir())
    assert "differs from the checkpoint by" in refused(capsys, drawn, "--safetensors", drawn.parent / "x.safetensors")
    assert sorted(drawn.parent.iterdir()) == before


def test_network_of_nans_is_rejected(drawn: Path) -> None:
    trained = load_trained_model(drawn)
    images = torch.randn(7, 3, 32, 32)
    assert max_abs_diff(trained.model.predict, trained, images) == 0
    difference = max_abs_diff(lambda rows: trained.model.predict(rows) * torch.nan, trained, images)
    assert not difference <= 1e-4


def test_existing_files_are_kept(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = drawn.parent / "there.safetensors"
    there.write_text("mine")
    assert "--overwrite" in refused(capsys, drawn, "--safetensors", there)
    (drawn.parent / "new.md").write_text("my card")
    card = ("--model-card", drawn.parent / "new.md")
    assert "new.md: already exists" in refused(capsys, drawn, "--safetensors", drawn.parent / "new.safetensors", *card)
    assert there.read_text() == "mine"
    main([str(drawn), "--safetensors", str(there), "--overwrite", "--data-license", "CC0"])
    assert load_model(there, "cpu").classes == CLASSES
    assert "License of the data: CC0." in there.with_suffix(".md").read_text()


def test_user_errors_are_one_line(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = drawn.parent
    assert "use the extension .onnx" in refused(capsys, drawn, "--onnx", folder / "x.bin")
    (folder / "file").write_text("mine")
    assert "is not a folder" in refused(capsys, drawn, "--safetensors", folder / "file" / "x.safetensors")
    card = refused(capsys, drawn, "--safetensors", folder / "x.safetensors", "--model-card", folder / "x.safetensors")
    assert "--model-card" in card and "use .md" in card
    nowhere = refused(capsys, drawn, "--safetensors", "/proc/x.safetensors", "--model-card", folder / "x.md")
    assert "/proc" in nowhere and "written" in nowhere
    assert "no such run folder" in refused(capsys, folder / "no", "--safetensors", folder / "x.safetensors")
    for opset in (17, 999):
        line = refused(capsys, drawn, "--onnx", folder / "x.onnx", "--opset", opset)
        assert re.search(rf"--opset {opset}: must be from 18 .* to \d\d ", line)


def test_lowest_and_highest_opset_work(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, drawn, "--onnx", drawn.parent / "x.onnx", "--opset", 999)
    highest = int(re.findall(r" to (\d+) ", line)[0])
    main([str(drawn), "--onnx", f"{drawn.parent}/x.onnx", "--opset", str(highest)])
    assert load_model(drawn.parent / "x.onnx", "cpu").classes == CLASSES
    assert not onnx_format.is_opset_supported(highest + 1) or highest == onnx_format.onnx.defs.onnx_opset_version()


def test_missing_onnx_is_one_line(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "adadf_dist.export.onnx_format")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = refused(capsys, drawn, "--onnx", drawn.parent / "x.onnx")
    assert "pip install 'adadf_dist[onnx]'" in line


def test_licenses_follow_the_training_data() -> None:
    assert "non-commercial" in data_license("rafdb", "")
    assert data_license("rafdb", "mine") == "mine"
    assert data_license("folder", "").startswith("unknown")
