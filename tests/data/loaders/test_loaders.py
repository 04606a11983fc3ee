"""Batches of both loaders against images made one by one; order, resume, slices and bad samples."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config
from adadf_dist.data.augment.apply_pillow import apply_stages
from adadf_dist.data.augment.policy import sample_augmentations
from adadf_dist.data.batch import Batch
from adadf_dist.data.datamodule import open_data
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.sampling import epoch_batches, replacement_candidates
from adadf_dist.errors import UserError

CPU = torch.device("cpu")
ROUNDING = 1.01 / 255 / 0.224
"""One 8-bit level, normalised: DALI's faces are resized in another order of rounding."""


@pytest.fixture(params=["torch", "dali"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test in this module runs with both loaders."""
    name: str = request.param
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    monkeypatch.setitem(DEFAULTS, "data.loader", name)
    return name


DEFAULTS: dict[str, object] = {"data.image_size": 48, "batch_size": 10, "data.num_workers": 0}


def config_for(faces: Path, **changed: object) -> Config:
    values = {**DEFAULTS, "data.shards": str(faces)}
    return build_config([ConfigLayer("test", values | {k.replace("__", "."): v for k, v in changed.items()})])


def batches(config: Config, rank: int = 0, ranks: int = 1, first: int = 0, epoch: int = 0) -> list[Batch]:
    with open_data(config, rank, ranks, CPU) as data:
        return list(data.train_batches(epoch, first))


def test_images_equal_a_manual_pipeline(faces: Path, loader: str) -> None:
    config = config_for(faces)
    split = open_dataset(faces).split("train")
    batch = batches(config)[0]
    assert batch.images.shape == (10, 3, 48, 48)
    erased = 0
    for row, sample in enumerate(batch.sample_ids.tolist()):
        image = Image.open(io.BytesIO(split.read(sample))).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
        drawn = sample_augmentations(config.augment, 48, config.seed, 0, [sample])
        pixels = np.asarray(apply_stages(image, drawn, 0)).astype(np.float64) / 255
        if drawn.flips[0]:
            pixels = pixels[:, ::-1]
        wanted = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        top, left, bottom, right = drawn.boxes[0]
        wanted[top:bottom, left:right] = 0
        erased += bottom > top
        difference = np.abs(batch.images[row].permute(1, 2, 0).numpy() - wanted)
        assert difference.mean() < (1e-6 if loader == "torch" else ROUNDING / 4)
        assert np.quantile(difference, 0.999) < (1e-5 if loader == "torch" else 4 * ROUNDING)
        assert batch.labels[row] == split.labels[sample]
    assert 0 < erased < 10


def test_evaluation_images_are_not_augmented(faces: Path, loader: str) -> None:
    split = open_dataset(faces).split("validation")
    with open_data(config_for(faces), 0, 1, CPU) as data:
        seen = list(data.val_batches())
    assert torch.cat([b.sample_ids for b in seen]).tolist() == list(range(len(split)))
    image = Image.open(io.BytesIO(split.read(3))).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
    wanted = (np.asarray(image) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    tolerance = 1e-5 if loader == "torch" else ROUNDING
    np.testing.assert_allclose(seen[0].images[3].permute(1, 2, 0).numpy(), wanted, atol=tolerance)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_order_and_augmentation(faces: Path, ranks: int) -> None:
    whole = batches(config_for(faces))
    parts = [batches(config_for(faces), rank, ranks) for rank in range(ranks)]
    for number, batch in enumerate(whole):
        pieces = [part[number] for part in parts]
        assert torch.equal(torch.cat([p.images for p in pieces]), batch.images)
        assert torch.equal(torch.cat([p.sample_ids for p in pieces]), batch.sample_ids)
        assert [p.offset for p in pieces] == np.cumsum([0, *(len(p.labels) for p in pieces[:-1])]).tolist()
        assert {p.global_size for p in pieces} == {len(batch.labels)}


def test_workers_do_not_change_batches_and_outlive_epochs(faces: Path, loader: str) -> None:
    alone = [batches(config_for(faces), epoch=e) for e in (0, 1)]
    others = workers_of_this_process()  # of tests before this one
    with open_data(config_for(faces, data__num_workers=2), 0, 1, CPU) as data:
        together = [list(data.train_batches(0))]
        children = workers_of_this_process() - others
        assert len(children) == (2 if loader == "torch" else 0)
        validation = list(data.val_batches())
        together.append(list(data.train_batches(1)))
        assert workers_of_this_process() - others == children
    assert len(validation) == 2
    for one, two in zip(alone, together, strict=True):
        assert all(torch.equal(a.images, b.images) for a, b in zip(one, two, strict=True))
    assert not children & workers_of_this_process()


def workers_of_this_process() -> set[int]:
    """Running workers: children of the fork server, which is a child of this process."""
    servers = psutil.Process().children()
    workers = [process for server in servers for process in server.children()]
    return {process.pid for process in workers if process.status() != psutil.STATUS_ZOMBIE}


def test_resumed_epoch_is_its_remainder(faces: Path) -> None:
    whole, rest = batches(config_for(faces)), batches(config_for(faces), first=4)
    assert len(rest) == len(whole) - 4
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[4:], rest, strict=True))


def test_second_pass_sees_the_same_samples(faces: Path) -> None:
    with open_data(config_for(faces), 0, 1, CPU) as data:
        trained, measured = list(data.train_batches(2)), list(data.class_distribution_batches(2))
    assert all(torch.equal(a.images, b.images) for a, b in zip(trained, measured, strict=True))


def corrupt_samples(faces: Path, folder: Path, split: str, bad: dict[int, bytes]) -> list[str]:
    """Copy the dataset and replace the bytes of some samples. Returns these samples' keys."""
    shutil.copytree(faces, folder)
    opened = open_dataset(folder).split(split)
    for number, content in bad.items():
        shard, offset, size = opened.locations[number].tolist()
        with (folder / opened.shards[shard]).open("r+b") as tar:
            tar.seek(offset)
            tar.write(content[:size].ljust(size, b"\0"))
    return [str(opened.keys[number]) for number in bad]


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def make_truncated_jpeg(faces: Path, split: str, number: int) -> bytes:
    """Bytes that look like a JPEG until its pixels end."""
    whole = bytes(open_dataset(faces).split(split).read(number))
    return whole[: len(whole) // 3]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff" * 500, "failed to decode"),
        (b"hello", "failed to decode"),
        (png(1, 1), "1 x 1"),
        (png(30, 30), "is a PNG"),
        (png(30_000, 30_000), "67,108,864"),
        (None, "failed to decode"),
    ],
)
def test_bad_sample_is_named(faces: Path, tmp_path: Path, workers: int, content: bytes | None, reason: str) -> None:
    (key,) = corrupt_samples(faces, tmp_path / "bad", "train", {0: content or make_truncated_jpeg(faces, "train", 0)})
    config = config_for(tmp_path / "bad", data__num_workers=workers, data__max_bad_samples=0)
    with pytest.raises(UserError, match=r"shards\.verify") as caught:
        batches(config)
    message = str(caught.value)
    assert key in message
    assert "train-000000.tar" in message
    assert reason in message
    assert "\n" not in message


def test_bad_sample_is_replaced(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By another sample of its class, a new one each epoch, the same for both loaders: the plan decides."""
    bad = {5: b"hello", 17: make_truncated_jpeg(faces, "train", 17), 40: b"\xff\xd8\xff" + b"\0" * 300}
    keys = corrupt_samples(faces, tmp_path / "bad", "train", bad)
    split = open_dataset(faces).split("train")
    stand_ins = []
    with open_data(config_for(tmp_path / "bad"), 0, 1, CPU) as data:
        for epoch in range(3):
            good, seen = batches(config_for(faces), epoch=epoch), list(data.train_batches(epoch))
            for whole, repaired in zip(good, seen, strict=True):
                assert torch.equal(whole.labels, repaired.labels)
                for row, sample in enumerate(whole.sample_ids.tolist()):
                    other = int(repaired.sample_ids[row])
                    if sample not in bad:
                        assert other == sample
                        assert torch.equal(whole.images[row], repaired.images[row])
                        continue
                    candidates = replacement_candidates(split.labels, sample, 0, epoch)
                    assert other == next(n for n in candidates if n not in bad)
                    stand_ins.append(other)
        assert data.pop_num_replaced() == 9
        assert data.pop_num_replaced() == 0
    assert len(stand_ins) == 9
    assert len(set(stand_ins)) > 3
    output = capsys.readouterr().err
    assert all(output.count(f"sample {key} (train split)") == 1 for key in keys)


def test_too_many_bad_samples_end_the_run(faces: Path, tmp_path: Path) -> None:
    corrupt_samples(faces, tmp_path / "bad", "train", dict.fromkeys(range(4), b"hello"))
    assert batches(config_for(tmp_path / "bad", data__max_bad_samples=4))
    with pytest.raises(UserError, match=r"data\.max_bad_samples is 3"):
        batches(config_for(tmp_path / "bad", data__max_bad_samples=3))


def test_evaluation_replaces_no_sample(faces: Path, tmp_path: Path) -> None:
    (key,) = corrupt_samples(faces, tmp_path / "bad", "validation", {3: make_truncated_jpeg(faces, "validation", 3)})
    with (
        pytest.raises(UserError, match=rf"sample {key} \(validation split\)"),
        open_data(config_for(tmp_path / "bad"), 0, 1, CPU) as data,
    ):
        list(data.val_batches())


def test_class_without_a_good_substitute_is_an_error(faces: Path, tmp_path: Path) -> None:
    labels = open_dataset(faces).split("train").labels
    corrupt_samples(
        faces, tmp_path / "bad", "train", dict.fromkeys(np.flatnonzero(labels == labels[0]).tolist(), b"hello")
    )
    with pytest.raises(UserError, match="failed to decode"):
        batches(config_for(tmp_path / "bad"))


@pytest.mark.parametrize("sampler", ["balanced", "oversample"])
def test_loaders_follow_the_sampling_plan(faces: Path, sampler: str) -> None:
    labels = open_dataset(faces).split("train").labels
    config = config_for(faces, data__sampler=sampler)
    plan = epoch_batches(labels, sampler, 10, config.seed, 1)
    seen = batches(config, epoch=1)
    assert [b.sample_ids.tolist() for b in seen] == [p.tolist() for p in plan]
    counts = torch.bincount(torch.cat([b.labels for b in seen]))
    assert len(set(counts[counts > 0].tolist())) == 1


def test_abandoned_pass_does_not_disturb_the_next(faces: Path) -> None:
    with open_data(config_for(faces, data__num_workers=1, data__prefetch_batches=1), 0, 1, CPU) as data:
        for _ in range(3):
            next(iter(data.train_batches(0)))
        after = list(data.train_batches(1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches(config_for(faces), epoch=1), after, strict=True))


def test_memory_does_not_grow_over_epochs(faces: Path) -> None:
    """Resident memory over 20 epochs after a warm-up; 64 samples are 2 MB of floats per epoch."""
    process = psutil.Process()
    used = []
    with open_data(config_for(faces), 0, 1, CPU) as data:
        for epoch in range(20):
            for _ in data.train_batches(epoch):
                pass
            used.append(process.memory_info().rss / 2**20)
    assert used[-1] - used[5] < 12, used


def test_too_many_ranks_for_the_batches_are_rejected(faces: Path) -> None:
    with pytest.raises(UserError, match="start fewer ranks"), open_data(config_for(faces), 0, 6, CPU):
        pass


def test_validation_is_held_out_when_missing(faces: Path, tmp_path: Path) -> None:
    from adadf_dist.data.synthetic.dataset import build_synthetic_dataset

    build_synthetic_dataset(tmp_path / "two", {"train": 60, "test": 10}, size=32)
    with open_data(config_for(tmp_path / "two", data__validation_fraction=0.2), 0, 1, CPU) as data:
        train, validation = data.train_split, data.validation_split
        assert not set(train.keys) & set(validation.keys)
        assert len(train) + len(validation) == 60
        seen = torch.cat([b.labels for b in data.val_batches()]).tolist()
        assert seen == validation.labels.tolist()
