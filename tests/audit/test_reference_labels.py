"""Labels of another dataset as the reference, matched by key and by image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adadf_dist.audit.run_data import AuditInputs
from adadf_dist.data.dataset import Split
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.errors import UserError
from benchmarks.reference_labels import labels_from_dataset


def renamed(inputs: AuditInputs) -> Split:
    """The same samples under new keys."""
    keys = [f"new-{key}" for key in inputs.split.keys]
    return replace(inputs.split, keys=np.array(keys, dtype=np.dtypes.StringDType()))


def test_reference_labels_match_by_key_and_by_image(inputs: AuditInputs, dataset: Path) -> None:
    noisy = inputs.faces.labels != inputs.faces.true_labels
    by_key = labels_from_dataset(inputs.split, dataset)
    assert by_key.labels.tolist() == inputs.faces.true_labels.tolist()
    assert f"{int(noisy.sum()):,} are labeled differently" in by_key.source
    checked = min(100, len(noisy))
    assert f"of {checked} matched by key, {checked} have an identical image" in by_key.source
    by_image = labels_from_dataset(renamed(inputs), dataset)
    assert by_image.labels.tolist() == by_key.labels.tolist()
    assert f"0 of {len(noisy):,} samples matched by key, {len(noisy):,} by image" in by_image.source


def test_reference_labels_accept_synonyms_and_unshared_classes(inputs: AuditInputs, dataset: Path) -> None:
    """The run lacks fear and names happy differently; the other folder has both."""
    classes = tuple({"happy": "Happiness", "fear": "boredom"}.get(name, name) for name in inputs.classes)
    other = labels_from_dataset(replace(inputs.split, classes=classes), dataset)
    fear = inputs.classes.index("fear")
    unknown = (inputs.labels == fear) | (inputs.faces.true_labels == fear)
    assert other.labels[~unknown].tolist() == inputs.faces.true_labels[~unknown].tolist()
    assert (other.labels[unknown] == -1).all()


def test_different_images_under_the_same_keys_are_detected(inputs: AuditInputs, tmp_path: Path) -> None:
    other = build_synthetic_dataset(tmp_path / "strange", {"train": 8}, size=32, seed=9)
    keys = other.split("train").keys
    counted = replace(inputs.split.subset(np.arange(8), "train"), keys=keys)
    assert "of 8 matched by key, 0 have an identical image" in labels_from_dataset(counted, other.folder).source


def test_folders_without_shared_samples_are_rejected(inputs: AuditInputs, tmp_path: Path) -> None:
    other = build_synthetic_dataset(tmp_path / "strange", {"train": 8}, size=32, seed=9).folder
    with pytest.raises(UserError, match="no sample has the same key or image"):
        labels_from_dataset(renamed(inputs), other)
    with pytest.raises(UserError, match=r"its classes .*neutral"):
        labels_from_dataset(replace(inputs.split, classes=tuple("ABCDEFG")), other)
