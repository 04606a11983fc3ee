"""Class folders of images: splits, image formats, EXIF, names and bad images."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adadf_dist.errors import UserError
from shards.verify import verify
from tests.helpers.dataset_builds import build_folder, facts, findings, one_pixel, pixels, places, png_header, save


def test_flat_tree_is_split_and_jpegs_are_copied(image_folder: Path) -> None:
    dataset = build_folder(image_folder, "--test-fraction", 0.2)
    assert dataset.classes == ("cross", "glad")
    assert {name: info.class_counts for name, info in dataset.splits.items()} == {
        "train": (14, 14),
        "validation": (2, 2),
        "test": (4, 4),
    }
    stored: dict[str, bytes] = {}
    for name in dataset.splits:
        split, output = dataset.split(name), facts(dataset, name)
        assert split.votes is None
        assert split.distributions is None
        stored |= {output[key]["source"]: bytes(split.read(sample)) for sample, key in enumerate(split.keys)}
    assert stored == {path.relative_to(image_folder).as_posix(): path.read_bytes() for path in image_folder.glob("*/*")}


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_split_folders_are_kept_and_leaks_dropped(tmp_path: Path, name: str) -> None:
    root = tmp_path / "faces"
    for split, count in (("train", 5), (name, 2), ("test", 2)):
        for kind in ("cross", "glad"):
            for number in range(count):
                save(root / split / kind / f"{split}{kind}{number}.jpg")
    shutil.copy(root / "test" / "glad" / "testglad0.jpg", root / "train" / "cross" / "copy.jpg")
    dataset = build_folder(root)
    assert {split: info.samples for split, info in dataset.splits.items()} == {"train": 10, "validation": 4, "test": 4}
    for source, (split, label) in places(dataset).items():
        folder, kind, _ = source.split("/")
        assert (folder, kind) == ({"validation": name}.get(split, split), dataset.classes[label])
    assert findings(dataset)["leaks"] == {"train face also in test": 1}


ENCODED: dict[str, tuple[str, str, str]] = {
    "grey JPEG": ("L", "a.jpg", "L"),
    "CMYK JPEG": ("CMYK", "a.jpg", "RGB"),
    "palette PNG": ("P", "a.png", "RGB"),
    "transparent PNG": ("RGBA", "a.png", "RGB"),
    "grey and alpha PNG": ("LA", "a.png", "L"),
    "black and white PNG": ("1", "a.png", "L"),
    "BMP": ("RGB", "a.bmp", "RGB"),
    "WebP": ("RGB", "a.webp", "RGB"),
    "GIF": ("P", "a.gif", "RGB"),
    "TIFF": ("RGB", "a.tif", "RGB"),
}


@pytest.mark.parametrize(("mode", "file", "stored_mode"), ENCODED.values(), ids=ENCODED)
def test_every_image_format_becomes_a_plain_jpeg(image_folder: Path, mode: str, file: str, stored_mode: str) -> None:
    path = save(image_folder / "glad" / file, mode, (40, 32))
    dataset = build_folder(image_folder, "--validation-fraction", 0)
    split, output = dataset.split("train"), facts(dataset, "train")
    sample = [output[key]["source"] for key in split.keys].index(f"glad/{file}")
    image = Image.open(io.BytesIO(split.read(sample)))
    assert (image.format, image.mode, image.size) == ("JPEG", stored_mode, (40, 32))
    original = np.asarray(Image.open(path).convert(stored_mode), dtype=int)
    assert np.abs(np.asarray(image, dtype=int) - original).mean() < 6, "noise at quality 95"


def test_multi_picture_jpeg_is_stored_as_a_plain_jpeg(image_folder: Path) -> None:
    pictures = [Image.new("RGB", (40, 32), color) for color in ("red", "blue")]
    pictures[0].save(image_folder / "glad" / "phone.jpg", "MPO", save_all=True, append_images=pictures[1:])
    dataset = build_folder(image_folder, "--validation-fraction", 0)
    split, output = dataset.split("train"), facts(dataset, "train")
    sample = [output[key]["source"] for key in split.keys].index("glad/phone.jpg")
    image = Image.open(io.BytesIO(split.read(sample)))
    assert image.format == "JPEG"
    assert np.abs(np.asarray(image, dtype=int) - [255, 0, 0]).max() < 4


def test_16_bit_gray_is_scaled_not_clipped(image_folder: Path) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(image_folder / "glad" / "deep.png")
    dataset = build_folder(image_folder, "--validation-fraction", 0)
    split, output = dataset.split("train"), facts(dataset, "train")
    sample = [output[key]["source"] for key in split.keys].index("glad/deep.png")
    assert np.abs(pixels(split, sample).astype(int) - ramp / 257).max() < 5


def test_exif_rotation_is_applied(image_folder: Path) -> None:
    upright = Image.new("L", (40, 24), 0)
    upright.paste(255, (0, 0, 20, 24))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by 90 degrees: white is on top then
    upright.save(image_folder / "glad" / "turned.jpg", exif=exif, quality=95)
    dataset = build_folder(image_folder, "--validation-fraction", 0)
    split, output = dataset.split("train"), facts(dataset, "train")
    sample = [output[key]["source"] for key in split.keys].index("glad/turned.jpg")
    image = pixels(split, sample)
    assert image.shape == (40, 24)
    assert image[:18].mean() > 250
    assert image[22:].mean() < 5


def test_large_images_are_downscaled_and_small_ones_kept(image_folder: Path) -> None:
    save(image_folder / "glad" / "large.jpg", size=(90, 60))
    dataset = build_folder(image_folder, "--validation-fraction", 0, "--max-side", 30)
    split, output = dataset.split("train"), facts(dataset, "train")
    sizes = {output[key]["source"]: pixels(split, sample).shape[:2] for sample, key in enumerate(split.keys)}
    assert sizes.pop("glad/large.jpg") == (30, 45)
    assert set(sizes.values()) == {(20, 24)}


def test_names_become_plain_unique_keys(image_folder: Path) -> None:
    for name in ("a b.jpg", "a.b.jpg", "a-b.jpg", "é.jpg", "ü.jpg", "x" * 150 + ".jpg", "ab/deep.JPEG"):
        save(image_folder / "glad" / name)
    (image_folder / "glad" / ".hidden.jpg").write_bytes(b"")
    (image_folder / "glad" / "notes.txt").write_text("not a picture")
    dataset = build_folder(image_folder, "--validation-fraction", 0)
    keys = dataset.split("train").keys.tolist()
    assert len(set(keys)) == len(keys) == 47
    assert all(key.isascii() and "." not in key and "/" not in key and len(key) <= 90 for key in keys)
    assert findings(dataset)["other_files"] == 1


def half_jpeg() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(stream, "JPEG")
    return stream.getvalue()[:900]


def float_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), dtype=np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def wide_png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (65_501, 8)).save(stream, "PNG")
    return stream.getvalue()


BAD_IMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "failed to decode"),
    "text": (b"hello, I am no picture", "failed to decode"),
    "truncated": (half_jpeg(), "failed to decode"),
    "one pixel": (one_pixel(), "1 x 1 pixels; each side must have at least 8"),
    "bomb": (png_header(30_000, 30_000), "more pixels than the limit of 67,108,864"),
    "below Pillow's limit": (png_header(9_000, 9_000), "9,000 x 9,000 pixels, more than the limit of 67,108,864"),
    "wider than a JPEG": (wide_png(), "65,501 x 8 pixels; each side of a JPEG can have at most 65,500"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n", "failed to decode"),
    "no range": (float_tiff(), "have no fixed range"),
}


@pytest.mark.parametrize(("data", "reason"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_are_an_error_and_then_quarantined(image_folder: Path, data: bytes, reason: str) -> None:
    (image_folder / "glad" / "bad.jpg").write_bytes(data)
    with pytest.raises(
        UserError, match=r"1 of 41 images are invalid \(first: glad/bad\.jpg.*--max-bad-images 1"
    ) as error:
        build_folder(image_folder, "--validation-fraction", 0)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert not (image_folder.parent / "out").exists()
    assert reason in (image_folder.parent / "out.partial" / "skipped_images.csv").read_text()
    dataset = build_folder(image_folder, "--validation-fraction", 0, "--max-bad-images", 1)
    assert dataset.splits["train"].samples == 40
    assert findings(dataset)["skipped_images"] == 1
    with (dataset.folder / "skipped_images.csv").open() as stream:
        (line,) = csv.DictReader(stream)
    assert (line["split"], line["source"]) == ("train", "glad/bad.jpg")
    assert reason in line["reason"]


def test_shard_without_a_good_image_leaves_no_gap(image_folder: Path) -> None:
    order = [facts(build_folder(image_folder, "--validation-fraction", 0), "train")]
    sources = [told["source"] for told in order[0].values()]
    for source in sources[10:20]:
        (image_folder / source).write_bytes(b"broken")
    options = ("--validation-fraction", 0, "--samples-per-shard", 10, "--max-bad-images", 10, "--overwrite")
    dataset = build_folder(image_folder, *options)
    assert [shard.file for shard in dataset.splits["train"].shards] == [f"train-00000{n}.tar" for n in range(3)]
    assert sorted(path.name for path in dataset.folder.glob("*.idx")) == [f"train-00000{n}.idx" for n in range(3)]
    assert verify(dataset.folder, 1)[1] == []


def test_class_without_a_good_image_is_an_error(image_folder: Path) -> None:
    for path in (image_folder / "glad").iterdir():
        path.write_bytes(b"broken")
    count = len(list((image_folder / "glad").iterdir()))
    with pytest.raises(UserError, match=rf"class glad: all of its training images are invalid.*\({count} invalid "):
        build_folder(image_folder, "--validation-fraction", 0, "--max-bad-images", 99)
    assert not (image_folder.parent / "out").exists()


def test_no_good_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "faces" / "glad").mkdir(parents=True)
    (tmp_path / "faces" / "glad" / "a.jpg").write_bytes(b"broken")
    (tmp_path / "faces" / "sad").mkdir()
    (tmp_path / "faces" / "sad" / "b.jpg").write_bytes(b"broken too")
    with pytest.raises(UserError, match="split train: all images are invalid"):
        build_folder(tmp_path / "faces", "--max-bad-images", 9)


BAD_TREES: dict[str, tuple[list[str], tuple[object, ...], str]] = {
    "no folders": ([], (), "contains no folders"),
    "empty class": (["glad/a.jpg", "cross/"], (), "class cross has no training images"),
    "no train": (["val/glad/a.jpg"], (), "contains val but no train"),
    "two validations": (["train/glad/a.jpg", "val/glad/b.jpg", "valid/glad/c.jpg"], (), "contains both val and valid"),
    "stranger": (
        ["train/glad/a.jpg", "extra/glad/b.jpg"],
        (),
        "extra: not a split folder, but is next to split folders",
    ),
    "unknown class": (["train/glad/a.jpg", "test/Glad/b.jpg"], (), "test/Glad: class is not in train"),
    "no classes": (["train/"], (), "train: contains no folders"),
    "held out twice": (
        ["train/glad/a.jpg", "val/glad/b.jpg"],
        ("--validation-fraction", 0.1),
        "already has that split",
    ),
    "fraction": (["glad/a.jpg"], ("--test-fraction", 1.5), "--test-fraction 1.5: must be"),
    "nothing left": (
        ["glad/a.jpg"],
        ("--test-fraction", 0.6, "--validation-fraction", 0.6),
        "no training images",
    ),
    "image size": (["glad/a.jpg"], ("--max-side", 3), "--max-side 3: must be at least 16"),
}


@pytest.mark.parametrize(("paths", "options", "line"), BAD_TREES.values(), ids=BAD_TREES)
def test_bad_tree_is_one_line(tmp_path: Path, paths: list[str], options: tuple[object, ...], line: str) -> None:
    root = tmp_path / "faces"
    root.mkdir()
    for path in paths:
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
        else:
            save(root / path)
    with pytest.raises(UserError, match=line) as error:
        build_folder(root, *options)
    assert "\n" not in str(error.value)
