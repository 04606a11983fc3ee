"""Inputs of predict: folders, image formats, odd names, and paths from standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adadf_dist.data.synthetic.faces import render_sample
from adadf_dist.files.text import unescape_name
from tests.helpers.predictions import CLASSES, predict, read_csv, refused, shares
from tests.helpers.waiting import communicate


def test_folder_is_walked_in_order_and_bad_images_are_rows(
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
        "adadf_dist.predict: 2 of 7 rows have no prediction; see the error column",
    ]


def test_all_images_failing_is_an_error(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, lines = predict(capsys, model, pictures / "e.jpg", pictures / "f.png", status=1)
    assert len(read_csv(out)) == 2
    assert len(lines) == 1


def test_pixels_equal_those_of_a_viewer(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    face = Image.fromarray(render_sample(2, 0, 32).image)
    turned = face.transpose(Image.Transpose.ROTATE_90)  # which orientation 6 undoes
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


def test_odd_file_names_are_kept(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_every_suffix_of_the_builder_is_accepted(
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
def test_stdin_is_read_in_every_encoding(
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


def test_paths_from_stdin_are_predicted_as_they_arrive(model: Path, pictures: Path) -> None:
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
            value = json.loads(process.stdout.readline())  # before the next line is sent
            assert (value["path"], value["error"]) == (str(pictures / name), error)
        _, err = communicate(process)
        assert (process.returncode, len(err.splitlines())) == (1, 1)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def test_no_images_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").touch()
    assert "no images found" in refused(capsys, model, tmp_path)
    (tmp_path / "lines").write_text("\n")
    with (tmp_path / "lines").open() as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        _, said = predict(capsys, model, "-", "--out", tmp_path / "rows.csv", status=2)
    assert [line for line in said if "no image paths on standard input" in line] == said
    assert not (tmp_path / "rows.csv").exists()


def test_missing_path_is_a_row(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Later paths are still predicted, and the exit status reports the failure."""
    out, lines = predict(capsys, model, pictures / "nowhere.png", pictures / "b.png", status=1)
    missing, fine = read_csv(out)
    assert missing["path"].endswith("nowhere.png") and missing["error"] == "No such file or directory"
    assert missing["prediction"] == "" and fine["prediction"] in CLASSES
    assert lines == ["adadf_dist.predict: 1 of 2 rows have no prediction; see the error column"]
