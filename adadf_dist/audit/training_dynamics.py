"""Training dynamics of each training sample over the epochs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.errors import UserError
from adadf_dist.tracking.artifacts import load_npz

Floats = NDArray[np.float64]

NAME = re.compile(r"epoch-(\d{4,})\.npz")


class TrainingDynamics(NamedTuple):
    """Training dynamics of S samples over E epochs. Values of a sample that was never drawn are NaN, 0 or False."""

    epochs: int
    attention_mean: Floats
    """[S], mean attention weight w' (eq 11) over the epochs in which the sample was drawn."""
    attention_last: Floats
    """[S], attention weight w' in the last epoch in which the sample was drawn."""
    loss_mean: Floats
    """[S], mean loss of the target branch (eq 13) over the epochs in which the sample was drawn."""
    loss_last: Floats
    """[S], loss of the target branch in the last epoch in which the sample was drawn."""
    forgetting_events: NDArray[np.int64]
    """[S], number of times the prediction went from correct to incorrect (Toneva et al., 2019)."""
    never_learned: NDArray[np.bool_]
    """[S], whether the sample was drawn in training but never predicted correctly."""
    wrong: Floats
    """[S], fraction of incorrect predictions among the epochs in which the sample was drawn."""


def load_training_dynamics(run: Path, samples: int) -> TrainingDynamics:
    """Load and summarize a run's `history/epoch-NNNN.npz` files. Raises `UserError` if one is missing."""
    files = {
        int(found[1]): file for file in (run / "history").glob("epoch-*.npz") if (found := NAME.fullmatch(file.name))
    }
    if not files:
        raise UserError(f"{run}: history/epoch-0001.npz not found; wait until the run has finished its first epoch")
    if missing := set(range(1, max(files) + 1)) - files.keys():
        raise UserError(f"{run}: history/epoch-{min(missing):04d}.npz is missing; re-copy the run folder")
    epochs: dict[str, list[Floats]] = {"attention": [], "loss": [], "correct": []}
    for _, file in sorted(files.items()):
        arrays = load_npz(file)
        for name, rows in epochs.items():
            if name not in arrays or arrays[name].shape != (samples,):
                raise UserError(
                    f"{file}: does not match the run's {samples:,} training samples; re-copy the run folder"
                )
            rows.append(arrays[name].astype(np.float64))
    return summarize(*(np.stack(rows) for rows in epochs.values()))


def summarize(attention: Floats, loss: Floats, correct: Floats) -> TrainingDynamics:
    """Summarize arrays [E, S], which are NaN where a sample was not drawn in an epoch.

    A sample with several crops or augmentations in an epoch counts as correct if most of its predictions are.
    """
    sampled = ~np.isnan(correct)
    is_correct = sampled & (np.nan_to_num(correct) > 0.5)
    times = sampled.sum(axis=0)
    never_learned = (times > 0) & ~is_correct.any(axis=0)
    wrong = (sampled & ~is_correct).sum(axis=0) / np.where(times > 0, times, np.nan)
    return TrainingDynamics(
        epochs=len(correct),
        attention_mean=mean_of_sampled(attention, times),
        attention_last=last_sampled(attention, sampled),
        loss_mean=mean_of_sampled(loss, times),
        loss_last=last_sampled(loss, sampled),
        forgetting_events=count_forgetting(is_correct, sampled),
        never_learned=never_learned,
        wrong=wrong,
    )


def count_forgetting(is_correct: NDArray[np.bool_], sampled: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how often each sample, [S], went from correct to incorrect, skipping epochs in which it was not drawn."""
    forgetting_events = np.zeros(is_correct.shape[1], dtype=np.int64)
    was_correct = np.zeros(is_correct.shape[1], dtype=bool)
    for now, in_epoch in zip(is_correct, sampled, strict=True):
        forgetting_events += was_correct & in_epoch & ~now
        was_correct = np.where(in_epoch, now, was_correct)
    return forgetting_events


def mean_of_sampled(values: Floats, times: NDArray[np.int64]) -> Floats:
    """Return each sample's mean over the epochs in which it was drawn, [S]; NaN if there are none."""
    means: Floats = np.nansum(values, axis=0) / np.where(times > 0, times, np.nan)
    return means


def last_sampled(values: Floats, sampled: NDArray[np.bool_]) -> Floats:
    """Return each sample's value in the last epoch in which it was drawn, [S]."""
    last = len(sampled) - 1 - sampled[::-1].argmax(axis=0)
    found: Floats = np.take_along_axis(values, last[None], axis=0)[0]
    return found
