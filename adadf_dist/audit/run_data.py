"""Load a run for an audit: its training samples, predictions and training dynamics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adadf_dist.audit.training_dynamics import TrainingDynamics, load_training_dynamics
from adadf_dist.checkpoint.trained_model import CheckpointChoice, TrainedModel, TrainedPredictor, load_trained_model
from adadf_dist.config.load import override, with_absolute_paths
from adadf_dist.config.schema import Config
from adadf_dist.data.datamodule import DataModule, open_data
from adadf_dist.data.dataset import Split, open_dataset
from adadf_dist.data.identity import how_to_fix, other_data
from adadf_dist.data.remote.client import scheme_of
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.metrics.predictions import Predictions, check_finite, fuse_distributions, predict_split
from adadf_dist.tracking.artifacts import SampleTable, load_samples, sample_keys
from adadf_dist.training.setup import resolve_loader


class AuditInputs(NamedTuple):
    """Audit inputs for S training samples of a run, in the order of its training split, and C classes."""

    run: Path
    split: Split
    """Training split with the labels used in training. Images can be read until `load_audit_inputs` exits."""
    faces: SampleTable
    trained: TrainedModel
    traces: TrainingDynamics
    answers: Predictions
    """Predictions on the training samples without augmentation."""
    weights: NDArray[np.float64]
    """[S], attention weights w' (eq 11) computed from `answers`."""
    fused: NDArray[np.float64]
    """[S, C], fused distributions (eq 12)."""
    stored_labels: NDArray[np.int64]
    """[S], labels stored in the dataset, before relabeling and label noise."""
    other_data: str = ""
    """How the dataset differs from the run's training data, if the user allowed it; empty if it does not differ."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.split.classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """[S], labels used in training."""
        return self.split.labels

    @property
    def noisy(self) -> bool:
        """Whether label noise was injected; the original labels are then known."""
        return bool((self.faces.labels != self.faces.true_labels).any())

    @property
    def progress_note(self) -> str:
        """Note for an unfinished run; empty for a finished one."""
        planned = self.trained.config.epochs
        if self.traces.epochs >= planned:
            return ""
        return f"the run has finished {self.traces.epochs} of {planned} epochs; the audit covers these"


@contextmanager
def load_audit_inputs(
    run: Path,
    which: CheckpointChoice,
    moved: Mapping[str, str],
    device: torch.device,
    allow_other_data: bool = False,
    precision: Literal["fp32", "bf16"] | None = None,
) -> Iterator[AuditInputs]:
    """Predict the run's training samples, with the same held-out split, relabeling and label noise as in training.

    `moved`: configuration keys that differ from the run's, such as the dataset's location. `allow_other_data`:
    audit other images with the same keys and labels. `precision`: as in the run if None. Raises `UserError`.
    """
    if run.is_file():
        raise UserError(f"{run}: is a file; pass the run folder, because the audit also needs its history")
    trained = load_trained_model(run, which)
    shards = trained.config.data.shards
    if "data.shards" not in moved and not scheme_of(shards) and not Path(shards).is_dir():
        raise UserError(f"{shards}: the run's dataset was not found; pass its location as --shards DIR")
    faces = load_samples(run)
    traces = load_training_dynamics(run, len(faces.labels))
    world = World(device)
    with open_data(audit_config(trained.config, moved, world), 0, 1, device) as data:
        check_same_samples(data, faces, trained)
        difference = check_same_images(data, trained, allow_other_data)
        split = data.train_split
        answers = predict_split(
            TrainedPredictor(trained, device, precision), data.eval_batches(split), len(split), world
        )
        check_finite(answers, trained.path)
        config = trained.config
        weights, fused = fuse_distributions(
            answers, split.labels, trained.class_distributions, config.loss, config.batch_size
        )
        stored = read_stored_labels(split)
        yield AuditInputs(run, split, faces, trained, traces, answers, weights, fused, stored, difference)


def read_stored_labels(split: Split) -> NDArray[np.int64]:
    """Return the labels that the dataset stores for the samples of the training split, [S]."""
    stored = open_dataset(split.folder).split("train")
    labels = dict(zip(stored.keys.tolist(), stored.labels.tolist(), strict=True))
    return np.array([labels[key] for key in split.keys.tolist()])


def audit_config(config: Config, moved: Mapping[str, str], world: World) -> Config:
    """Return the run's configuration for an audit: shards are cached, and DALI is replaced if it is unavailable."""
    changed: dict[str, object] = {"data.access": "cache", **moved}
    if config.data.loader == "dali":
        changed["data.loader"] = resolve_loader(override(config, {"data.loader": "auto"}), world)
    return with_absolute_paths(override(config, changed))


def check_same_images(data: DataModule, trained: TrainedModel, allow_other_data: bool) -> str:
    """Describe how the dataset differs from the run's; raise `UserError` if it does and the user has not allowed it."""
    if trained.data is None:
        return ""  # written by an older version; keys and labels were compared
    difference = other_data(trained.data.source, data.source, ["train"])
    if difference and not allow_other_data:
        raise UserError(f"{trained.path}: {difference}; {how_to_fix('--shards DIR')}")
    return difference


def check_same_samples(data: DataModule, samples: SampleTable, trained: TrainedModel) -> None:
    """Raise `UserError` if the dataset's classes, training samples or labels differ from the run's."""
    shards = data.config.data.shards
    if data.classes != trained.classes:
        raise UserError(
            f"{shards}: has the classes {', '.join(data.classes)}, but {trained.path} was trained on "
            f"{', '.join(trained.classes)}; pass the run's dataset as --shards"
        )
    if not np.array_equal(sample_keys(data.train_split), samples.keys):
        raise UserError(f"{shards}: training samples differ from the run's; pass the run's dataset as --shards")
    if not np.array_equal(data.train_split.labels, samples.labels):
        raise UserError(
            f"{shards}: training labels differ from the run's; pass the run's dataset as --shards and restore the "
            "files of data.relabel_file and data.label_noise_file"
        )
