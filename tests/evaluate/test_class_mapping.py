"""Evaluation with other classes: another order, merged and dropped ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from adadf_dist.data.dataset import open_dataset
from adadf_dist.evaluate.class_mapping import map_labels
from adadf_dist.tracking.artifacts import load_predictions
from tests.helpers.evaluations import build_renamed, evaluate


def test_class_order_does_not_matter(run: Path, faces: Path, tmp_path: Path) -> None:
    other = build_renamed(tmp_path / "other", test=30)
    assert open_dataset(other).classes != open_dataset(faces).classes
    own, found = evaluate(run), evaluate(run, "--shards", other)
    assert found["asked"]["dataset"] == str(other)
    assert found["scores"]["confusion"] == own["scores"]["confusion"]
    for measure, mean in own["distances"]["measures"]["auxiliary"].items():
        theirs = found["distances"]["measures"]["auxiliary"][measure]["value"]
        assert theirs == pytest.approx(mean["value"], abs=1e-5), measure


def test_mapping_merges_and_drops_classes(run: Path, faces: Path, tmp_path: Path) -> None:
    names = ["plain", "glad", "gloomy", "startled", "afraid", "disgusted", "cross"]
    to = ["neutral", "happy", "sad", "", "sad", "disgust", "anger"]
    other = build_renamed(tmp_path / "other", test=30, names=names)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text("".join(f'"{name}" = "{ours}"\n' for name, ours in zip(names, to, strict=True)))
    found = evaluate(run, "--shards", other, "--class-mapping", mapping)
    split, classes = open_dataset(faces).split("test"), list(open_dataset(faces).classes)
    recorded = load_predictions(run, "test")
    wanted = [to[label] for label in split.labels.tolist()]
    kept = [i for i, name in enumerate(wanted) if name]
    right = [classes[recorded.answers.predicted_labels[i]] == wanted[i] for i in kept]
    assert found["asked"]["left_out"] == 30 - len(kept) > 0
    assert found["scores"]["accuracy"]["value"] == sum(right) / len(right)
    assert [row["faces"] for row in found["scores"]["classes"]] == [sum(wanted[i] == c for i in kept) for c in classes]


def test_votes_of_merged_classes_add_up(faces: Path) -> None:
    split = open_dataset(faces).split("test")
    ours = ("bad", "good")
    mapping = dict.fromkeys(split.classes, "bad") | {"happy": "good", "neutral": ""}
    joined = map_labels(split, mapping, ours)
    kept = [i for i in range(len(split)) if split.classes[split.labels[i]] != "neutral"]
    assert joined.keys.tolist() == split.keys[kept].tolist()
    assert joined.distributions is None
    assert split.votes is not None and joined.votes is not None
    for row, face in enumerate(kept):
        assert joined.labels[row] == (split.classes[split.labels[face]] == "happy")
        votes = dict(zip(split.classes, split.votes[face].tolist(), strict=True))
        assert joined.votes[row].tolist() == [sum(votes.values()) - votes["happy"] - votes["neutral"], votes["happy"]]
        assert bytes(joined.read(row)) == bytes(split.read(face))
