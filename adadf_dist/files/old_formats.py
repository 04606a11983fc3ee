"""File and field names of version 0.1, which readers still accept for one more release."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

OLD_FILES = {
    "samples.npz": "faces.npz",
    "run_info.json": "run.json",
    "label_noise.csv": "noise.csv",
    "predictions-train.npz": "answers-train.npz",
    "predictions-validation.npz": "answers-validation.npz",
    "predictions-test.npz": "answers-test.npz",
}
"""Mapping from current names of files in a run folder to their old names."""

RENAMED_FIELDS = {
    # metrics.jsonl, and the epoch records in checkpoints
    "waiting": "data_wait_fraction",
    "class_degrees": "class_mean_target_prob",
    "replaced_faces": "num_replaced_samples",
    "deviation": "std",
    # result.json
    "ceiling": "bayes_accuracy",
    "vote_divergence": "votes_kl",
    "last_test": "final_epoch_test",
    # history/epoch-NNNN.npz
    "listed": "tracked_samples",
    "listed_distributions": "tracked_distributions",
    # dataset.json
    "built": "provenance",
    "findings": "stats",
    "twins": "duplicates",
    "remarks": "notes",
    "quarantined": "skipped_images",
    "pictures": "images",
    "relabelled": "relabeled",
    # trial.json
    "end": "status",
}
"""Mapping from old field names to current names."""


def find_file(folder: Path, name: str) -> Path:
    """Return the path of a file in a run folder; if only its old name exists, return that path."""
    path = folder / name
    old = folder / OLD_FILES.get(name, name)
    return old if old.exists() and not path.exists() else path


def upgrade_fields(value: T) -> T:
    """Return JSON-like data with old field names replaced at every nesting level."""
    if isinstance(value, dict):
        return {RENAMED_FIELDS.get(key, key): upgrade_fields(item) for key, item in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [upgrade_fields(item) for item in value]  # type: ignore[return-value]
    return value
