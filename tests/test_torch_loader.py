"""Batches from tars, against pictures made one by one; order, resume and slices; and bad faces."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from adadf_dist.config import Config
from adadf_dist.data.apply import apply_stage
from adadf_dist.data.augment import draw
from adadf_dist.data.batch import Batch
from adadf_dist.data.format import open_dataset
from adadf_dist.data.open import open_data
from adadf_dist.errors import UserError
from adadf_dist.settings import Layer, build_config

CPU = torch.device("cpu")


def config_for(faces: Path, **changed: object) -> Config:
    values = {"data.shards": str(faces), "data.image_size": 48, "batch_size": 10, "data.workers": 0}
    return build_config([Layer("test", values | {k.replace("__", "."): v for k, v in changed.items()})])


def batches(config: Config, rank: int = 0, ranks: int = 1, first: int = 0, epoch: int = 0) -> list[Batch]:
    with open_data(config, rank, ranks, CPU) as data:
        return list(data.train(epoch, first))


def test_pictures_are_what_one_would_make_by_hand(faces: Path) -> None:
    config = config_for(faces)
    split = open_dataset(faces).split("train")
    batch = batches(config)[0]
    assert batch.images.shape == (10, 3, 48, 48)
    erased = 0
    for row, sample in enumerate(batch.samples.tolist()):
        image = Image.open(io.BytesIO(split.read(sample))).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
        augmentation = draw(config.augment, 48, config.seed, 0, sample)
        for stage in augmentation.stages:
            image = apply_stage(image, stage)
        pixels = np.asarray(image).astype(np.float64) / 255
        if augmentation.flip:
            pixels = pixels[:, ::-1]
        wanted = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        box = augmentation.erase
        wanted[box.top : box.bottom, box.left : box.right] = 0
        erased += box.bottom > box.top
        np.testing.assert_allclose(batch.images[row].permute(1, 2, 0).numpy(), wanted, atol=1e-5)
        assert batch.labels[row] == split.labels[sample]
    assert 0 < erased < 10


def test_evaluation_pictures_are_plain(faces: Path) -> None:
    split = open_dataset(faces).split("validation")
    with open_data(config_for(faces), 0, 1, CPU) as data:
        seen = list(data.validation())
    assert torch.cat([b.samples for b in seen]).tolist() == list(range(len(split)))
    image = Image.open(io.BytesIO(split.read(3))).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
    wanted = (np.asarray(image) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(seen[0].images[3].permute(1, 2, 0).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_one_order_and_one_augmentation(faces: Path, ranks: int) -> None:
    whole = batches(config_for(faces))
    parts = [batches(config_for(faces), rank, ranks) for rank in range(ranks)]
    for number, batch in enumerate(whole):
        pieces = [part[number] for part in parts]
        assert torch.equal(torch.cat([p.images for p in pieces]), batch.images)
        assert torch.equal(torch.cat([p.samples for p in pieces]), batch.samples)
        assert [p.first for p in pieces] == np.cumsum([0, *(len(p.labels) for p in pieces[:-1])]).tolist()
        assert {p.global_size for p in pieces} == {len(batch.labels)}


def test_workers_change_nothing_and_outlive_epochs(faces: Path) -> None:
    alone = [batches(config_for(faces), epoch=e) for e in (0, 1)]
    others = {p.pid for p in psutil.Process().children()}  # of tests before this one
    with open_data(config_for(faces, data__workers=2), 0, 1, CPU) as data:
        together = [list(data.train(0))]
        children = {p.pid for p in psutil.Process().children()} - others
        assert len(children) == 2
        validation = list(data.validation())
        together.append(list(data.train(1)))
        assert {p.pid for p in psutil.Process().children()} - others == children
    assert len(validation) == 2
    for one, two in zip(alone, together, strict=True):
        assert all(torch.equal(a.images, b.images) for a, b in zip(one, two, strict=True))
    assert not children & {p.pid for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE}


def test_a_resumed_epoch_is_the_rest_of_it(faces: Path) -> None:
    whole, rest = batches(config_for(faces)), batches(config_for(faces), first=4)
    assert len(rest) == len(whole) - 4
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[4:], rest, strict=True))


def test_a_second_pass_sees_the_same_faces(faces: Path) -> None:
    with open_data(config_for(faces), 0, 1, CPU) as data:
        trained, measured = list(data.train(2)), list(data.measure(2))
    assert all(torch.equal(a.images, b.images) for a, b in zip(trained, measured, strict=True))


def replace_first_face(faces: Path, folder: Path, content: bytes) -> str:
    """A copy of the dataset whose first training face holds other bytes. Returns the face's key."""
    folder.mkdir()
    for path in faces.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    split = open_dataset(folder).split("train")
    place = bytes(split.read(0))
    tar = folder / split.shards[0]
    padded = content[: len(place)].ljust(len(place), b"\0")
    tar.write_bytes(tar.read_bytes().replace(place, padded))
    return str(split.keys[0])


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff" * 500, "does not decode"),
        (b"hello", "does not decode"),
        (png(1, 1), "1 x 1"),
        (png(30_000, 30_000), "67,108,864"),
    ],
)
def test_a_bad_face_is_named(faces: Path, tmp_path: Path, workers: int, content: bytes, reason: str) -> None:
    key = replace_first_face(faces, tmp_path / "bad", content)
    config = config_for(tmp_path / "bad", data__workers=workers)
    with pytest.raises(UserError, match=r"shards\.verify") as caught:
        batches(config)
    message = str(caught.value)
    assert key in message
    assert "train-000000.tar" in message
    assert reason in message
    assert "\n" not in message


def test_too_many_ranks_for_the_batches(faces: Path) -> None:
    with pytest.raises(UserError, match="start fewer ranks"), open_data(config_for(faces), 0, 6, CPU):
        pass


def test_a_validation_split_is_carved_where_there_is_none(faces: Path, tmp_path: Path) -> None:
    from adadf_dist.data.embedded import build_embedded

    build_embedded(tmp_path / "two", {"train": 60, "test": 10}, size=32)
    with open_data(config_for(tmp_path / "two", data__validation_fraction=0.2), 0, 1, CPU) as data:
        train, validation = data.train_split, data.validation_split
        assert not set(train.keys) & set(validation.keys)
        assert len(train) + len(validation) == 60
        seen = torch.cat([b.labels for b in data.validation()]).tolist()
        assert seen == validation.labels.tolist()
