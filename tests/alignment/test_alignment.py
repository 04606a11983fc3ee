"""Alignment: the transform against linear algebra, the detector on a public-domain portrait."""

from __future__ import annotations

import csv
import io
import math
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from adadf_dist.alignment import mtcnn
from adadf_dist.alignment.mtcnn import Detector, Face
from adadf_dist.alignment.similarity import (
    align,
    center_crop,
    five_points,
    iou,
    select_face,
    similarity_transform,
    template,
)
from adadf_dist.errors import UserError
from tests.helpers import dataset_trees as trees
from tests.helpers.dataset_builds import facts, findings, pixels, run_build
from tests.helpers.dataset_trees import write

if find_spec("mtcnn") is None:  # not imported: that would need TensorFlow, and only its files are used
    pytest.skip("the extra `align` is not installed", allow_module_level=True)
skimage_data = pytest.importorskip("skimage.data", reason="scikit-image, of the extra `dev`, is not installed")

PUPILS = np.array([[204, 100.5], [246.5, 103]])
"""Of the astronaut (Eileen Collins, NASA, public domain; in scikit-image's wheel), read off the picture by eye."""


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    return Image.fromarray(skimage_data.astronaut())


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


def naive_similarity(points: np.ndarray, size: int) -> np.ndarray:
    """The unknowns a, b, x, y of u = a x - b y + tx, v = b x + a y + ty by numpy's least squares."""
    rows, wanted = [], []
    for (x, y), (u, v) in zip(points, template(size), strict=True):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        wanted += [u, v]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
    return np.array([[a, -b, tx], [b, a, ty]])


@pytest.mark.parametrize("seed", range(5))
def test_similarity_is_the_least_squares_solution(seed: int) -> None:
    points = np.random.default_rng(seed).normal(100, 40, (5, 2))
    assert np.allclose(similarity_transform(points, 100), naive_similarity(points, 100), atol=1e-9)


def test_template_points_give_the_identity() -> None:
    assert np.allclose(similarity_transform(template(100), 100), [[1, 0, 0], [0, 1, 0]])


def test_coinciding_points_are_rejected() -> None:
    with pytest.raises(ValueError, match="all landmarks coincide"):
        similarity_transform(np.full((5, 2), 30.0), 100)


def test_five_points_are_derived_from_68_landmarks() -> None:
    points = np.arange(136.0).reshape(68, 2)
    assert five_points(points.tolist()).tolist() == [[77, 78], [89, 90], [60, 61], [96, 97], [108, 109]]
    with pytest.raises(ValueError, match="5 or 68 points"):
        five_points([[1, 2], [3, 4]])


def test_portrait_has_one_detected_face(detector: Detector, portrait: Image.Image) -> None:
    (face,) = detector.detect([portrait])[0]
    assert face.score > 0.99
    assert np.abs(face.landmarks[:2] - PUPILS).max() < 3
    left, top, right, bottom = face.box
    assert all(left < x < right and top < y < bottom for x, y in face.landmarks)
    assert face.landmarks[3, 0] < face.landmarks[2, 0] < face.landmarks[4, 0]


def turned(points: np.ndarray, degrees: float, size: tuple[int, int]) -> np.ndarray:
    """Positions of points after Pillow rotates an image about its center."""
    angle, centre = -math.radians(degrees), np.array(size) / 2
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return (points - centre) @ rotation.T + centre


@pytest.mark.parametrize("degrees", [-30, -15, 15, 30])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_rotated_and_resized_portraits_align_alike(
    degrees: float, scale: float, detector: Detector, portrait: Image.Image
) -> None:
    """The pupils, whose positions are known, move by at most 2 of 100 pixels."""
    side = round(512 * scale)
    changed = portrait.resize((side, side), Image.Resampling.LANCZOS).rotate(degrees, Image.Resampling.BICUBIC)
    (upright,), (face,) = detector.detect([portrait, changed])
    pupils = turned(PUPILS * scale, degrees, (side, side))
    landed = similarity_transform(face.landmarks, 100) @ np.column_stack([pupils, [1, 1]]).T
    before = similarity_transform(upright.landmarks, 100) @ np.column_stack([PUPILS, [1, 1]]).T
    assert np.abs(landed - before).max() < 2


def test_mirrored_portrait_aligns_like_the_original(detector: Detector, portrait: Image.Image) -> None:
    (face,) = detector.detect([ImageOps.mirror(portrait)])[0]
    mirrored = np.array([511, 0]) + PUPILS[::-1] * [-1, 1]
    assert np.abs(face.landmarks[:2] - mirrored).max() < 3


def test_aligned_pupils_match_the_template(detector: Detector, portrait: Image.Image) -> None:
    """Pupils are the darkest spots near the template's eyes."""
    for size in (100, 224):
        (face,) = detector.detect([portrait])[0]
        out = np.asarray(align(portrait, face.landmarks, size).convert("L")).astype(float)
        for x, y in template(size)[:2]:
            reach = round(0.09 * size)
            patch = out[round(y) - reach : round(y) + reach, round(x) - reach : round(x) + reach]
            dark = np.argwhere(patch < np.quantile(patch, 0.03)).mean(axis=0) - reach
            assert np.abs(dark).max() < 0.06 * size


def test_downscaling_averages_pixels() -> None:
    """A fine checkerboard aligned to a tenth of its size is gray."""
    board = Image.fromarray((np.indices((1000, 1000)).sum(axis=0) % 2 * 255).astype(np.uint8))
    out = np.asarray(align(board, template(1000), 100)).astype(int)
    assert np.abs(out[5:-5, 5:-5] - 127).max() <= 2


def test_one_call_accepts_images_of_several_sizes(detector: Detector, portrait: Image.Image) -> None:
    blank = Image.new("RGB", (300, 80), (120, 130, 140))
    small = portrait.crop((120, 20, 330, 240))
    together = detector.detect([blank, portrait, small])
    alone = [detector.detect([image])[0] for image in (blank, portrait, small)]
    assert [len(faces) for faces in together] == [0, 1, 1]
    for mine, theirs in zip(together, alone, strict=True):
        assert all(np.allclose(a.landmarks, b.landmarks, atol=1e-2) for a, b in zip(mine, theirs, strict=True))


def test_annotated_face_is_selected() -> None:
    points = np.zeros((5, 2))
    small, large = Face((0, 0, 10, 10), 0.99, points), Face((50, 50, 90, 90), 0.9, points)
    assert select_face([small, large]) is large
    assert select_face([small, large], [1, 1, 12, 12]) is small
    assert select_face([small, large], [200, 200, 240, 240]) is None  # faces of other people
    assert select_face([]) is None
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)


def test_central_face_is_selected_without_annotation() -> None:
    picture = Image.new("RGB", (300, 100))
    picture.paste((255, 0, 0), (100, 0, 200, 100))
    assert np.asarray(center_crop(picture, 50))[:, 2:-2].min(axis=(0, 1)).tolist() == pytest.approx([255, 0, 0], abs=2)


def test_missing_detector_weights_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise mtcnn.PackageNotFoundError(name)

    monkeypatch.setattr(mtcnn, "distribution", absent)
    with pytest.raises(UserError, match=r"pip install 'adadf_dist\[align\]'"):
        Detector()


def test_images_without_a_face_are_handled(detector: Detector, portrait: Image.Image) -> None:
    assert detector.detect([]) == []
    tiny = portrait.resize((40, 40), Image.Resampling.LANCZOS)  # the face is 7 pixels wide
    thin = [Image.new("RGB", (20000, 8)), Image.new("L", (8, 3000))]
    assert detector.detect([*thin, tiny]) == [[], [], []]


def test_points_outside_the_image_are_handled(portrait: Image.Image) -> None:
    for shift in ([600, 0], [0, -600]):
        with pytest.raises(ValueError, match="landmarks lie outside the image"):
            align(portrait, template(100) + shift)


# In the builder


def save(path: Path, image: Image.Image) -> None:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    write(path, stream.getvalue())


def test_build_stores_aligned_images(portrait: Image.Image, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    save(root / "calm" / "one.jpg", portrait)
    save(root / "glad" / "turned.jpg", portrait.rotate(20, Image.Resampling.BICUBIC))
    save(root / "glad" / "wall.jpg", Image.new("RGB", (200, 150), (90, 120, 90)))
    words = ("folder", tmp_path / "out", "--root", root, "--align", "detect", "--validation-fraction", 0)
    with pytest.raises(UserError, match=r"glad/wall\.jpg: no face found.*--max-bad-images 1"):
        run_build(*words)
    kept = run_build(*words, "--on-no-face", "centre", "--discard-partial")
    assert findings(kept)["notes"] == 1
    with (kept.folder / "notes.csv").open() as stream:
        assert [row["source"] for row in csv.DictReader(stream)] == ["glad/wall.jpg"]
    options = kept.manifest.provenance["options"]
    assert isinstance(options, dict) and "image_size" not in options
    assert [options[name] for name in ("align", "mtcnn", "torch")] == ["detect", version("mtcnn"), version("torch")]
    split, output = kept.split("train"), facts(kept, "train")
    faces = {output[str(key)]["source"]: number for number, key in enumerate(split.keys)}
    one, other = (pixels(split, faces[name]).astype(int) for name in ("calm/one.jpg", "glad/turned.jpg"))
    assert one.shape == other.shape == (100, 100, 3)
    assert np.abs(one[30:80, 25:75] - other[30:80, 25:75]).mean() < 12  # the same face at the same position
    key = str(split.keys[faces["calm/one.jpg"]])
    assert output[key]["faces"] == 1
    assert np.abs(np.array(output[key]["aligned_by"])[:2] - PUPILS).max() < 3
    again = run_build("folder", tmp_path / "again", *words[2:], "--on-no-face", "centre", "--name", "out")
    assert {p.name: p.read_bytes() for p in again.folder.iterdir()} == {
        p.name: p.read_bytes() for p in kept.folder.iterdir()
    }


def test_affectnet_landmarks_are_used(tmp_path: Path) -> None:
    root = tmp_path / "A"
    trees.affectnet_2021(root, list(range(8)), list(range(8)))
    for folder in ("train_set", "val_set"):
        for number in range(8):
            points = np.zeros((68, 2)) + 30 * template(1)[2]
            for (first, end), place in zip(
                ((36, 42), (42, 48), (30, 31), (48, 49), (54, 55)), template(24), strict=True
            ):
                points[first:end] = place
            np.save(root / folder / "annotations" / f"{number}_lnd.npy", points.ravel())
    words = ("--root", root, "--align", "landmarks", "--aligned-size", 24, "--validation-fraction", 0)
    dataset = run_build("affectnet", tmp_path / "out", *words)
    split, output = dataset.split("train"), facts(dataset, "train")
    source = root / output[str(split.keys[0])]["source"]
    wanted = np.asarray(Image.open(source)).astype(int)  # 24 wide, 20 high: the points are the template's already
    assert np.abs(pixels(split, 0).astype(int)[:20] - wanted).mean() < 6
    np.save(root / "train_set" / "annotations" / "3_lnd.npy", np.full(136, 5.0))
    with pytest.raises(UserError, match=r"3\.jpg: all landmarks coincide"):
        run_build("affectnet", tmp_path / "bad", *words)
    trees.class_folders(tmp_path / "plain", {"train": ["a", "b"]})
    with pytest.raises(UserError, match="has no landmarks for this image; use --align detect"):
        run_build("folder", tmp_path / "none", "--root", tmp_path / "plain", "--align", "landmarks")


def two_people(portrait: Image.Image) -> Image.Image:
    """The portrait with a smaller, mirrored copy at its right."""
    photo = Image.new("RGB", (820, 512))
    photo.paste(portrait, (0, 0))
    photo.paste(ImageOps.mirror(portrait).resize((300, 300), Image.Resampling.LANCZOS), (520, 100))
    return photo


def rafdb_photos(root: Path, photo: Image.Image) -> np.ndarray:
    """One photo per class with two people, annotated for the smaller one; that person's pupils, [2, 2]."""
    mirrored = np.array([511, 0]) + PUPILS[::-1] * [-1, 1]
    pupils = mirrored * 300 / 512 + [520, 100]
    labels = {f"train_{number:05d}.jpg": number for number in range(1, 8)} | {"test_0001.jpg": 1}
    trees.rafdb(root, labels, "original")
    a, b, x, y = np.linalg.lstsq(  # where the other three points are if the pupils are the template's
        np.array([row for u, v in template(1)[:2] for row in ([u, -v, 1, 0], [v, u, 0, 1])]), pupils.ravel(), rcond=None
    )[0]
    points = template(1) @ np.array([[a, b], [-b, a]]) + [x, y]
    for number, name in enumerate(labels):
        varied = photo.copy()
        varied.putpixel((number, 0), (255, 0, 0))  # not copies of each other
        save(root / "Image" / "original" / name, varied)
        stem = name.removesuffix(".jpg")
        lines = "".join(f"{u:.3f}\t{v:.3f}\n" for u, v in points)
        write(root / "Annotation" / "manual" / f"{stem}_manu_attri.txt", f"{lines}1\n0\n3\n")
        left, top, right, bottom = pupils[0, 0] - 20, pupils[0, 1] - 30, pupils[1, 0] + 20, pupils[1, 1] + 50
        write(root / "Annotation" / "boundingbox" / f"{stem}_boundingbox.txt", f"{left} {top} {right} {bottom}\n")
    return pupils


def test_rafdb_annotations_select_the_face(portrait: Image.Image, tmp_path: Path) -> None:
    root = tmp_path / "basic"
    pupils = rafdb_photos(root, two_people(portrait))
    words = ("--root", root, "--images", "original", "--validation-fraction", 0)
    found = run_build("rafdb", tmp_path / "found", *words, "--align", "detect")
    for output in facts(found, "train").values():
        assert output["faces"] == 2
        assert np.abs(np.array(output["aligned_by"])[:2] - pupils).max() < 3  # the smaller face
    own = run_build("rafdb", tmp_path / "own", *words, "--align", "landmarks")
    output = next(iter(facts(own, "train").values()))
    landed = similarity_transform(np.array(output["landmarks"]), 100) @ np.column_stack([pupils, [1, 1]]).T
    assert np.abs(landed.T - template(100)[:2]).max() < 0.01
    boxes = root / "Annotation" / "boundingbox"
    write(boxes / "train_00003_boundingbox.txt", "400 400 450 450\n")
    with pytest.raises(UserError, match=r"train_00003\.jpg: no face found in the annotated box"):
        run_build("rafdb", tmp_path / "elsewhere", *words, "--align", "detect")
    write(boxes / "train_00003_boundingbox.txt", "400 four\n")
    with pytest.raises(UserError, match=r"train_00003_boundingbox\.txt does not start with 4 numbers"):
        run_build("rafdb", tmp_path / "truncated", *words, "--align", "detect")


def test_alignment_decisions_are_recorded(portrait: Image.Image, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    save(root / "calm" / "one.jpg", portrait)
    words = ("folder", tmp_path / "out", "--root", root, "--align", "detect", "--validation-fraction", 0)
    with pytest.raises(UserError, match="--max-side: not allowed with --align; use --aligned-size"):
        run_build(*words, "--max-side", 64)
    (root / "broken").mkdir()
    write(root / "broken" / "not.jpg", b"\xff\xd8 not a picture")
    with pytest.raises(UserError, match=r"broken/not\.jpg: failed to decode"):
        run_build(*words)
    trees.affectnet_2017(tmp_path / "A", {f"1/{n}.jpg": n for n in range(8)}, {f"2/{n}.jpg": n for n in range(8)})
    with pytest.raises(UserError, match="--margin and --no-crop"):
        run_build("affectnet", tmp_path / "a", "--root", tmp_path / "A", "--align", "landmarks", "--no-crop")
