"""Predictions of a model for every sample of a split, gathered over ranks. Shared by evaluation, report and audit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adadf_dist.config.schema import LossConfig
from adadf_dist.data.batch import Batch
from adadf_dist.data.sampling import split_batches
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.method.losses import make_targets, normalize_attention
from adadf_dist.method.model import Output

FloatArray = NDArray[np.float32]


class InferenceModel(Protocol):
    """Model interface for predictions: both branches in evaluation mode, without collectives."""

    def forward_eval(self, images: Tensor) -> Output: ...


class Predictions(NamedTuple):
    """Predictions for the S samples of a split, in split order, on the host."""

    target_logits: FloatArray
    """[S, C], logits of the target branch; averaged over the crops if ten-crop is used."""
    auxiliary_logits: FloatArray
    """[S, C], logits of the auxiliary branch; the target logits in the baseline, which has no auxiliary branch."""
    attention: FloatArray
    """[S], mean attention of the two branches (eq 8), in (0, 1); 1 in the baseline."""

    @property
    def target_probs(self) -> NDArray[np.float64]:
        """[S, C], class probabilities predicted by the target branch."""
        return softmax(self.target_logits)

    @property
    def auxiliary_probs(self) -> NDArray[np.float64]:
        """[S, C], label distributions predicted by the auxiliary branch (eq 1, 2)."""
        return softmax(self.auxiliary_logits)

    @property
    def predicted_labels(self) -> NDArray[np.intp]:
        """[S], most likely class of each sample according to the target branch."""
        best: NDArray[np.intp] = self.target_logits.argmax(axis=1)
        return best


def predict_split(network: InferenceModel, batches: Iterable[Batch], samples: int, world: World) -> Predictions:
    """Predict with both branches. Each of the `samples` must occur exactly once in the `batches` of all ranks.

    Collective: every rank must call this.
    """
    return gather_answers(
        [both_branches(network.forward_eval(batch.flatten_crops().images), batch) for batch in batches], samples, world
    )


class Rows(NamedTuple):
    """Values of some samples, on one rank's device."""

    samples: Tensor
    """[n] int64, sample indices."""
    values: Tensor
    """[n, K] float32, K values per sample."""


def mean_rows(values: Tensor, batch: Batch) -> Rows:
    """Average the values [rows, K] of a batch over the crops of each sample."""
    return Rows(batch.sample_ids, values.float().view(len(batch.sample_ids), batch.num_crops, -1).mean(dim=1))


def both_branches(output: Output, batch: Batch) -> Rows:
    """Return target logits, auxiliary logits and attention of each sample, in rows of K = 2 C + 1 values."""
    attention = (output.auxiliary_attention + output.target_attention) / 2
    columns = [output.target_logits, output.auxiliary_logits, attention.unsqueeze(1)]
    return mean_rows(torch.cat(columns, dim=1), batch)


def gather_answers(found: Sequence[Rows], samples: int, world: World) -> Predictions:
    """Gather the rows that `both_branches` returned on all ranks. Collective: every rank must call this."""
    rows = gather_outputs(found, samples, world)
    classes = rows.shape[1] // 2
    return Predictions(rows[:, :classes], rows[:, classes:-1], rows[:, -1])


def check_finite(predictions: Predictions, source: object) -> None:
    """Raise `UserError` if any prediction is not finite, because its argmax would be meaningless."""
    finite = np.isfinite(np.column_stack(predictions))
    bad = np.flatnonzero(~finite.all(axis=1))
    if len(bad):
        raise UserError(
            f"{source}: non-finite outputs for {len(bad):,} of {len(finite):,} samples; training diverged: use an "
            "earlier checkpoint, or train again with a lower optimizer.lr"
        )


def gather_outputs(
    found: Sequence[Rows], samples: int, world: World, only: NDArray[np.int64] | None = None
) -> FloatArray:
    """Gather the rows of all ranks into [samples, K] on every rank. Collective: every rank must call this.

    `only`: indices of the expected samples; None for the entire split. Raises `RuntimeError` unless each occurs once.
    """
    expected = np.arange(samples) if only is None else only
    rows_of = torch.full((samples,), -1, dtype=torch.int64, device=world.device)
    rows_of[torch.from_numpy(expected).to(world.device)] = torch.arange(len(expected), device=world.device)
    width = max(world.all_gather_object(found[0].values.shape[1] if found else 0))
    sums = torch.zeros(len(expected), width + 1, device=world.device)  # the last column counts
    for indices, values in found:
        sums.index_add_(0, rows_of[indices], torch.cat([values, values.new_ones(len(values), 1)], dim=1))
    gathered = world.all_reduce_sum_(sums).cpu().numpy()
    if not (gathered[:, -1] == 1).all():
        raise RuntimeError(f"{int((gathered[:, -1] != 1).sum())} of {len(expected)} samples were not seen exactly once")
    return np.ascontiguousarray(gathered[:, :-1])


def fuse_distributions(
    predictions: Predictions, labels: NDArray[np.int64], class_distributions: Tensor, loss: LossConfig, batch_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the training targets of the target branch for these samples, by applying eq 11 and 12 after training.

    Eq 11 scales attention by the extremes of a batch. Here a batch is `batch_size` consecutive samples of the split,
    which was shuffled when written. `loss.supervision` applies as in training: w' has no effect for `label` and
    `class`, and is 1 in the baseline, whose targets are the labels (also of one trained on votes).
    Averages over epochs (`class_distributions.sample_momentum`) are not known here, so eq 12 uses label distributions.

    Returns:
        w' [S] and the fused distributions [S, C].
    """
    if loss.is_baseline:  # trained on the label itself, or the votes
        return np.ones(len(labels)), np.eye(predictions.target_logits.shape[1])[labels]
    attention = torch.from_numpy(predictions.attention).double()
    batches = split_batches(np.arange(len(labels)), batch_size)
    parts = [attention[torch.from_numpy(batch)] for batch in batches]
    weights = torch.cat([normalize_attention(part, part, loss.lambda_min) for part in parts])
    rows = torch.from_numpy(labels)
    auxiliary_probs = torch.from_numpy(predictions.auxiliary_probs)
    fused = make_targets(auxiliary_probs, class_distributions[rows], weights, rows, loss)
    return weights.numpy(), fused.numpy()


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the softmax [S, C] of each row of logits."""
    return torch.from_numpy(logits).double().softmax(dim=1).numpy()
