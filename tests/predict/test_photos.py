"""Photos with several faces: detection, alignment and a row for every face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adadf_dist.alignment.mtcnn import Face
from tests.helpers.dataset_builds import run_build
from tests.helpers.predictions import predict, read_csv, shares


class Photos:
    """A public-domain portrait (NASA): alone, twice in one image, and an image without a face."""

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


def test_photos_are_aligned_like_the_builder_does(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = Photos(tmp_path)
    out, lines = predict(capsys, model, photos.folder, "--align", status=1)
    rows = read_csv(out)
    assert [row["faces"] for row in rows] == ["1", "2", "0"]
    assert rows[2]["error"] == "no face found"
    assert len(lines) == 1

    tree = tmp_path / "tree"
    for name in ("happy", "sad"):
        (tree / "train" / name).mkdir(parents=True)
        source = photos.folder / ("1.png" if name == "happy" else "2.png")
        (tree / "train" / name / f"{name}.png").write_bytes(source.read_bytes())
    stored = tmp_path / "stored"
    run_build("folder", stored, "--root", tree, "--align", "detect")
    capsys.readouterr()
    out, _ = predict(capsys, model, stored, "--split", "train")
    aligned = {row["path"].partition("/")[2]: row for row in read_csv(out)}
    for row, key in zip(rows, ("happy", "sad"), strict=False):
        (same,) = [value for name, value in aligned.items() if key in name]
        assert shares([row]) == pytest.approx(shares([same]), abs=1e-5)


def test_unaligned_photo_gives_a_warning(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (900, 700)).save(tmp_path / "large.png")
    Image.new("RGB", (300, 300)).save(tmp_path / "small.png")
    _, lines = predict(capsys, model, tmp_path)
    assert len(lines) == 1
    assert "1 images have more than 512 pixels" in lines[0]
    assert "--align" in lines[0]


def test_every_face_has_a_row_and_a_box(
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
