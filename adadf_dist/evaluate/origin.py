"""Where the evaluated samples come from: is it the run's own dataset, and was the network trained on them?"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.checkpoint.trained_model import TrainedModel
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


class Found(NamedTuple):
    """A split, opened."""

    split: Split
    source: Source
    stored: str
    """The dataset's split that holds it: train, where the run held it out of train."""


class Origin(NamedTuple):
    """What a reader of the result must know of its samples."""

    other_data: str
    """How the dataset differs from the one that the run was trained on, where the user did not name it; or empty."""
    training_samples: int
    """Evaluated samples that the network was trained on."""


def check_origin(trained: TrainedModel, found: Found, options: EvalArgs) -> Origin:
    """Raises `UserError` for other data than the run's, and for its training samples, unless the user allows them.

    The dataset that `--data.shards` names may be another one, and `--split train` asks for training samples.
    """
    recorded = None if trained.data is None else trained.data.source
    difference = other_data(recorded, found.source, [found.stored]) if recorded is not None else ""
    if difference and not options.shards_given and not options.allow_other_data:
        raise UserError(f"{trained.path}: {difference}; {how_to_fix()}")
    known = training_samples(trained)
    shared = 0 if known is None else count_shared(known, found.split)
    own = not options.shards_given or not difference  # as far as is known, of an older version
    if shared and not options.allow_training_samples and not (found.split.name == "train" and own):
        raise UserError(
            f"{found.source.shards}: {shared:,} of the {len(found.split):,} samples of split {found.split.name} are "
            f"training samples of {trained.path} (they have the same keys), so accuracy on them says little; evaluate "
            f"a split that the run has not seen, or add {ALLOW_TRAINING_SAMPLES}"
        )
    if recorded is None and not options.shards_given:
        warn(
            f"{trained.path}: written by an older version, which recorded no digest of its data: is "
            f"{found.source.shards} the same?"
        )
    elif known is None and trained.epoch:
        warn(f"{trained.path}: written by an older version: whether it was trained on these samples is not known")
    return Origin("" if options.shards_given else difference, shared)


def training_samples(trained: TrainedModel) -> NDArray[np.int64] | None:
    """Digests of the training samples' keys; of an older run from its folder. None where they are not known."""
    if trained.data is not None:
        return trained.data.samples
    folder = trained.path.parent.parent
    return key_digests(load_samples(folder).keys) if (folder / SAMPLES_FILE).is_file() else None


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def describe_origin(origin: Origin, samples: int) -> list[str]:
    """Lines of the report; none where all is as it should be."""
    lines = []
    if origin.other_data:
        lines.append(f"warning: the run {origin.other_data} ({ALLOW_OTHER_DATA})")
    if origin.training_samples:
        lines.append(
            f"warning: {origin.training_samples:,} of these {samples:,} samples are training samples of the run"
        )
    return lines
