"""DALI's images against Pillow's: single stages, whole chains, ranks, resume, corrupt JPEGs.

Those marked gpu run the same on a GPU: `python -m pytest -m gpu tests/data/loaders/test_dali.py`.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import AugmentConfig
from adadf_dist.data.augment import apply_numba, apply_pillow, apply_torch
from adadf_dist.data.augment.operations import OpKind
from adadf_dist.data.augment.policy import AugmentationBatch, identity, sample_augmentations
from adadf_dist.data.batch import Batch
from adadf_dist.data.datamodule import open_data
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.loaders import dali_loader
from adadf_dist.data.loaders.base import DeviceTransform, LoaderConfig
from adadf_dist.data.loaders.dali_backends import CpuBackend, GpuBackend
from adadf_dist.data.loaders.jpeg_header import is_well_formed_jpeg
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.data.synthetic.faces import render_sample
from tests.helpers.runs import ROOT, SMALL, command, finish, numbers, settings

GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])
LEVEL = 1 / 255 / 0.2255
"""About what one 8-bit level is in the network's input, the mean of the three channels."""

Apply = Callable[[NDArray[np.uint8], AugmentationBatch], NDArray[np.uint8]]


def by_pillow(images: NDArray[np.uint8], drawn: AugmentationBatch) -> NDArray[np.uint8]:
    out = [
        np.asarray(apply_pillow.apply_stages(Image.fromarray(image), drawn, row)) for row, image in enumerate(images)
    ]
    return np.stack([image[:, ::-1] if flip else image for image, flip in zip(out, drawn.flips, strict=True)])


def by_numba(images: NDArray[np.uint8], drawn: AugmentationBatch) -> NDArray[np.uint8]:
    out = images.copy()
    apply_numba.apply_stages(out, drawn)
    return out


def by_torch(device: str) -> Apply:
    def run(images: NDArray[np.uint8], drawn: AugmentationBatch) -> NDArray[np.uint8]:
        tensor = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).contiguous().to(device)
        return apply_torch.apply_stages(tensor, drawn).permute(0, 2, 3, 1).cpu().numpy()

    return run


APPLIERS = [
    pytest.param(by_numba, id="numba"),
    pytest.param(by_torch("cpu"), id="torch"),
    pytest.param(by_torch("cuda"), id="torch-gpu", marks=GPU.marks),
]


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    """Synthetic faces and noise, [40, 60, 52, 3]: neither square nor even, so that axes cannot be confused."""
    faces = [np.asarray(Image.fromarray(np.asarray(render_sample(0, n, 60).image)).resize((52, 60))) for n in range(36)]
    color = [face if face.ndim == 3 else np.repeat(face[..., None], 3, axis=2) for face in faces]
    random = np.random.default_rng(0)
    extreme = [random.integers(0, 256, (60, 52, 3)), np.zeros((60, 52, 3)), np.full((60, 52, 3), 255)]
    two_values = np.where(random.random((60, 52, 3)) < 0.002, 7, 200)
    return np.stack([*color, *extreme, two_values]).astype(np.uint8)


FACTORS = {OpKind.COLOR: (0.1, 0.7, 1.0, 1.9), OpKind.CONTRAST: (0.1, 0.7, 1.9), OpKind.SHARPNESS: (0.1, 1.0, 1.9)}
BOUNDS = {
    OpKind.EQUALIZE: 0,
    OpKind.TABLE: 0,
    OpKind.AUTO_CONTRAST: 1,
    OpKind.CONTRAST: 1,
    OpKind.SHARPNESS: 1,
    OpKind.COLOR: 1,
}
"""Levels by which any pixel may differ; a warp's is below."""


@pytest.mark.parametrize("applied", APPLIERS)
@pytest.mark.parametrize("kind", BOUNDS)
def test_stage_equals_pillow(applied: Apply, kind: OpKind, pictures: NDArray[np.uint8]) -> None:
    table = np.random.default_rng(1).integers(0, 256, 256)
    for factor in FACTORS.get(kind, (0.0,)):
        drawn = identity(len(pictures), 1)
        drawn.kinds[:] = kind
        drawn.factors[:] = factor
        drawn.tables[:] = table
        wanted = by_pillow(pictures, drawn).astype(int)
        if factor != 1.0:
            assert np.abs(wanted - pictures).max() > 5
        assert np.abs(applied(pictures, drawn) - wanted).max() <= BOUNDS[kind]


@pytest.mark.parametrize("applied", APPLIERS)
def test_warp_equals_pillow(applied: Apply, pictures: NDArray[np.uint8]) -> None:
    """Each sample has its own matrix. A pixel on the image's edge may fall on either side."""
    random = np.random.default_rng(2)
    drawn = identity(len(pictures), 1)
    drawn.kinds[:] = OpKind.WARP
    drawn.matrices[:, 0] = np.eye(2, 3) + random.normal(0, 0.15, (len(pictures), 2, 3))
    difference = np.abs(applied(pictures, drawn) - by_pillow(pictures, drawn).astype(int))
    assert np.mean(difference <= 1) > 0.9995
    assert difference.mean() < 0.05


@pytest.mark.parametrize("applied", APPLIERS)
@pytest.mark.parametrize(("policy", "magnitude"), [("paper", 5.0), ("paper", 9.0), ("torchvision", 9.0)])
def test_chain_equals_pillow(applied: Apply, policy: str, magnitude: float, pictures: NDArray[np.uint8]) -> None:
    config = AugmentConfig(policy=policy, num_ops=4, magnitude=magnitude)  # type: ignore[arg-type]
    many = np.concatenate([pictures] * 6)
    drawn = sample_augmentations(config, 60, 0, 0, range(len(many)))
    assert set(drawn.kinds.ravel()) == set(OpKind)
    difference = np.abs(applied(many, drawn) - by_pillow(many, drawn).astype(int))
    assert difference.mean() < 0.05
    assert np.mean(difference <= 4) > 0.9995


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dali") / "faces"
    build_synthetic_dataset(folder, {"train": 300, "validation": 40, "test": 40}, size=64, workers=1)
    return folder


def epoch(shards: Path, loader: str, device: str = "cpu", rank: int = 0, ranks: int = 1, **more: object) -> list[Batch]:
    values = {"data.shards": str(shards), "data.loader": loader, "batch_size": 50, "data.num_workers": 0}
    config = build_config([ConfigLayer("test", {**values, **{k.replace("__", "."): v for k, v in more.items()}})])
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    with open_data(config, rank, ranks, place) as data:
        return [
            b._replace(images=b.images.cpu(), labels=b.labels.cpu(), sample_ids=b.sample_ids.cpu())
            for b in data.train_batches(1)
        ]


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("size", [48, 64, 100])
@pytest.mark.parametrize("policy", ["paper", "torchvision", "none"])
def test_both_loaders_give_the_same_images(shards: Path, device: str, size: int, policy: str) -> None:
    """From tars to the network's input: decode, resize, stages, flip, erase.

    On a CPU within 1 level in the mean and 4 for 99.9 % of the pixels; on a GPU, whose decoder and resize have an
    arithmetic of their own, within 3 and 24.
    """
    bounds = {"cpu": (1.0, 4.0), "cuda": (3.0, 24.0)}[device]
    more: dict[str, object] = {"data__image_size": size, "augment__policy": policy}
    pairs = zip(epoch(shards, "torch", **more), epoch(shards, "dali", device, **more), strict=True)
    differences = []
    for theirs, ours in pairs:
        assert torch.equal(theirs.sample_ids, ours.sample_ids)
        assert torch.equal(theirs.labels, ours.labels)
        assert theirs[3:] == ours[3:]
        # the same pixels are erased: nothing else is exactly 0 in all three channels
        assert torch.equal((theirs.images == 0).all(dim=1), (ours.images == 0).all(dim=1))
        differences.append(((theirs.images - ours.images).abs() / LEVEL).flatten())
    everything = torch.cat(differences)
    assert everything.mean() <= bounds[0]
    assert (everything <= bounds[1] * 1.03).double().mean() >= 0.999


class CpuPipeline(GpuBackend):
    """The GPU pipeline as far as a CPU can run it: DALI's resize, batched stages, chunks cut into batches."""

    decoder = "cpu"

    def __init__(self, recipe: LoaderConfig) -> None:
        self._device, self.device_id = recipe.device, None
        self._finish = DeviceTransform(recipe.preprocessing, recipe.device)

    stream_context, synchronize = CpuBackend.stream_context, CpuBackend.synchronize  # type: ignore[assignment]
    record_stream = CpuBackend.record_stream  # type: ignore[assignment]


@pytest.mark.parametrize("size", [48, 64, 100])
def test_gpu_pipeline_on_a_cpu_equals_pillow(shards: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI's resize rounds differently from Pillow's, and a later stage can amplify a level."""
    wanted = epoch(shards, "torch", data__image_size=size)
    monkeypatch.setattr(dali_loader, "make_backend", CpuPipeline)
    made = epoch(shards, "dali", data__image_size=size)
    difference = torch.cat([((a.images - b.images).abs() / LEVEL).flatten() for a, b in zip(wanted, made, strict=True)])
    assert all(torch.equal(a.sample_ids, b.sample_ids) for a, b in zip(wanted, made, strict=True))
    assert difference.mean() <= 1
    assert (difference <= 4.1).double().mean() >= 0.995


def test_ten_crops_equal_the_torch_loader(shards: Path) -> None:
    more: dict[str, object] = {"data__image_size": 48, "data__ten_crop_resize": 64}
    for theirs, ours in zip(epoch(shards, "torch", **more), epoch(shards, "dali", **more), strict=True):
        assert ours.images.shape[1:] == (10, 3, 48, 48)
        difference = (theirs.images - ours.images).abs() / LEVEL
        assert difference.mean() < 0.05
        assert (difference <= 4.1).double().mean() > 0.999


@pytest.mark.parametrize("sampler", ["all", "balanced"])
def test_two_ranks_split_the_batches_of_one(shards: Path, sampler: str) -> None:
    whole = epoch(shards, "dali", data__sampler=sampler)
    parts = [epoch(shards, "dali", rank=rank, ranks=2, data__sampler=sampler) for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([first.images, second.images]), batch.images)
        assert torch.equal(torch.cat([first.sample_ids, second.sample_ids]), batch.sample_ids)
        assert (first.offset, second.offset) == (0, len(first.labels))


def test_images_of_many_sizes_load(tmp_path: Path) -> None:
    """A folder of images that were never cropped to one size."""
    from tests.helpers.dataset_trees import write

    random = np.random.default_rng(3)
    for split, faces in {"train": 24, "test": 6}.items():
        for n in range(faces):
            size = tuple(random.integers(20, 90, 2).tolist())
            image = Image.fromarray(np.asarray(render_sample(0, n, 90).image)).resize(size)
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=90, subsampling=n % 3)
            write(tmp_path / "tree" / split / "ab"[n % 2] / f"{n}.jpg", stream.getvalue())
    out = tmp_path / "out"
    build = [sys.executable, "-m", "shards.build", "folder", "--root", str(tmp_path / "tree"), "--out", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    pairs = zip(epoch(out, "torch", data__image_size=48), epoch(out, "dali", data__image_size=48), strict=True)
    difference = torch.cat([((a.images - b.images).abs() / LEVEL).flatten() for a, b in pairs])
    assert difference.mean() < 1
    assert (difference <= 4.1).double().mean() > 0.999


def mutate(jpeg: bytes, random: np.random.Generator) -> bytes:
    """Change a few bytes, most of them in the header."""
    content = bytearray(jpeg)
    for _ in range(random.integers(1, 5)):
        content[random.integers(2, len(content) if random.random() < 0.3 else 620)] = random.integers(0, 256)
    return bytes(content)


def test_corrupt_jpegs_are_handled_alike_by_both_loaders(shards: Path, tmp_path: Path) -> None:
    """DALI may end the process on a header that it cannot parse, so it never receives one."""
    import shutil

    shutil.copytree(shards, tmp_path / "spoilt")
    split, random = open_dataset(shards).split("train"), np.random.default_rng(4)
    spoilt = random.choice(300, 120, replace=False)
    for number in spoilt.tolist():
        shard, offset, _ = split.locations[number].tolist()
        with (tmp_path / "spoilt" / split.shards[shard]).open("r+b") as tar:
            tar.seek(offset)
            tar.write(mutate(bytes(split.read(number)), random))
    more: dict[str, object] = {"data__max_bad_samples": 150, "data__image_size": 64, "augment__policy": "none"}
    replaced = 0
    theirs, ours = epoch(tmp_path / "spoilt", "torch", **more), epoch(tmp_path / "spoilt", "dali", **more)
    for whole, a, b in zip(epoch(shards, "torch", **more), theirs, ours, strict=True):
        assert torch.equal(a.sample_ids, b.sample_ids)
        assert (a.images - b.images).abs().max() < 2.1 * LEVEL
        replaced += int((whole.sample_ids != a.sample_ids).sum())
    assert 20 < replaced < 120


def test_jpeg_header_check_accepts_plain_headers(shards: Path) -> None:
    split = open_dataset(shards).split("train")
    jpeg = bytes(split.read(0))

    def plain(content: bytes) -> bool:
        return bool(is_well_formed_jpeg(np.frombuffer(content, np.uint8)))

    assert all(plain(bytes(split.read(n))) for n in range(20))
    for quality, subsampling, progressive in ((50, 0, False), (90, 1, True), (95, 2, True)):
        for mode in ("RGB", "L"):
            stream = io.BytesIO()
            image = Image.open(io.BytesIO(jpeg)).convert(mode)
            image.save(stream, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
            assert plain(stream.getvalue())
    frame = jpeg.index(b"\xff\xc0")
    for place, value in ((0, 0), (1, 0xD9), (frame, 0), (frame + 1, 0xC9), (frame + 4, 12), (frame + 9, 4)):
        assert not plain(jpeg[:place] + bytes([value]) + jpeg[place + 1 :])
    for content in (b"", b"\xff\xd8", jpeg[:100], jpeg[: frame + 12], jpeg[: jpeg.index(b"\xff\xda")], b"hello"):
        assert not plain(content)


@pytest.mark.slow
def test_resume_after_sigkill_gives_identical_run(faces: Path, tmp_path: Path) -> None:
    """Bit-identical on one CPU rank, killed mid-epoch."""
    whole = settings(faces, tmp_path / "whole", data__loader="dali", checkpoint__save_every_steps="3")
    assert finish(command(whole)).returncode == 0
    stopped = settings(faces, tmp_path / "stopped", data__loader="dali", checkpoint__save_every_steps="3")
    script = (str(ROOT / "tests" / "helpers" / "killed_in_write.py"), "4")
    assert finish(command(stopped, script=script)).returncode == -9
    assert finish(command(stopped)).returncode == 0
    for kind in ("steps", "epoch"):
        assert numbers(tmp_path / "whole", kind) == numbers(tmp_path / "stopped", kind)


def test_old_pass_does_not_block(shards: Path) -> None:
    values = {"data.shards": str(shards), "data.loader": "dali", "batch_size": 50, "data.num_workers": 0}
    with open_data(build_config([ConfigLayer("test", values)]), 0, 1, torch.device("cpu")) as data:
        old = data.train_batches(0)
        next(old)
        next(data.train_batches(1))
        with pytest.raises(RuntimeError, match="a later pass has started"):
            list(old)


HOW = {
    "missing": "ModuleNotFoundError('no nvidia.dali')",
    "broken": "OSError('libcuda: bad')",
    "nowhere to write": "RuntimeError('cannot cache function')",
}


@pytest.mark.parametrize("how", [h if h == "missing" else pytest.param(h, marks=pytest.mark.slow) for h in HOW])
def test_missing_dali_falls_back_or_is_an_error(faces: Path, tmp_path: Path, how: str) -> None:
    """`auto` reports its fallback once; `dali` is an error with the install command."""
    stand_in = tmp_path / "path" / "nvidia" / "dali"
    stand_in.mkdir(parents=True)
    (stand_in.parent / "__init__.py").write_text("")
    (stand_in / "__init__.py").write_text(f"raise {HOW[how]}")
    path = os.pathsep.join([str(tmp_path / "path"), str(ROOT)])
    auto = finish(command(settings(faces, tmp_path / "auto", data__loader="auto", epochs="1")), PYTHONPATH=path)
    assert auto.returncode == 0, auto.stderr
    assert auto.stderr.count("data.loader=torch") == 1
    assert "pip install 'adadf_dist[dali]'" in auto.stderr
    assert "data.loader: torch" in (tmp_path / "auto" / "config.yaml").read_text().replace("loader", "data.loader", 1)
    asked = finish(command(settings(faces, tmp_path / "dali", data__loader="dali")), PYTHONPATH=path)
    assert asked.returncode == 2
    (line,) = [line for line in asked.stderr.splitlines() if "error" in line]
    assert "data.loader is dali" in line
    assert "pip install 'adadf_dist[dali]'" in line
    assert "data.loader" not in SMALL or SMALL["data.loader"] == "torch"
