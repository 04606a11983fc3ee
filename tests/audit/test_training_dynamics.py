"""Training dynamics: forgetting, means and last epochs of each sample."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from adadf_dist.audit.run_data import AuditInputs
from adadf_dist.audit.training_dynamics import summarize
from benchmarks.audit_scores import forgetting

NAN = float("nan")


def test_forgetting_and_means_match_a_handmade_history() -> None:
    correct = np.array(
        # learned, forgotten twice, never learned, not seen in epoch 2, half correct, never seen
        [
            [0.0, 1.0, 0.0, 1.0, 0.5, NAN],
            [1.0, 0.0, 0.0, NAN, 1.0, NAN],
            [1.0, 1.0, 0.0, 0.0, 0.5, NAN],
            [1.0, 0.0, 0.0, 1.0, 0.6, NAN],
        ]
    )
    attention = np.where(np.isnan(correct), NAN, [[0.1], [0.2], [0.3], [0.6]])
    traces = summarize(attention, 10 * attention, correct)
    assert traces.forgetting_events.tolist() == [0, 2, 0, 1, 1, 0]
    assert traces.never_learned.tolist() == [False, False, True, False, False, False]
    assert traces.wrong[:5].tolist() == pytest.approx([1 / 4, 2 / 4, 1, 1 / 3, 2 / 4])
    assert traces.attention_mean[:4].tolist() == pytest.approx([0.3, 0.3, 0.3, 1 / 3])
    assert traces.loss_last[:5].tolist() == pytest.approx([6.0] * 5)
    assert np.isnan([traces.wrong[5], traces.attention_mean[5], traces.loss_last[5]]).all()
    assert forgetting(traces).argsort()[::-1][:2].tolist() == [2, 1]


def test_last_epoch_is_the_last_that_contained_the_sample() -> None:
    seen_first = np.array([[0.5], [NAN]])
    assert summarize(seen_first, seen_first, seen_first).attention_last.tolist() == [0.5]


def test_training_dynamics_equal_the_files(run: Path, inputs: AuditInputs) -> None:
    epochs = [np.load(file) for file in sorted((run / "history").glob("epoch-*.npz"))]
    assert inputs.traces.epochs == len(epochs) == 3
    for sample in (0, 11, 200):
        right = [bool(epoch["correct"][sample] > 0.5) for epoch in epochs]
        assert inputs.traces.forgetting_events[sample] == sum(a and not b for a, b in pairwise(right))
        assert inputs.traces.never_learned[sample] == (not any(right))
        losses = [float(epoch["loss"][sample]) for epoch in epochs]
        assert inputs.traces.loss_mean[sample] == pytest.approx(sum(losses) / 3)
        assert inputs.traces.loss_last[sample] == pytest.approx(losses[-1])
