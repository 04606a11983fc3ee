"""Predictions: evaluation's own numbers, from every kind of file and of picture, in order and as they come."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adadf_dist.alignment.mtcnn import Face
from adadf_dist.checkpoint.trained_model import TrainedPredictor, load_trained_model
from adadf_dist.config.schema import Config
from adadf_dist.data.datamodule import open_data
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.synthetic.faces import render_sample
from adadf_dist.distributed.world import World
from adadf_dist.export.__main__ import main as export
from adadf_dist.export.exported_model import load_model
from adadf_dist.files.text import unescape_name
from adadf_dist.metrics.predictions import predict_split
from adadf_dist.predict.__main__ import main
from adadf_dist.predict.inputs import ImageInput, file_picture
from adadf_dist.predict.predictor import Predictor
from tests.networks import drawn_network, save_checkpoint, small_config
from tests.patience import communicate
from tests.runs import start
from tests.test_shards import run_build

CPU = torch.device("cpu")
CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger")


@pytest.fixture(scope="module")
def models(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a drawn network as model.pt, .safetensors, .onnx and .pt2."""
    folder = tmp_path_factory.mktemp("models")
    config = small_config({"data.shards": str(faces)})
    save_checkpoint(folder / "model.pt", config, drawn_network(config, len(CLASSES)), CLASSES)
    files = ["--safetensors", f"{folder}/model.safetensors", "--onnx", f"{folder}/model.onnx"]
    export([f"{folder}/model.pt", *files, "--torch-export", f"{folder}/model.pt2"])
    return folder


@pytest.fixture
def model(models: Path) -> Path:
    return models / "model.safetensors"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of four good pictures, two bad ones, and what is no picture."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.jpg", "below/c.JPEG", "d.webp"]):
        Image.fromarray(render_sample(1, number, 48).image).save(folder / name)
    (folder / "e.jpg").write_bytes(b"no picture")
    Image.new("RGB", (30, 7)).save(folder / "f.png")
    (folder / "notes.txt").write_text("no picture either")
    return folder


def predict(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> tuple[str, list[str]]:
    """Standard output, and the lines of standard error."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    said = capsys.readouterr()
    assert ended.value.code == status, said.err
    return said.out, said.err.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    out, lines = predict(capsys, *words, status=2)
    assert not out
    assert len(lines) == 1, lines
    return lines[0]


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def shares(rows: list[dict[str, str]]) -> np.ndarray:
    """[n, C]"""
    return np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])


def evaluation(checkpoint: Path, config: Config, split: str) -> np.ndarray:
    """[S, C]: what evaluation finds of a split, through the torch loader."""
    with open_data(config, 0, 1, CPU) as data:
        chosen = {"test": data.test_split, "train": data.train_split}[split]
        network = TrainedPredictor(load_trained_model(checkpoint), CPU, "fp32")
        return predict_split(network, data.eval_batches(chosen), len(chosen), World(CPU)).target_probs


@pytest.mark.parametrize("kind", ["pt", "safetensors", "onnx", "pt2"])
def test_a_dataset_is_answered_as_in_evaluation(
    models: Path, faces: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, lines = predict(capsys, models / f"model.{kind}", faces, "--batch-size", 7, "--device", "cpu")
    wanted = evaluation(models / "model.pt", load_trained_model(models / "model.pt").config, "test")
    rows = read_csv(out)
    np.testing.assert_allclose(shares(rows), wanted, atol=1e-5)
    assert [row["prediction"] for row in rows] == [CLASSES[best] for best in wanted.argmax(axis=1)]
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], wanted.max(axis=1), atol=1e-5)
    assert not lines
    assert wanted.std(axis=0).max() > 1e-3  # faces are told apart, or all of this would say little


def test_ten_crops_as_in_evaluation(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config({"data.shards": str(faces), "data.ten_crop": 40, "data.workers": 0})
    save_checkpoint(tmp_path / "ten.pt", config, drawn_network(config, len(CLASSES)), CLASSES)
    wanted = evaluation(tmp_path / "ten.pt", config, "test")
    export([f"{tmp_path}/ten.pt", "--safetensors", f"{tmp_path}/ten.safetensors"])
    for name in ("ten.pt", "ten.safetensors"):
        capsys.readouterr()
        out, _ = predict(capsys, tmp_path / name, faces)
        np.testing.assert_allclose(shares(read_csv(out)), wanted, atol=1e-5)


def test_the_split_is_the_one_asked_for(models: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = predict(capsys, models / "model.pt", faces, "--split", "train")
    rows = read_csv(out)
    assert len(rows) == 64
    assert all(row["path"].startswith("train/") for row in rows)
    wanted = evaluation(models / "model.pt", load_trained_model(models / "model.pt").config, "train")
    np.testing.assert_allclose(shares(rows), wanted, atol=1e-5)


def test_a_folder_is_searched_in_order_and_bad_pictures_are_rows(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, lines = predict(capsys, model, pictures, pictures / "b.png", "--batch-size", 2, "--num-workers", 3, status=1)
    rows = read_csv(out)
    names = ["a.jpg", "b.png", "d.webp", "e.jpg", "f.png", "below/c.JPEG", "b.png"]
    assert [row["path"] for row in rows] == [str(pictures / name) for name in names]
    errors = [row["error"] for row in rows]
    assert "failed to decode" in errors[3]
    assert "30 x 7 pixels" in errors[4]
    assert not any(errors[:3] + errors[5:])
    assert rows[3]["prediction"] == rows[3]["confidence"] == rows[3]["p_happy"] == ""
    assert shares([rows[1]]) == pytest.approx(shares([rows[6]]), abs=2e-6)
    assert lines == [
        "adadf_dist.predict: skipped 1 other files",
        "adadf_dist.predict: 2 of 7 rows have no prediction; see their error column",
    ]


def test_when_every_picture_failed(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, lines = predict(capsys, model, pictures / "e.jpg", pictures / "f.png", status=1)
    assert len(read_csv(out)) == 2
    assert len(lines) == 1


def test_pixels_are_what_a_viewer_shows(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    face = Image.fromarray(render_sample(2, 0, 32).image)
    turned = face.transpose(Image.Transpose.ROTATE_90)  # which tag 6 turns back
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    face.save(tmp_path / "upright.png")
    face.convert("RGBA").save(tmp_path / "rgba.png")
    grey = face.convert("L")
    grey.save(tmp_path / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    names = ("upright", "turned", "rgba", "grey", "grey16")
    upright, *others = shares(read_csv(predict(capsys, model, *(tmp_path / f"{name}.png" for name in names))[0]))
    assert others[:2] == [pytest.approx(upright, abs=2e-6)] * 2
    assert others[2] == pytest.approx(others[3], abs=2e-6)
    assert np.abs(others[2] - upright).max() > 1e-4


def test_json_lines_and_the_table_say_the_same(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_csv(predict(capsys, model, pictures, status=1)[0])
    text, _ = predict(capsys, model, pictures, "--format", "jsonl", status=1)
    objects = [json.loads(line) for line in text.splitlines()]
    head, *lines = predict(capsys, model, pictures, "--format", "table", status=1)[0].splitlines()
    assert head.split() == ["prediction", "confidence", *CLASSES, "path"]
    for row, value, line in zip(rows, objects, lines, strict=True):
        assert [value[name] or "" for name in ("path", "prediction", "error")] == [
            row[name] for name in ("path", "prediction", "error")
        ]
        if row["error"]:
            assert value["probabilities"] is None
            assert line.endswith(f"{row['path']}: {row['error']}")
        else:
            assert [f"{value['probabilities'][name]:.6f}" for name in CLASSES] == [row[f"p_{n}"] for n in CLASSES]
            assert f"{value['confidence']:.6f}" == row["confidence"]
            assert line.split()[0] == row["prediction"]
            assert line.endswith(row["path"])


def test_odd_names(model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = 'new\nline,"quoted"\x1b[31m.jpg'
    (tmp_path / odd).write_bytes((pictures / "a.jpg").read_bytes())
    latin = str(tmp_path).encode() + b"/caf\xe9.jpg"
    Path(latin.decode(errors="surrogateescape")).write_bytes((pictures / "a.jpg").read_bytes())
    rows, _ = predict(capsys, model, tmp_path / odd)
    assert [row["path"] for row in read_csv(rows)] == [str(tmp_path / odd)]
    table, _ = predict(capsys, model, tmp_path / odd, "--format", "table")
    assert "\x1b" not in table
    assert len(table.splitlines()) == 2
    words = [sys.executable, "-m", "adadf_dist.predict", str(model), latin]
    process = subprocess.run(words, capture_output=True, timeout=60)
    assert process.returncode == 0, process.stderr
    assert latin in process.stdout


def test_every_suffix_that_the_builder_takes(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (pictures / "a.jpg").read_bytes()
    for name in ("a.jfif", "b.JPE", "c.jpg", "notes.txt", "Thumbs.db", "@eaDir/c.jpg", ".hidden/d.jpg"):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_bytes(data)
    rows, said = predict(capsys, model, tmp_path / "x")
    assert [Path(row["path"]).name for row in read_csv(rows)] == ["a.jfif", "b.JPE", "c.jpg"]
    assert said == ["adadf_dist.predict: skipped 1 @eaDir, 1 Thumbs.db, 1 hidden, 1 other files"]


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode("utf-16"),
        lambda text: text.replace("\n", "\r").encode(),
    ],
)
def test_stdin_in_every_encoding(
    encode: Callable[[str], bytes],
    model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (pictures / "ä.jpg").write_bytes((pictures / "a.jpg").read_bytes())
    names = [str(pictures / name) for name in ("ä.jpg", "a.jpg")]
    (tmp_path / "lines").write_bytes(encode("".join(f"{name}\n" for name in names)))
    with (tmp_path / "lines").open(encoding="utf-8") as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        rows, _ = predict(capsys, model, "-", "--format", "csv")
    assert [(row["path"], row["error"]) for row in read_csv(rows)] == [(name, "") for name in names]


def test_json_holds_names_of_any_bytes_as_text(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    path.write_bytes((pictures / "a.jpg").read_bytes())
    rows, _ = predict(capsys, model, path, "--format", "jsonl")
    assert "\\ud" not in rows
    output = json.loads(rows)["path"]
    assert output == f"{tmp_path}/caf\\xe9.jpg"
    assert unescape_name(output) == str(path)


def test_paths_from_stdin_are_answered_as_they_come(model: Path, pictures: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "adadf_dist.predict", str(model), "-", "--format", "jsonl"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        for name, error in (("a.jpg", None), ("nowhere.jpg", "No such file or directory"), ("below", "Is a directory")):
            process.stdin.write(f"{pictures / name}\n")
            process.stdin.flush()
            value = json.loads(process.stdout.readline())  # before the next line goes in
            assert (value["path"], value["error"]) == (str(pictures / name), error)
        _, err = communicate(process)
        assert (process.returncode, len(err.splitlines())) == (1, 1)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def test_no_pictures(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").touch()
    assert "no images found" in refused(capsys, model, tmp_path)
    (tmp_path / "lines").write_text("\n")
    with (tmp_path / "lines").open() as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        _, said = predict(capsys, model, "-", "--out", tmp_path / "rows.csv", status=2)
    assert [line for line in said if "no images on stdin" in line] == said
    assert not (tmp_path / "rows.csv").exists()


def test_mistakes_are_one_line(
    models: Path, model: Path, pictures: Path, faces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    face = pictures / "a.jpg"
    assert "none of the paths is a dataset" in refused(capsys, model, face, "--split", "test")
    assert "--overwrite" in refused(capsys, model, face, "--out", pictures / "notes.txt")
    for name in ("x.onnx", "x.pt2", "x.safetensors", "x.pt"):
        (pictures / name).write_bytes(b"nothing of the kind")
        assert name in refused(capsys, pictures / name, face, "--device", "cpu")
    torn = (models / "model.safetensors").read_bytes()[:5000]
    (pictures / "x.safetensors").write_bytes(torn)
    assert "truncated" in refused(capsys, pictures / "x.safetensors", face)
    if not torch.cuda.is_available():
        assert "--device cuda: no GPU" in refused(capsys, model, face, "--device", "cuda")


def test_rows_go_to_a_file(model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted, _ = predict(capsys, model, pictures, status=1)
    out, _ = predict(capsys, model, pictures, "--out", tmp_path / "rows.csv", status=1)
    assert not out
    assert (tmp_path / "rows.csv").read_text() == wanted


def test_no_more_is_read_ahead_than_a_few_batches(model: Path, pictures: Path) -> None:
    taken = []

    def endless() -> Iterator[ImageInput]:
        while True:
            taken.append(0)
            yield file_picture(str(pictures / "a.jpg"))

    predictor = Predictor(load_model(model, "cpu"), batch_size=4, workers=2)
    rows = predictor.predict(endless())
    for number in range(1, 4):
        assert len(next(rows)) == 4
        assert len(taken) <= 4 * number + 2 * 4 + 2 + 2  # judged, waiting, being decoded, in hand


def test_what_ends_the_pictures_is_raised_after_the_rows_before(model: Path, pictures: Path) -> None:
    def broken() -> Iterator[ImageInput]:
        yield file_picture(str(pictures / "a.jpg"))
        raise PermissionError(13, "Permission denied", "locked")

    rows = Predictor(load_model(model, "cpu"), batch_size=4, workers=2).predict(broken())
    assert [row.face.error for row in next(rows)] == [""]
    with pytest.raises(PermissionError, match="locked"):
        next(rows)


@pytest.mark.slow
def test_a_reader_that_leaves(model: Path, faces: Path) -> None:
    process = start([sys.executable, "-m", "adadf_dist.predict", str(model), str(faces), "--batch-size", "1"])
    assert process.stdout is not None
    try:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
        process.wait()


class Photographs:
    """A public-domain portrait (NASA), alone, twice in one picture, and shown to nobody."""

    def __init__(self, folder: Path) -> None:
        data = pytest.importorskip("skimage.data", reason="scikit-image, of the extra `dev`, is not installed")
        pytest.importorskip("joblib", reason="the extra `align` is not installed")
        portrait = Image.fromarray(data.astronaut())
        self.folder = folder / "photographs"
        self.folder.mkdir()
        portrait.save(self.folder / "1.png")
        head = portrait.crop((120, 0, 320, 200))
        pair = Image.new("RGB", (500, 200))
        pair.paste(head, (0, 0))
        pair.paste(head.resize((140, 140)), (300, 30))
        pair.save(self.folder / "2.png")
        Image.new("RGB", (200, 200), (90, 120, 90)).save(self.folder / "3.png")


def test_faces_of_photographs_are_aligned_as_the_builder_aligns_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = Photographs(tmp_path)
    out, lines = predict(capsys, model, photographs.folder, "--align", status=1)
    rows = read_csv(out)
    assert [row["faces"] for row in rows] == ["1", "2", "0"]
    assert rows[2]["error"] == "no face found"
    assert len(lines) == 1

    tree = tmp_path / "tree"
    for name in ("happy", "sad"):
        (tree / "train" / name).mkdir(parents=True)
        source = photographs.folder / ("1.png" if name == "happy" else "2.png")
        (tree / "train" / name / f"{name}.png").write_bytes(source.read_bytes())
    stored = tmp_path / "stored"
    run_build("folder", stored, "--root", tree, "--align", "detect")
    capsys.readouterr()
    out, _ = predict(capsys, model, stored, "--split", "train")
    aligned = {row["path"].partition("/")[2]: row for row in read_csv(out)}
    for row, key in zip(rows, ("happy", "sad"), strict=False):
        (same,) = [value for name, value in aligned.items() if key in name]
        assert shares([row]) == pytest.approx(shares([same]), abs=1e-5)


def test_a_photograph_taken_for_a_face_is_remarked_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (900, 700)).save(tmp_path / "large.png")
    Image.new("RGB", (300, 300)).save(tmp_path / "small.png")
    _, lines = predict(capsys, model, tmp_path)
    assert len(lines) == 1
    assert "1 images have more than 512 pixels" in lines[0]
    assert "--align" in lines[0]


def test_a_missing_path_is_a_row(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What comes after it is still predicted, and the exit status says that something failed."""
    out, lines = predict(capsys, model, pictures / "nowhere.png", pictures / "b.png", status=1)
    missing, fine = read_csv(out)
    assert missing["path"].endswith("nowhere.png") and missing["error"] == "No such file or directory"
    assert missing["prediction"] == "" and fine["prediction"] in CLASSES
    assert lines == ["adadf_dist.predict: 1 of 2 rows have no prediction; see their error column"]


def test_dataset_rows_carry_the_true_label(models: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = open_dataset(faces).split("validation")
    out, _ = predict(capsys, models / "model.safetensors", faces, "--split", "validation")
    rows = read_csv(out)
    assert [row["label"] for row in rows] == [split.classes[label] for label in split.labels]
    assert split.votes is not None
    for row, votes in zip(rows, split.votes, strict=True):
        assert [float(row[f"votes_{name}"]) for name in split.classes] == votes.tolist()


def test_all_faces_have_a_row_and_a_box(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest first, whatever the detector's order."""
    template = np.array([[30, 40], [70, 40], [50, 60], [35, 80], [65, 80]], dtype=np.float64)
    places = ((150.0, 40), (10.0, 90))
    small, large = (Face((x, 5.0, x + s, 5.0 + s), 0.9, template * s / 100 + (x, 5)) for x, s in places)

    class TwoFaces:
        def __init__(self, device: object) -> None:
            pass

        def detect(self, photos: list[Image.Image]) -> list[list[Face]]:
            return [[small, large] for _ in photos]

    monkeypatch.setattr("adadf_dist.predict.preprocess.Detector", TwoFaces)
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 200, 3), dtype=np.uint8)).save(photo)
    rows = read_csv(predict(capsys, model, photo, "--align", "--all-faces")[0])
    assert [row["face"] for row in rows] == ["1", "2"] and {row["faces"] for row in rows} == {"2"}
    boxes = [[float(row[f"box_{side}"]) for side in ("left", "top", "right", "bottom")] for row in rows]
    assert boxes == [[10, 5, 100, 95], [150, 5, 190, 45]]
    (alone,) = read_csv(predict(capsys, model, photo, "--align")[0])
    assert alone["prediction"] == rows[0]["prediction"] and "box_left" not in alone
