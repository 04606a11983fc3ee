"""Training on stored outputs of a frozen extractor equals training on images."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adadf_dist import train
from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.data.batch import Batch
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.loaders.torch_loader import TorchLoader
from adadf_dist.data.map_store import MapStore
from adadf_dist.data.sampling import Samples, epoch_batches, replacement_candidates
from adadf_dist.distributed.world import World
from adadf_dist.engine.ddp import DDPEngine, Engine, build_engine
from adadf_dist.errors import DiskFullError, UserError
from adadf_dist.export.__main__ import main as export
from adadf_dist.files.locks import exclusive_lock
from adadf_dist.method.backbones import build_resnet
from adadf_dist.training import map_filler
from adadf_dist.training.setup import RunContext, prepare_run
from adadf_dist.training.stored_maps import use_stored_maps
from tests.data.loaders.test_loaders import corrupt_samples
from tests.helpers.evaluations import evaluate
from tests.helpers.faults import assert_same_result
from tests.helpers.forked import train_forked
from tests.helpers.ranks import run_ranks, single_process_world
from tests.helpers.runs import assert_same_run, final_weights, records, settings, status

CLASSES = 7
NO_AUGMENTATION = {"augment__policy": "none", "augment__flip_prob": "0", "augment__erase_prob": "0"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random pretrained weights of a resnet10."""
    path = tmp_path_factory.mktemp("weights") / "resnet10.pt"
    torch.manual_seed(1)
    torch.save(build_resnet("resnet10").state_dict(), path)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def values_of(faces: Path, folder: Path, weights: Path, number: int, **changed: str) -> dict[str, str]:
    """Options of a run in `folder` with `number` stored augmentations."""
    more = {"model__pretrained": str(weights), "model__cached_augmentations": str(number)}
    more |= {"data__cache_dir": str(folder.parent / "cache"), "runtime__precision": "fp32"}
    return settings(faces, folder, **{**more, **changed})


def train_with(values: Mapping[str, str]) -> object:
    return train.run(build_config([ConfigLayer("test", values)]))


@contextmanager
def prepared(values: Mapping[str, str], world: World | None = None) -> Iterator[tuple[RunContext, Engine]]:
    """The context of a run before its maps are computed, and its engine."""
    with prepare_run(build_config([ConfigLayer("test", values)]), world or single_process_world()) as context:
        yield context, build_engine(context.config, CLASSES, context.world)


def fill(values: Mapping[str, str], world: World | None = None) -> dict[str, Any]:
    """Compute the missing maps of a run, and return its first two epochs and its test batches by name."""
    with (
        prepared(values, world) as (context, engine),
        use_stored_maps(context, engine, TrainingProgress()) as ready,
    ):
        assert ready is not None
        epochs = [list(ready.data.train_batches(epoch)) for epoch in range(2)]
        return {"epochs": epochs, "test": list(ready.data.test_batches())}


def extract(engine: Engine, batch: Batch) -> Tensor:
    with torch.no_grad():
        maps: Tensor = engine.model.extractor(batch.images)
    return maps


def assert_same_batches(mine: Sequence[Batch], theirs: Sequence[Batch]) -> None:
    """Equal batches, except for rounding of the maps."""
    assert len(mine) == len(theirs) > 0
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.images, b.images, rtol=1e-5, atol=1e-5)
        assert torch.equal(a.labels, b.labels) and torch.equal(a.sample_ids, b.sample_ids)
        assert (a.offset, a.global_size) == (b.offset, b.global_size)


@pytest.fixture(scope="module")
def two_runs(faces: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run folders of the same run on images and on maps, without augmentation."""
    folder = tmp_path_factory.mktemp("runs")
    for number, name in enumerate(("images", "maps")):
        train_with(values_of(faces, folder / name, weights, number, **NO_AUGMENTATION))
    return folder / "images", folder / "maps"


def test_run_without_augmentation_equals_run_on_images(two_runs: tuple[Path, Path]) -> None:
    """Bit by bit: losses, class distributions, sample history, weights, predictions."""
    images, maps = two_runs
    assert_same_result(maps, images)
    files = sorted(path.relative_to(images) for path in images.rglob("*.npz"))
    assert len(files) >= 4
    for name in files:
        mine, theirs = (dict(np.load(run / name)) for run in (maps, images))
        assert mine.keys() == theirs.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key], err_msg=f"{name}: {key}")


def test_finished_run_is_evaluated_and_exported_on_images(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(two_runs[1], tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    assert evaluate(run)["scores"]["confusion"] == result["test"]["confusion"]
    export([str(run), "--safetensors", str(tmp_path / "run.safetensors")])  # compares logits on images
    assert (tmp_path / "run.safetensors").is_file()


def test_two_ranks_equal_two_ranks_on_images(faces: Path, weights: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("images", "maps")):
        values = values_of(faces, tmp_path / name, weights, number, epochs="1", **NO_AUGMENTATION)
        done = train_forked(values, 2, timeout=180)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "maps", tmp_path / "images")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_equals_deepspeed_on_images(stage: int, faces: Path, weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    more = {"engine": "deepspeed", "deepspeed__zero_stage": str(stage), **NO_AUGMENTATION}
    for number, name in enumerate(("images", "maps")):
        done = train_forked(values_of(faces, tmp_path / name, weights, number, **more), 2, timeout=180)
        assert done.returncode == 0, done.stderr
    mine, theirs = (records(tmp_path / name, "steps") for name in ("maps", "images"))
    assert [record["total"] for record in mine] == pytest.approx([record["total"] for record in theirs], rel=1e-6)
    weights_of = [final_weights(tmp_path / name) for name in ("maps", "images")]
    for name in weights_of[0]:
        torch.testing.assert_close(weights_of[0][name], weights_of[1][name], rtol=1e-5, atol=1e-6)


def test_epoch_uses_its_augmentation_of_every_sample(faces: Path, weights: Path, tmp_path: Path) -> None:
    """Two augmentations in four epochs, against the extractor on the loader's images of epochs 0 and 1.

    A sample that does not decode is replaced as in these epochs.
    """
    corrupt_samples(faces, tmp_path / "bad", "train", {5: b"hello"})
    labels = open_dataset(faces).split("train").labels
    values = values_of(tmp_path / "bad", tmp_path / "run", weights, 2, epochs="4")
    with prepared(values) as (context, engine):
        wanted = []
        for epoch in range(4):
            plan = epoch_batches(labels, "all", 16, 0, epoch)
            images = context.data.loader.batches("train", plan, epoch % 2)
            wanted.append([batch._replace(images=extract(engine, batch)) for batch in images])
        evaluated = [batch._replace(images=extract(engine, batch)) for batch in context.data.val_batches()]
        context.data.pop_num_replaced()
        with use_stored_maps(context, engine, TrainingProgress()) as ready:
            assert ready is not None
            for epoch in range(4):
                assert_same_batches(list(ready.data.train_batches(epoch)), wanted[epoch])
            assert_same_batches(list(ready.data.train_batches(2, first_batch=3)), wanted[2][3:])
            assert_same_batches(list(ready.data.class_distribution_batches(1)), wanted[1])
            assert_same_batches(list(ready.data.val_batches()), evaluated)
            assert ready.data.pop_num_replaced() == 2
    for epoch in range(4):
        drawn = Counter(int(sample) for batch in wanted[epoch] for sample in batch.sample_ids)
        substitute = next(replacement_candidates(labels, 5, 0, epoch % 2))
        assert 5 not in drawn and drawn[substitute] == 2
    assert not torch.equal(wanted[0][0].images, wanted[1][0].images)


@pytest.mark.parametrize(
    ("backbone", "precision"),
    [
        ("resnet10", "fp32"),
        ("resnet10", "bf16"),
        ("timm:vit_tiny_patch16_224", "fp32"),
        pytest.param("timm:vit_tiny_patch16_224", "bf16", marks=pytest.mark.slow),
    ],
)
def test_outputs_for_maps_equal_those_for_images(
    backbone: str, precision: str, faces: Path, weights: Path, tmp_path: Path
) -> None:
    if backbone.startswith("timm:"):
        timm = pytest.importorskip("timm", reason="timm is not installed")
        weights = tmp_path / "vit.pt"
        torch.save(timm.create_model(backbone[5:], img_size=32, num_classes=0).state_dict(), weights)
    more = {"runtime__precision": precision, "model__backbone": backbone, "optimizer__ema_decay": "0.9"}
    with prepared(values_of(faces, tmp_path / "run", weights, 1, **more)) as (context, engine):
        batches = list(context.data.test_batches())
        wanted = [engine.infer_with_features(batch.images) for batch in batches]
        trained = engine.forward(batches[0].images)
        with use_stored_maps(context, engine, TrainingProgress()) as ready:
            assert ready is not None
            # tokens stay fp32 under autocast: each block adds to them
            extract_dtype = torch.bfloat16 if (backbone, precision) == ("resnet10", "bf16") else torch.float32
            for batch, (output, features) in zip(ready.data.test_batches(), wanted, strict=True):
                assert batch.flatten_crops() is batch and batch.num_crops == 1
                assert batch.images.dtype == extract_dtype
                found, found_features = engine.infer_with_features(batch.images)
                torch.testing.assert_close(found, output)
                torch.testing.assert_close(found_features, features)
                torch.testing.assert_close(engine.predict(batch.images), output.target_logits)
            torch.testing.assert_close(engine.forward(next(ready.data.test_batches()).images), trained)


def test_vectors_are_batches_without_crops() -> None:
    labels = torch.arange(3)
    for shape in ((3, 8), (3, 5, 8), (3, 8, 2, 2)):
        batch = Batch(torch.zeros(shape), labels, labels, 0, 3)
        assert batch.num_crops == 1 and batch.flatten_crops() is batch


def test_second_run_computes_nothing(
    faces: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fill(values_of(faces, tmp_path / "first", weights, 2))
    assert "maps: computing 4 of 4 sets of frozen extractor outputs" in capsys.readouterr().err
    monkeypatch.setattr(TorchLoader, "batches", lambda *_: pytest.fail("images are loaded again"))
    second = fill(values_of(faces, tmp_path / "second", weights, 2))
    assert "maps: reusing 4 of 4 sets of frozen extractor outputs" in capsys.readouterr().err
    for mine, theirs in zip([*second["epochs"], second["test"]], [*first["epochs"], first["test"]], strict=True):
        assert all(torch.equal(a.images, b.images) for a, b in zip(mine, theirs, strict=True))


def test_other_inputs_are_other_maps(
    faces: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(values_of(faces, tmp_path / "run", weights, 1))
    other = tmp_path / "other.pt"
    changed = torch.load(weights, weights_only=True)
    changed["layer1.0.conv2.weight"][0, 0, 0, 0] += 1e-3
    torch.save(changed, other)
    later = torch.load(weights, weights_only=True)
    later["layer4.0.conv2.weight"] += 1  # a branch's
    torch.save(later, tmp_path / "branch.pt")
    for more, computed, reused in (
        ({"model__pretrained": str(other)}, 3, 0),
        ({"data__image_size": "40"}, 3, 0),
        ({"seed": "1"}, 1, 2),  # validation and test are not augmented
        ({"augment__magnitude": "4"}, 1, 2),
        ({"model__cached_augmentations": "2"}, 1, 3),
        ({"model__pretrained": str(tmp_path / "branch.pt")}, 0, 3),
        ({"batch_size": "32", "epochs": "3", "optimizer__lr": "0.1"}, 0, 3),
    ):
        capsys.readouterr()
        fill(values_of(faces, tmp_path / "run", weights, 1, **more))
        text = capsys.readouterr().err
        assert (f"computing {computed} of" in text) == bool(computed), text
        assert (f"reusing {reused}" in text) == bool(reused), text


def die_while_filling(values: dict[str, str]) -> None:
    """Run in a process of its own: SIGKILL in the second store, with half of a batch written."""
    real, calls = MapStore.writer, [0]

    @contextmanager
    def writer(store: MapStore) -> Iterator[Any]:
        with real(store) as write:

            def write_or_die(first: int, maps: Tensor) -> None:
                calls[0] += 1
                if calls[0] == 7:  # 64 / 16 batches in the first store
                    write(first, maps[:8])
                    os.kill(os.getpid(), signal.SIGKILL)
                write(first, maps)

            yield write_or_die

    MapStore.writer = writer  # type: ignore[method-assign]
    fill(values)


def test_killed_run_keeps_complete_maps(
    faces: Path, weights: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = values_of(faces, tmp_path / "run", weights, 2)
    process = multiprocessing.get_context("forkserver").Process(target=die_while_filling, args=(values,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(cache.glob("entries/*/maps.bin"))) == 1
    assert len(list(cache.glob("entries/*/maps.bin.partial"))) == 1
    resumed = fill(values)
    assert "computing 3 of 4 sets of frozen extractor outputs" in capsys.readouterr().err
    assert not list(cache.glob("entries/*/*.partial"))
    shutil.rmtree(cache)
    for mine, theirs in zip(resumed["epochs"], fill(values)["epochs"], strict=True):
        assert_same_batches(mine, theirs)


def fill_on_rank(world: World, values: dict[str, str]) -> dict[str, Any]:
    """The maps of a rank, and the number of images that it loaded."""
    real, loaded = TorchLoader.batches, []

    def batches(loader: TorchLoader, split: str, plan: Sequence[Samples], epoch: int = -1) -> Iterator[Batch]:
        for batch in real(loader, split, plan, epoch):
            loaded.append(len(batch.labels))
            yield batch

    TorchLoader.batches = batches  # type: ignore[method-assign]
    return {**fill(values, world), "loaded": sum(loaded)}


def test_ranks_share_the_work(faces: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both ranks read all maps, but each loads only its half of every batch, and the batches are those of one."""
    first, second = run_ranks(fill_on_rank, 2, values_of(faces, tmp_path / "run", weights, 1))
    assert first["loaded"] == 4 * 8 + 2 * 5 + 2 * 8  # batches of 16, 10 and 15
    assert second["loaded"] == 4 * 8 + 2 * 5 + 2 * 7
    fill(values_of(faces, tmp_path / "run", weights, 1))
    assert "maps: reusing 3 of" in capsys.readouterr().err
    alone = fill(values_of(faces, tmp_path / "alone" / "run", weights, 1))
    for name in ("epochs", "test"):
        whole = alone[name] if name == "test" else alone[name][1]
        halves = zip(*((r[name] if name == "test" else r[name][1]) for r in (first, second)), strict=True)
        joined = [
            Batch(*(torch.cat([a[i], b[i]]) for i in range(3)), a.offset, a.global_size)  # type: ignore[call-overload]
            for a, b in halves
        ]
        assert_same_batches(joined, whole)


def test_run_stops_while_it_computes_maps(
    faces: Path, weights: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DDPEngine.extract

    def stopping(engine: DDPEngine, images: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGTERM)
        return real(engine, images)

    monkeypatch.setattr(DDPEngine, "extract", stopping)
    outcome = train_with(values_of(faces, tmp_path / "run", weights, 1))
    assert isinstance(outcome, train.Stopped)
    assert status(tmp_path / "run")["state"] == "stopped"
    assert not records(tmp_path / "run", "steps") and not list(cache.glob("entries/*/maps.json"))


def test_run_resumes_in_mid_epoch(
    two_runs: tuple[Path, Path], faces: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, calls, real = values_of(faces, tmp_path / "run", weights, 1, **NO_AUGMENTATION), [], train.adadf_loss

    def stopping(*args: Any) -> object:
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(train, "adadf_loss", stopping)
    assert isinstance(train_with(values), train.Stopped)
    assert len(records(tmp_path / "run", "steps")) == 6
    train_with(values)
    assert_same_result(tmp_path / "run", two_runs[0])
    with pytest.raises(UserError, match=r"model\.cached_augmentations was 1 in the checkpoint"):
        train_with({**values, "model.cached_augmentations": "2"})


@pytest.mark.parametrize(
    ("more", "fix"),
    [
        ({"model__pretrained": ""}, "set model.pretrained"),
        ({"model__freeze": "never"}, "model.freeze = auto"),
        ({"data__access": "stream"}, "set data.access = cache"),
        ({"data__ten_crop_resize": "40"}, "set data.ten_crop_resize = 0"),
    ],
)
def test_unsuitable_settings_are_refused(
    more: dict[str, str], fix: str, faces: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"model\.cached_augmentations is 2; allowed: 0 while") as caught:
        build_config([ConfigLayer("test", values_of(faces, tmp_path / "run", weights, 2, **more))])
    assert fix in str(caught.value) and "\n" not in str(caught.value)


MAP_BYTES = 64 * 8 * 8 * 4
"""Of an image of 32x32: a quarter of the side, 64 channels, fp32."""


def test_missing_space_is_reported_before_work(
    faces: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, total = values_of(faces, tmp_path / "run", weights, 2), (2 * 64 + 20 + 30) * MAP_BYTES
    monkeypatch.setattr(TorchLoader, "batches", lambda *_: pytest.fail("images are loaded"))
    needed = f"model.cached_augmentations = 2 needs {total / 1e9:.3g} GB"
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=total - 1))
        with pytest.raises(UserError, match=f"{needed} more there, but only"):
            fill(values)
    with pytest.raises(UserError, match=rf"data\.cache_size_gb is 0\.002, but {needed}; raise the limit"):
        fill({**values, "data.cache_size_gb": "0.002"})


def test_full_disk_is_one_line(
    faces: Path, weights: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MapStore.create

    def create(store: MapStore) -> None:
        real(store)
        store.partial.unlink()
        store.partial.symlink_to("/dev/full")

    monkeypatch.setattr(MapStore, "create", create)
    with pytest.raises(DiskFullError, match="free some space"):
        fill(values_of(faces, tmp_path / "run", weights, 1))
    assert not list(cache.glob("entries/*/maps.json"))


def test_unused_maps_are_evicted(faces: Path, weights: Path, tmp_path: Path, cache: Path) -> None:
    limit = {"data__cache_size_gb": str((64 + 20 + 30 + 1) * MAP_BYTES / 1e9)}
    fill(values_of(faces, tmp_path / "run", weights, 1))
    old = {path.parent for path in cache.glob("entries/*/maps.bin") if path.stat().st_size == 64 * MAP_BYTES}
    fill(values_of(faces, tmp_path / "run", weights, 1, seed="1", **limit))
    assert len(old) == 1 and not next(iter(old)).exists()
    assert len(list(cache.glob("entries/*/maps.bin"))) == 3


def test_run_waits_for_another_that_computes_the_same_maps(
    faces: Path, weights: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, waits = values_of(faces, tmp_path / "run", weights, 1), []
    fill(values)
    entry = next(iter(cache.glob("entries/*")))
    with ExitStack() as other:
        assert other.enter_context(exclusive_lock(cache / "locks" / f"{entry.name}.fill", "data.cache_dir"))

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 2:
                other.close()

        monkeypatch.setattr(map_filler, "time", SimpleNamespace(sleep=sleep))
        fill(values)
    assert len(waits) == 2
