"""A run's data: its splits, its sampling plan and the loader that produces batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from adadf_dist.config.schema import Config
from adadf_dist.data.batch import Batch
from adadf_dist.data.dataset import Dataset, Split, check_trainable, open_dataset
from adadf_dist.data.identity import Source
from adadf_dist.data.label_noise import LabelNoise, apply_label_noise
from adadf_dist.data.loaders.base import Loader, LoaderConfig
from adadf_dist.data.loaders.streaming import StreamLoader
from adadf_dist.data.loaders.torch_loader import TorchLoader
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.data.relabel import RelabelingStats, read_decisions, relabel
from adadf_dist.data.remote.cache import ensure_cached, streamed_splits
from adadf_dist.data.remote.client import Remote
from adadf_dist.data.sampling import MIN_SAMPLES_PER_RANK, Samples, epoch_batches, split_batches, stratified_holdout
from adadf_dist.errors import UserError, install_or_repair, single_line

DALI_LOADER = "adadf_dist.data.loaders.dali_loader"
"""Module of the DALI loader, imported on demand because it requires DALI."""


@dataclass(frozen=True)
class DataModule:
    """One rank's view of a dataset. Every iterator yields this rank's slices of global batches."""

    name: str
    config: Config
    preprocessing: Preprocessing
    train_split: Split
    validation_split: Split
    test_split: Split | None
    loader: Loader
    source: Source
    noise: LabelNoise | None = None
    """Label noise applied to the training split (`data.label_noise_rate`)."""
    relabeling: RelabelingStats | None = None
    """Relabeling (`data.relabel_file`) applied to the training split before label noise is added."""
    stream: StreamLoader | None = None
    """Loader of the training samples if `data.access` is `stream`; None otherwise."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train_split.classes

    def num_batches(self, epoch: int) -> int:
        """Return the number of global batches in a training epoch; epochs count from 0."""
        return len(self._plan(epoch))

    def train_batches(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Return the batches of a training epoch, starting at `first_batch` so that a resumed run repeats no batch."""
        plan = self._plan(epoch)
        if self.stream is not None:
            return self.stream.batches(plan, epoch, first_batch)
        return self.loader.batches("train", plan[first_batch:], epoch)

    def class_distribution_batches(self, epoch: int) -> Iterator[Batch]:
        """Return the batches of `train_batches` again, with the same augmentation, for the second pass (equation 4)."""
        return self.train_batches(epoch)

    def pop_num_replaced(self) -> int:
        """Return how many undecodable training samples this rank has replaced since the last call."""
        replaced, self.loader.num_replaced = self.loader.num_replaced, 0
        return replaced

    def val_batches(self) -> Iterator[Batch]:
        return self.eval_batches(self.validation_split)

    def test_batches(self) -> Iterator[Batch]:
        assert self.test_split is not None
        return self.eval_batches(self.test_split)

    def eval_batches(self, split: Split, only: Samples | None = None) -> Iterator[Batch]:
        """Return batches of a split's samples, or only of those in `only`, each once and without augmentation.

        With `evaluation.flip_tta`, each sample has two views: the image and its mirror image.
        """
        samples = np.arange(len(split)) if only is None else only
        batches = self.loader.batches(split.name, split_batches(samples, self.config.batch_size))
        return map(Batch.add_mirror_images, batches) if self.config.evaluation.flip_tta else batches

    def _plan(self, epoch: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
        config = self.config
        return epoch_batches(self.train_split.labels, config.data.sampler, config.batch_size, config.seed, epoch)


@contextmanager
def open_data(
    config: Config, rank: int, ranks: int, device: torch.device, folder: Path | None = None
) -> Iterator[DataModule]:
    """Open the dataset `data.shards` for one rank; the loader is closed at the end of the `with` block.

    `folder` is the dataset's local copy; if None, it is located, and downloaded if necessary.
    Raises `UserError` if the data cannot be used for training.
    """
    with ExitStack() as opened:
        if folder is None:
            folder = opened.enter_context(ensure_cached(config.data))
        data = open_splits(config, folder, (rank, ranks), device)
        opened.callback(data.loader.close)
        check_batch_per_rank(data, ranks)
        yield data


def open_splits(config: Config, folder: Path, ranks: tuple[int, int], device: torch.device) -> DataModule:
    """Open the splits of a dataset folder and create their loader; `ranks` is (this rank, number of ranks)."""
    dataset = open_dataset(folder, streamed_splits(config.data))
    if "train" not in dataset.splits:
        raise UserError(f"data.shards: {config.data.shards} has no train split; pass a dataset that has one")
    if config.data.access == "stream" and "validation" not in dataset.splits:
        raise UserError(
            f"data.access is stream, but {config.data.shards} has no validation split, and holding one out requires "
            "local training tars: build the dataset with a validation split, or set data.access = cache"
        )
    train, validation = load_train_val(dataset, config)
    check_has_votes(train, config)
    test = dataset.split("test") if "test" in dataset.splits else None
    others = [key for split in (train, validation, test) if split is not None for key in split.keys.tolist()]
    train, relabeling = apply_relabeling(dataset, train, (validation, test), config)
    train, noise = apply_label_noise(train, config.data, config.seed, others)
    if test is None and config.evaluation.protocol == "paper":
        raise UserError(f"evaluation.protocol = paper requires a test split, but {config.data.shards} has none")
    preprocessing = Preprocessing(
        config.data.image_size, train.classes, config.data.loader, ten_crop=config.data.ten_crop_resize
    )
    splits = {split.name: split for split in (train, validation, test) if split is not None}
    recipe = LoaderConfig(
        splits=splits,
        preprocessing=preprocessing,
        augment=config.augment,
        seed=config.seed,
        device=device,
        rank=ranks[0],
        ranks=ranks[1],
        batch_size=config.batch_size,
        workers=config.data.num_workers,
        prefetch=config.data.prefetch_batches,
        max_bad_samples=config.data.max_bad_samples,
    )
    loader = make_loader(config.data.loader, recipe)
    stream = None
    if config.data.access == "stream":
        assert isinstance(loader, TorchLoader), config.data.loader
        stream = StreamLoader(Remote(config.data.shards), loader, config.data.shuffle_buffer)
    return DataModule(
        name=dataset.name,
        config=config,
        preprocessing=preprocessing,
        train_split=train,
        validation_split=validation,
        test_split=test,
        loader=loader,
        source=Source(config.data.shards, dataset.manifest.digests()),
        noise=noise,
        relabeling=relabeling,
        stream=stream,
    )


def load_train_val(dataset: Dataset, config: Config) -> tuple[Split, Split]:
    """Return the train and validation splits. If the dataset has no validation split, hold one out of train.

    The held-out split is stratified by the dataset's own labels, so noise and relabeling do not change it.
    Raises `UserError`.
    """
    train = dataset.split("train")
    check_trainable(train)
    if "validation" in dataset.splits:
        return train, dataset.split("validation")
    return hold_out_validation(train, config)


def check_has_votes(train: Split, config: Config) -> None:
    """Raise `UserError` if `loss.supervision` is votes, but no training sample has any."""
    if config.loss.supervision == "votes" and (train.votes is None or not train.votes.any()):
        raise UserError(
            f"loss.supervision is votes, but the train split of {config.data.shards} has no annotator votes; rebuild "
            "the dataset with votes, or set loss.supervision = one_hot"
        )


def hold_out_validation(train: Split, config: Config) -> tuple[Split, Split]:
    """Split `train` into train and validation as configured. Raises `UserError` if nothing can be held out."""
    train_samples, held_out = stratified_holdout(train.labels, config.data.validation_fraction, config.seed)
    if not len(held_out):
        raise UserError(
            f"{train.folder}: no class has two training images, so none can be held out for validation; add images"
        )
    return train.subset(train_samples, "train"), train.subset(held_out, "validation")


def apply_relabeling(
    dataset: Dataset, train: Split, others: tuple[Split | None, ...], config: Config
) -> tuple[Split, RelabelingStats | None]:
    """Relabel and drop samples of `train` as listed in `data.relabel_file`. Raises `UserError` if it is invalid."""
    if not config.data.relabel_file:
        return train, None
    decisions = read_decisions(Path(config.data.relabel_file), dataset.classes, "data.relabel_file")
    stored = [split for split in others if split is not None and split.name in dataset.splits]
    held_out = [split for split in others if split is not None and split.name not in dataset.splits]
    decisions.check_keys(
        {str(key) for split in (train, *held_out) for key in split.keys},
        {str(key): split.name for split in stored for key in split.keys},
    )
    labels = {str(key): int(n) for split in (train, *held_out) for key, n in zip(split.keys, split.labels, strict=True)}
    decisions.check_labels(labels, dataset.classes)
    train, stats = relabel(train, decisions)
    if stats.dropped and config.data.access == "stream":
        raise UserError(
            f"{decisions.where}: drops {stats.dropped:,} samples, but data.access is stream, which reads entire tars; "
            "set data.access = cache, or rebuild the dataset with python -m shards.build ... --relabel"
        )
    check_trainable(train)
    return train, stats


def make_loader(name: str, recipe: LoaderConfig) -> Loader:
    """Create the `torch` or `dali` loader. Raises `UserError` if DALI cannot be imported."""
    if name == "dali":
        if problem := dali_unavailable_reason():
            raise UserError(f"data.loader is dali, but {problem}; alternatively, set data.loader = torch")
        return import_module(DALI_LOADER).DaliLoader(recipe)  # type: ignore[no-any-return]
    return TorchLoader(recipe)


def dali_unavailable_reason() -> str:
    """Return why DALI is unavailable and how to fix it, or an empty string if it works."""
    try:
        import_module(DALI_LOADER)
    except Exception as error:  # a missing library, or any error that a broken one raises
        return f"it cannot be imported ({single_line(error)}); {install_or_repair(error, 'dali')}"
    return ""


def check_batch_per_rank(data: DataModule, ranks: int) -> None:
    """Raise `UserError` if any batch gives a rank fewer samples than a training step needs."""
    plan = data._plan(0)
    smallest = min(len(batch) for batch in plan)
    if smallest < MIN_SAMPLES_PER_RANK * ranks:
        samples, needed = sum(map(len, plan)), MIN_SAMPLES_PER_RANK * ranks
        advice = ["raise batch_size"] * (samples >= needed) + ["start fewer ranks"] * (ranks > 1)
        raise UserError(
            f"batch_size: with {samples} samples per epoch, the smallest batch has only {smallest}, but {ranks} ranks "
            f"need at least {needed}; {' or '.join(advice) or 'add training samples'}"
        )
