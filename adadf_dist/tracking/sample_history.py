"""Record the training dynamics of each sample: attention weight, loss and correctness in every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adadf_dist.config.schema import RuntimeConfig
from adadf_dist.data.batch import Batch
from adadf_dist.data.dataset import Split
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import atomic_write, os_errors_as_user_errors
from adadf_dist.files.disk_space import retry_on_full_disk
from adadf_dist.method.class_distributions import EpochDistributions
from adadf_dist.method.losses import Losses
from adadf_dist.method.model import Output

ATTENTION, LOSS, CORRECT, SEEN = range(4)

TRACKED_SAMPLES_STREAM = 0x66616365
"""Number combined with the seed to give the selection of tracked samples its own random stream."""


class SampleHistory(NamedTuple):
    """Statistics of the S training samples over one epoch, in the order of the split."""

    attention: NDArray[np.float32]
    """[S], mean attention weight w' (eq 11); NaN for samples that were not drawn in the epoch."""
    loss: NDArray[np.float32]
    """[S], mean loss of the target branch; NaN for samples that were not drawn."""
    correct: NDArray[np.float32]
    """[S], how often the target branch was correct, as a fraction of `seen`; NaN for samples that were not drawn."""
    seen: NDArray[np.int64]
    """[S], number of times the sample was drawn in the epoch."""


class SampleHistoryRecorder:
    """Collects per-sample statistics on the device during an epoch and writes them to a file at the end."""

    def __init__(
        self, num_samples: int, num_classes: int, world: World, listed: Sequence[int] = (), digest: str = ""
    ) -> None:
        """Allocate the buffers on the device.

        Args:
            num_samples: Number of samples of the training split.
            num_classes: Number of classes.
            world: Ranks of the run.
            listed: Indices of the tracked samples, whose distributions are also recorded.
            digest: Digest of the training split, compared with the checkpoint's when resuming.
        """
        self.world = world
        self.digest = torch.tensor(list(digest.encode()), dtype=torch.uint8)
        self.tracked = list(listed)
        self._sums = torch.zeros(num_samples, 4, device=world.device)
        self._distributions = torch.zeros(len(self.tracked), 3, num_classes, device=world.device)
        self._row = torch.full((num_samples,), -1, dtype=torch.int64, device=world.device)
        self._row[torch.tensor(self.tracked, dtype=torch.int64)] = torch.arange(len(self.tracked), device=world.device)

    @torch.no_grad()
    def update(self, batch: Batch, output: Output, losses: Losses, fraction: float = 1.0) -> None:
        """Add this rank's batch, counting each row as `fraction` of a sample. Does not wait for the device."""
        correct = output.target_logits.argmax(dim=1) == batch.labels
        rows = fraction * torch.stack(
            [
                losses.attention_weights,
                losses.per_sample,
                correct.to(losses.per_sample.dtype),
                torch.ones_like(losses.per_sample),
            ],
            dim=1,
        )
        self._sums.index_add_(0, batch.sample_ids, rows.to(self._sums.dtype))
        if self.tracked:
            self._update_tracked(batch.sample_ids, output, losses, fraction)

    def _update_tracked(self, samples: Tensor, output: Output, losses: Losses, fraction: float) -> None:
        distributions = fraction * torch.stack(
            [
                output.auxiliary_logits.softmax(dim=1),
                losses.fused_distributions,
                output.target_logits.softmax(dim=1),
            ],
            dim=1,
        ).to(self._distributions.dtype)
        rows = self._row[samples]
        # untracked samples add zero to row 0; a boolean mask would make the host wait for its size
        weight = (rows >= 0).to(distributions.dtype).view(-1, 1, 1)
        self._distributions.index_add_(0, rows.clamp_min(0), distributions * weight)

    def finish_epoch(
        self, run_folder: str, epoch: int, commit: EpochDistributions, timeout_s: float = 0.0
    ) -> SampleHistory:
        """Sum the statistics over ranks, write `history/epoch-NNNN.npz` on rank 0, and reset the sums.

        Collective: every rank must call this. If the disk is full, writing is retried (see `retry_on_full_disk`).

        The file contains the sample history (float16), the class distributions of the epoch (eq 4 to 7) and three
        distributions of each of the L tracked samples [L, 3, C]: auxiliary, fused and target.
        """
        sums = self.world.all_reduce_sum_(self._sums.clone()).cpu().numpy()
        tracked = self.world.all_reduce_sum_(self._distributions.clone()).cpu().numpy()
        self._sums.zero_()
        self._distributions.zero_()
        seen = np.rint(sums[:, SEEN]).astype(np.int64)
        means = np.where(seen[:, None] > 0, sums / np.maximum(seen, 1)[:, None], np.nan).astype(np.float32)
        history = SampleHistory(means[:, ATTENTION], means[:, LOSS], means[:, CORRECT], seen)
        if self.world.is_main:
            path = Path(run_folder) / "history" / f"epoch-{epoch:04d}.npz"
            appearances = np.maximum(seen[self.tracked], 1).reshape(-1, 1, 1)
            arrays = {
                "attention": history.attention.astype(np.float16),
                "loss": history.loss.astype(np.float16),
                "correct": history.correct.astype(np.float16),
                "seen": seen.astype(np.uint16),
                "class_means": commit.means.numpy(),
                "class_counts": commit.counts.numpy(),
                "class_threshold_met": commit.threshold_met.numpy(),
                "class_distributions": commit.distributions.numpy(),
                "tracked_samples": np.array(self.tracked, dtype=np.int64),
                "tracked_distributions": tracked / appearances,
            }
            retry_on_full_disk(lambda: write_arrays(path, arrays), timeout_s, self.world.heartbeat.wait_for_disk)
        return history

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums of the current epoch over all ranks. Collective: every rank must call this."""
        return {
            "digest": self.digest,
            "sums": self.world.all_reduce_sum_(self._sums.clone()).cpu(),
            "distributions": self.world.all_reduce_sum_(self._distributions.clone()).cpu(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the accumulated sums on rank 0 only: the all-reduce adds the other ranks' zeros.

        Raises `UserError` if the training samples or labels changed.
        """
        if not torch.equal(state.get("digest", self.digest), self.digest):  # an older checkpoint has none
            raise UserError(
                "the training data has changed since this checkpoint (data.shards, data.relabel_file or "
                "data.label_noise_file); restore the original data, or start a new run with another --out"
            )
        for mine, saved in ((self._sums, state["sums"]), (self._distributions, state["distributions"])):
            if mine.shape != saved.shape:
                raise UserError(
                    f"the sample history has shape {list(saved.shape)} in the checkpoint but {list(mine.shape)} in "
                    "this run, so the training split or runtime.tracked_samples has changed; start a new run with "
                    "another --out"
                )
            mine.zero_()
            if self.world.is_main:
                mine.copy_(saved)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an NPZ file atomically. Raises `DiskFullError` if the disk is full, and `UserError` for other errors."""
    with os_errors_as_user_errors(path):
        path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def select_tracked_samples(split: Split, config: RuntimeConfig, seed: int) -> list[int]:
    """Return the indices of the tracked samples, whose distributions are recorded in every epoch.

    These are the samples named in `runtime.tracked_samples`, plus `runtime.num_tracked_samples` random samples. If the
    dataset has votes, half of the random samples are replaced by those with the most ambiguous votes. Raises
    `UserError` for an unknown sample key.
    """
    tracked = []
    if config.tracked_samples:
        indices = {str(key): index for index, key in enumerate(split.keys)}
        for key in config.tracked_samples:
            if key not in indices:
                raise UserError(f"runtime.tracked_samples: no training sample has the key {key}")
            tracked.append(indices[key])
    shuffled = np.random.default_rng((seed, TRACKED_SAMPLES_STREAM)).permutation(len(split)).tolist()
    ambiguous = [] if split.votes is None else most_ambiguous(split.votes, config.num_tracked_samples // 2)
    more = [index for index in dict.fromkeys([*ambiguous, *shuffled]) if index not in set(tracked)]
    return tracked + more[: config.num_tracked_samples]


def most_ambiguous(votes: NDArray[np.float32], most: int) -> list[int]:
    """Return the indices of the `most` samples whose votes [S, C] have the highest entropy; ties are in index order."""
    fractions = votes / np.maximum(votes.sum(axis=1, keepdims=True), 1)
    entropy = -(fractions * np.log(np.where(fractions > 0, fractions, 1))).sum(axis=1)
    return np.argsort(-entropy, kind="stable")[:most].tolist()  # type: ignore[no-any-return]
