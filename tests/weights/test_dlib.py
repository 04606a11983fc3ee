"""The face recognition weights of the npm package: every tensor, the folded normalization, and every bad input."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from adadf_dist.config.schema import ModelConfig
from adadf_dist.data.loaders.base import DeviceTransform
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.method.backbones import sequential
from adadf_dist.method.dlib_resnet import build_units
from adadf_dist.method.model import DualBranch
from adadf_dist.method.pretrained import load_pretrained
from adadf_dist.weights.__main__ import main
from tests.conftest import SHARED
from tests.helpers.face_api import (
    BLOCKS,
    INFO,
    MANIFEST,
    WEIGHTS,
    FakePackage,
    fake_package,
    tensor_shapes,
    write_archive,
    write_folder,
)

DLIB_MEAN = (122.782, 117.001, 104.298)
"""Of dlib's face recognition network; pixels are then divided by 256."""


@pytest.fixture(scope="module")
def package() -> FakePackage:
    return fake_package()


@pytest.fixture(scope="module")
def archive(package: FakePackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("npm") / "face-api.tgz", package.files)


@pytest.fixture(scope="module")
def converted(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights") / "below" / "dlib.safetensors"
    main(["dlib", "--from", str(archive), "--out", str(out)])
    return out


def network(path: Path) -> nn.Module:
    """The backbone with the file's weights."""
    whole = sequential(build_units())
    whole.load_state_dict({name: value for name, value in load_file(path).items() if name != "fc.weight"})
    return whole.eval()


def normalize(pixels: Tensor) -> Tensor:
    """The trainer's network input for images [n, 3, S, S], uint8."""
    size = pixels.shape[-1]
    transform = DeviceTransform(Preprocessing(size, ("a", "b"), "torch"), torch.device("cpu"))
    return transform(pixels, torch.zeros(len(pixels), 4, dtype=torch.int64))


def test_every_tensor_is_dequantized_and_renamed(package: FakePackage, converted: Path) -> None:
    found = load_file(converted)
    leaves = {"conv/bias": "conv{}.bias", "scale/weights": "affine{}.weight", "scale/biases": "affine{}.bias"}
    expected = {"fc.weight": package.tensors["fc"].T}
    for theirs, (ours, _, _) in BLOCKS.items():
        for number in (1, 2):
            for leaf, name in leaves.items():
                expected[f"{ours}.{name.format(number)}"] = package.tensors[f"{theirs}/conv{number}/{leaf}"]
            filters = package.tensors[f"{theirs}/conv{number}/conv/filters"]  # height, width, input, output
            by_output = [[filters[:, :, i, o] for i in range(filters.shape[2])] for o in range(filters.shape[3])]
            expected[f"{ours}.conv{number}.weight"] = np.array(by_output)
    expected["stem.affine.weight"] = package.tensors["conv32_down/scale/weights"]
    expected["stem.affine.bias"] = package.tensors["conv32_down/scale/biases"]
    assert found.keys() == {*expected, "stem.conv.weight", "stem.conv.bias"}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-6, atol=1e-7, err_msg=name)


def test_folded_network_on_normalized_images_equals_dlibs_on_pixels(package: FakePackage, converted: Path) -> None:
    folded, plain = network(converted), network(converted)
    first = plain.get_submodule("stem.conv")
    filters = torch.from_numpy(package.tensors["conv32_down/conv/filters"]).permute(3, 2, 0, 1)
    first.load_state_dict({"weight": filters, "bias": torch.from_numpy(package.tensors["conv32_down/conv/bias"])})
    pixels = torch.randint(0, 256, (1, 3, 71, 71), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dlibs_input = (pixels - torch.tensor(DLIB_MEAN).view(1, 3, 1, 1)) / 256
    with torch.no_grad():
        expected = plain(dlibs_input)
        assert expected.std() > 0.1
        torch.testing.assert_close(folded(normalize(pixels)), expected, rtol=1e-4, atol=1e-4)


def test_file_says_where_it_comes_from(package: FakePackage, archive: Path, converted: Path) -> None:
    with safe_open(converted, framework="pt") as file:
        said = file.metadata()
    assert said["source"] == "npm package @vladmandic/face-api@0.0.1"
    assert said["source_sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert said["weights_sha256"] == hashlib.sha256(package.files[WEIGHTS]).hexdigest()
    assert json.loads(said["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(said["std"]) == [0.229, 0.224, 0.225]
    assert said["architecture"] == "dlib_resnet29"
    assert "public domain" in said["license"]
    assert stat.S_IMODE(converted.stat().st_mode) == stat.S_IMODE(archive.stat().st_mode)


@pytest.mark.parametrize("below", ["", "package"])
def test_folder_gives_the_same_tensors(below: str, package: FakePackage, converted: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "npm" / below, package.files)
    main(["dlib", "--from", str(tmp_path / "npm"), "--out", str(tmp_path / "x.safetensors")])
    found, expected = load_file(tmp_path / "x.safetensors"), load_file(converted)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("shared", "matched", "last"), [("", 116, "conv256_out.0.conv2.weight"), ("pooled", 84, "conv128.2.conv2.weight")]
)
def test_trainer_loads_the_file(shared: str, matched: int, last: str, converted: Path) -> None:
    config = ModelConfig(backbone="dlib_resnet29", shared_until=shared, pretrained=str(converted))
    model = DualBranch(config, 7, image_size=64)
    loaded = load_pretrained(model, config)
    assert loaded.matched == matched
    assert set(loaded.ignored) == {"fc.weight"} | {
        name for name in load_file(converted) if name.startswith("conv256") and shared
    }
    assert model.extractor_frozen
    part = model.extractor if shared else model.target.stages
    assert torch.equal(part.state_dict()[last], load_file(converted)[last])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["dlib", *map(str, words)])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def manifest_with(package: FakePackage, **changed: object) -> dict[str, bytes]:
    """The package with other values in the manifest's first entry."""
    manifest = json.loads(package.files[MANIFEST])
    manifest[0]["weights"][0] |= changed
    return {**package.files, MANIFEST: json.dumps(manifest).encode()}


def without(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    return {other: content for other, content in files.items() if other != name}


def more_shapes(**extra: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {**tensor_shapes(), **extra}


CHANGES: dict[str, tuple[Callable[[FakePackage], Mapping[str, bytes]], str]] = {
    "no weights": (lambda p: without(p.files, WEIGHTS), f"has no {WEIGHTS}, unlike the npm package"),
    "no manifest": (lambda p: without(p.files, MANIFEST), f"has no {MANIFEST}"),
    "short weights": (
        lambda p: {**p.files, WEIGHTS: p.files[WEIGHTS][:-1]},
        f"{WEIGHTS} has {{less:,}} bytes, but its manifest lists {{all:,}}",
    ),
    "manifest is no JSON": (lambda p: {**p.files, MANIFEST: b"<html>"}, "is not a TensorFlow.js manifest"),
    "manifest is an object": (lambda p: {**p.files, MANIFEST: b"{}"}, "is not a TensorFlow.js manifest"),
    "16 bits": (
        lambda p: manifest_with(p, quantization={"dtype": "uint16", "scale": 1, "min": 0}),
        "conv32_down/conv/filters is float32, {{'dtype': 'uint16'",
    ),
    "integers": (lambda p: manifest_with(p, dtype="int32"), "conv32_down/conv/filters is int32"),
    "other name": (lambda p: manifest_with(p, name="conv32_up"), "lacks conv32_down/conv/filters"),
    "other shape": (
        lambda p: manifest_with(p, shape=[7, 7, 32, 3]),
        "has a different shape for conv32_down/conv/filters",
    ),
    "one more": (lambda p: fake_package(shapes=more_shapes(extra=(3,))).files, "has unexpected extra"),
    "no version": (lambda p: {**p.files, INFO: b"{}"}, "package.json lacks a name or version"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_other_content_is_one_line(
    case: str, package: FakePackage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = CHANGES[case]
    path = write_archive(tmp_path / "other.tgz", change(package))
    line = refused(capsys, "--from", path, "--out", tmp_path / "x.safetensors")
    size = len(package.files[WEIGHTS])
    assert f"--from {path}: " in line
    assert message.format(less=size - 1, all=size) in line
    assert "npm pack @vladmandic/face-api@1.7.15" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.tgz"]


def test_bad_files_are_one_line(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "x.safetensors")
    assert "nowhere.tgz: no such file or folder" in refused(capsys, "--from", tmp_path / "nowhere.tgz", *out)
    (tmp_path / "text.tgz").write_text("hello")
    assert "text.tgz: truncated or not a .tgz archive" in refused(capsys, "--from", tmp_path / "text.tgz", *out)
    (tmp_path / "half.tgz").write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    assert "half.tgz: truncated or not a .tgz archive" in refused(capsys, "--from", tmp_path / "half.tgz", *out)
    (tmp_path / "empty").mkdir()
    assert "empty/package.json: no such file" in refused(capsys, "--from", tmp_path / "empty", *out)
    assert "must end in .safetensors" in refused(capsys, "--from", archive, "--out", tmp_path / "x.pt")
    assert not (tmp_path / "x.safetensors").exists()


def stub_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_package_is_fetched_with_npm(
    archive: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'echo "$@" > {tmp_path}/words\ncp {archive} vladmandic-face-api-1.7.15.tgz'
    stub_npm(tmp_path / "bin", script, monkeypatch)
    main(["dlib", "--out", str(tmp_path / "x.safetensors")])
    assert (tmp_path / "words").read_text() == "pack @vladmandic/face-api@1.7.15\n"
    found, expected = load_file(tmp_path / "x.safetensors"), load_file(converted)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "words", "x.safetensors"]


def test_failure_of_npm_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_npm(tmp_path / "bin", "echo 'npm error code E404' >&2; exit 1", monkeypatch)
    with pytest.raises(SystemExit):
        main(["dlib", "--out", str(tmp_path / "x.safetensors")])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "npm pack @vladmandic/face-api@1.7.15 failed (npm error code E404)" in line
    assert "pass the file with --from" in line


def test_missing_npm_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("npm") is None
    line = refused(capsys, "--out", tmp_path / "x.safetensors")
    assert "npm is not installed; run `npm pack @vladmandic/face-api@1.7.15`" in line


# the real weights, which are not in the repository

REAL = os.environ.get("ADADF_FACE_API", "")
needs_real = pytest.mark.skipif(not REAL, reason="ADADF_FACE_API is not set to the .tgz of @vladmandic/face-api")
FER2013 = SHARED / "data" / "fer2013" / "mini_fer2013.csv.gz"
FACES = 60


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Tensor], NDArray[np.float64]]:
    """dlib's descriptor [n, 128] of images [n, 3, S, S], uint8, resized to dlib's 150."""
    out = tmp_path_factory.mktemp("real") / "dlib.safetensors"
    main(["dlib", "--from", REAL, "--out", str(out)])
    whole, descriptor = network(out), load_file(out)["fc.weight"]

    def descriptors(images: Tensor) -> NDArray[np.float64]:
        resized = F.interpolate(images.float(), size=150, mode="bilinear", antialias=True).round().clamp(0, 255)
        with torch.no_grad():
            features = whole(normalize(resized.to(torch.uint8))).mean(dim=(2, 3))
        return (features @ descriptor.T).double().numpy()

    return descriptors


def fer_faces() -> Tensor:
    """Faces [FACES, 3, 48, 48]."""
    with gzip.open(FER2013, "rt") as stream:
        rows = [next_row["pixels"] for next_row, _ in zip(csv.DictReader(stream), range(FACES), strict=False)]
    pixels = np.array([row.split() for row in rows], dtype=np.uint8).reshape(-1, 1, 48, 48)
    return torch.from_numpy(pixels).expand(-1, 3, -1, -1)


def distances(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(first[:, None] - second[None], axis=2)


@needs_real
@pytest.mark.skipif(not FER2013.exists(), reason="no FER2013 faces")
def test_crops_of_one_face_are_closer_than_faces(embed: Callable[[Tensor], NDArray[np.float64]]) -> None:
    """AUC of the distance between a face and its shifted mirror image, against those between different faces."""
    faces = fer_faces()
    moved = faces.flip(-1)[:, :, 1:-3, 3:-1]  # 44x44
    table = distances(embed(faces), embed(moved))
    same, other = np.diag(table), table[~np.eye(FACES, dtype=bool)]
    auc = (same[:, None] < other[None]).mean()
    print(f"AUC {auc:.4f}, distances {same.mean():.3f} of one face, {other.mean():.3f} of two")
    assert auc >= 0.95


@needs_real
@pytest.mark.skipif(not FER2013.exists(), reason="no FER2013 faces")
def test_photo_of_an_astronaut_is_recognized(embed: Callable[[Tensor], NDArray[np.float64]]) -> None:
    data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None]
    corners = [(40, 160), (46, 154), (34, 166)]  # top and left of the face
    crops = [photo[:, :, top : top + 150, left : left + 150] for top, left in corners]
    own = embed(torch.cat([*crops, crops[0].flip(-1)]))
    within = distances(own, own)[~np.eye(len(own), dtype=bool)]
    other = distances(own, embed(fer_faces())).ravel()
    auc = (within[:, None] < other[None]).mean()
    print(f"AUC {auc:.4f}, distances {within.mean():.3f} of one face, {other.mean():.3f} of two")
    assert auc >= 0.95
    assert within.max() < 0.6  # dlib's threshold for one person
