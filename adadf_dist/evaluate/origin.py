"""Check whether the evaluated samples are from the run's dataset and whether any were used for training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.checkpoint.trained_model import TrainedModel
from adadf_dist.console.logs import get_logger
from adadf_dist.data.dataset import Split
from adadf_dist.data.identity import (
    ALLOW_OTHER_DATA,
    ALLOW_TRAINING_SAMPLES,
    Source,
    count_shared,
    how_to_fix,
    key_digests,
    other_data,
)
from adadf_dist.errors import UserError
from adadf_dist.evaluate.cli import EvalArgs
from adadf_dist.tracking.artifacts import SAMPLES_FILE, load_samples

logger = get_logger(__name__)


class Found(NamedTuple):
    """The split to evaluate, and the dataset that contains it."""

    split: Split
    source: Source
    stored: str
    """Dataset split in which the samples are stored: `train` if the run held the evaluated split out of train."""


class Origin(NamedTuple):
    """Facts about the evaluated samples that the report warns about."""

    other_data: str
    """How the dataset differs from the run's; empty if it does not differ or the user explicitly chose another one."""
    training_samples: int
    """Number of evaluated samples that the model was trained on."""


def check_origin(trained: TrainedModel, found: Found, options: EvalArgs) -> Origin:
    """Raise `UserError` if the data is not the run's or contains training samples, unless the user allows this.

    A dataset passed as `--shards` may differ from the run's, and `--split train` may contain training samples.
    """
    recorded = None if trained.data is None else trained.data.source
    difference = other_data(recorded, found.source, [found.stored]) if recorded is not None else ""
    if difference and not options.shards_given and not options.allow_other_data:
        raise UserError(f"{trained.path}: {difference}; {how_to_fix('--shards DIR')}")
    digests = training_samples(trained)
    overlap = 0 if digests is None else count_shared(digests, found.split)
    is_own_data = not options.shards_given or not difference  # as far as known for runs of older versions
    if overlap and not options.allow_training_samples and not (found.split.name == "train" and is_own_data):
        raise UserError(
            f"{found.source.shards}: {overlap:,} of the {len(found.split):,} samples of split {found.split.name} are "
            f"training samples of {trained.path} (same keys); evaluate a split that was not used for training, or pass "
            f"{ALLOW_TRAINING_SAMPLES}"
        )
    if recorded is None and not options.shards_given:
        logger.warning(
            f"{trained.path}: written by an older version without data digests; cannot verify that "
            f"{found.source.shards} is unchanged"
        )
    elif digests is None and trained.epoch:
        logger.warning(
            f"{trained.path}: written by an older version; cannot check whether the split contains training samples"
        )
    return Origin("" if options.shards_given else difference, overlap)


def training_samples(trained: TrainedModel) -> NDArray[np.int64] | None:
    """Return digests of the training samples' keys, from the checkpoint or the run folder; None if unknown."""
    if trained.data is not None:
        return trained.data.samples
    folder = trained.path.parent.parent
    return key_digests(load_samples(folder).keys) if (folder / SAMPLES_FILE).is_file() else None


def describe_origin(origin: Origin, samples: int) -> list[str]:
    """Return warnings for the report, one per line; empty if there are none."""
    lines = []
    if origin.other_data:
        lines.append(f"warning: the run {origin.other_data} ({ALLOW_OTHER_DATA})")
    if origin.training_samples:
        lines.append(
            f"warning: {origin.training_samples:,} of these {samples:,} samples are training samples of the run"
        )
    return lines
