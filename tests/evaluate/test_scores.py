"""Scores, intervals, distances and subgroups against scikit-learn and naive recomputations."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from scipy.stats import entropy
from sklearn import metrics as sk

from adadf_dist.checkpoint.trained_model import TrainedPredictor, load_trained_model
from adadf_dist.data.dataset import Split, open_dataset
from adadf_dist.data.preprocessing import ten_crop
from adadf_dist.evaluate.annotators import compare_with_votes
from adadf_dist.evaluate.subgroups import read_groups
from adadf_dist.metrics.scores import bootstrap_means, calibrate, score
from adadf_dist.tracking.artifacts import load_predictions
from tests.helpers.evaluations import build_renamed, evaluate, refused


def decoded(split: Split, size: int) -> torch.Tensor:
    """[S, 3, size, size], the stored images normalized, using only Pillow and numpy."""
    pictures = []
    for sample in range(len(split)):
        picture = Image.open(io.BytesIO(bytes(split.read(sample)))).convert("RGB")
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.float64) / 255
        pictures.append((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()


def naive_scores(logits: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> dict[str, float]:
    p = softmax(logits.astype(np.float64), axis=1)
    guess = p.argmax(axis=1)
    total = 0.0
    for b in range(15):
        inside = [i for i in range(len(labels)) if b / 15 < p[i].max() <= (b + 1) / 15]
        if inside:
            right = sum(guess[i] == labels[i] for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(right - sum(p[i].max() for i in inside) / len(inside))
    present = np.unique(labels)
    return {
        "accuracy": sk.accuracy_score(labels, guess),
        "mean_class_accuracy": sk.recall_score(labels, guess, labels=present, average="macro", zero_division=0),
        "macro_f1": sk.f1_score(labels, guess, labels=present, average="macro", zero_division=0),
        "ece": total,
        "nll": sk.log_loss(labels, p, labels=range(classes)),
        "brier": sum(float(((p[i] - np.eye(classes)[labels[i]]) ** 2).sum()) for i in range(len(labels))) / len(labels),
    }


@pytest.mark.parametrize("missing", [False, True])
def test_scores_equal_scikit_learn_and_loops(missing: bool) -> None:
    random = np.random.default_rng(3)
    logits = (3 * random.normal(size=(200, 5))).astype(np.float32)
    labels = random.integers(0, 4 if missing else 5, 200)
    if missing:
        logits[:, 2] = -20  # a class that is never predicted, and one without samples
    scores = score(logits, labels, tuple("abcde"))
    naive = naive_scores(logits, labels, 5)
    assert scores.accuracy.value == pytest.approx(naive["accuracy"])
    assert scores.mean_class_accuracy.value == pytest.approx(naive["mean_class_accuracy"])
    assert scores.macro_f1.value == pytest.approx(naive["macro_f1"])
    for measured in scores[:3]:
        assert measured.interval.low < measured.value < measured.interval.high
    assert scores.calibration.ece == pytest.approx(naive["ece"])
    assert scores.calibration.nll == pytest.approx(naive["nll"], abs=1e-9)
    assert scores.calibration.brier == pytest.approx(naive["brier"])
    assert sum(bin.faces for bin in scores.calibration.bins) == 200
    for number, name in enumerate("abcde"):
        one = scores.classes[number]
        guessed = logits.argmax(axis=1) == number
        hits, own = int((guessed & (labels == number)).sum()), int((labels == number).sum())
        assert (one.name, one.faces, one.predicted) == (name, own, guessed.sum())
        assert one.recall == pytest.approx(hits / own if own else math.nan, nan_ok=True)
        assert one.precision == pytest.approx(hits / guessed.sum() if guessed.any() else math.nan, nan_ok=True)
    if missing:
        assert math.isnan(scores.classes[4].recall) and math.isnan(scores.classes[2].precision)


def test_full_confidence_falls_into_the_last_bin() -> None:
    calibration = calibrate(np.array([[800, 0], [0, 800], [0, 800]], dtype=np.float32), np.array([0, 1, 0]))
    assert [bin.faces for bin in calibration.bins] == [0] * 14 + [3]
    assert calibration.ece == pytest.approx(1 / 3)
    assert calibration.nll == pytest.approx(800 / 3)  # where a probability of zero would have made it infinite


def test_bootstrap_intervals_match_the_normal_distribution() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(2000, 2)) * [1, 10] + [0, 5]
    means = bootstrap_means(rows)
    assert means == bootstrap_means(rows)
    for column, mean in enumerate(means):
        half = 1.96 * rows[:, column].std() / math.sqrt(2000)
        assert mean.value == pytest.approx(rows[:, column].mean())
        assert mean.interval.low == pytest.approx(mean.value - half, abs=0.1 * half)
        assert mean.interval.high == pytest.approx(mean.value + half, abs=0.1 * half)


def test_mean_class_accuracy_interval() -> None:
    """Each class's recall is an independent binomial share, so the variance of the mean is known."""
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [1000, 400, 600])
    wrong = random.random(2000) < np.array([0.1, 0.5, 0.3])[labels]
    logits = np.eye(3, dtype=np.float32)[(labels + wrong) % 3]
    scores = score(logits, labels, ("a", "b", "c"))
    recalls = [1 - wrong[labels == c].mean() for c in range(3)]
    spread = math.sqrt(sum(r * (1 - r) / n for r, n in zip(recalls, (1000, 400, 600), strict=True))) / 3
    found = scores.mean_class_accuracy
    assert found.value == pytest.approx(np.mean(recalls))
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_tta_equals_images_flipped_and_cropped_by_hand(run: Path, faces: Path) -> None:
    split = open_dataset(faces).split("test")
    network = TrainedPredictor(load_trained_model(run), torch.device("cpu"))
    images = decoded(split, 32)
    flipped = torch.from_numpy(images.numpy()[:, :, :, ::-1].copy())
    large = decoded(split, 37)  # round(256 / 224 * 32)
    views = {
        "none": [images],
        "flip": [images, flipped],
        "tencrop": list(ten_crop(large, 32).unbind(1)),
    }
    labels = torch.from_numpy(split.labels)
    likelihoods = set()
    for name, pictures in views.items():
        logits = torch.stack([network.predict(view) for view in pictures]).double().mean(dim=0)
        report = evaluate(run, "--tta", name)
        assert report["asked"]["ten_crop"] == (37 if name == "tencrop" else 0)
        found = report["scores"]
        expected = torch.nn.functional.cross_entropy(logits, labels).item()
        assert found["calibration"]["nll"] == pytest.approx(expected, abs=1e-5), name
        assert found["accuracy"]["value"] == float((logits.argmax(dim=1) == labels).double().mean()), name
        likelihoods.add(round(expected, 6))
    assert len(likelihoods) == 3


def test_distances_by_hand(run: Path, faces: Path) -> None:
    """Some measures on some distributions, sample by sample."""
    found = evaluate(run)["distances"]["measures"]
    split = open_dataset(faces).split("test")
    answers = load_predictions(run, "test").answers
    trained = load_trained_model(run)
    assert split.votes is not None
    kl, smooth, common = [], [], []
    for face in range(len(split)):
        near = answers.attention[:15] if face < 15 else answers.attention[15:]  # batches of 16 make two of 15
        w = (answers.attention[face] - near.min()) / (near.max() - near.min()) * 0.8 + 0.2
        rows = trained.class_distributions.numpy()[split.labels[face]], softmax(answers.auxiliary_logits[face])
        votes = split.votes[face].astype(float) / split.votes[face].sum()
        kl.append(entropy(votes, trained.class_distributions.numpy()[split.labels[face]]))
        smoothed = [0.1 / 7 + 0.9 * (c == split.labels[face]) for c in range(7)]
        smooth.append(max(abs(votes - smoothed)))
        common.append(np.minimum(votes, w * rows[0] + (1 - w) * rows[1]).sum())
    assert found["fused"]["intersection"]["value"] == pytest.approx(np.mean(common), abs=1e-5)
    assert found["class distribution"]["kl"]["value"] == pytest.approx(np.mean(kl), abs=1e-9)
    assert found["label-smoothed"]["chebyshev"]["value"] == pytest.approx(np.mean(smooth), abs=1e-9)
    mine = [entropy(v / v.sum(), softmax(z)) for v, z in zip(split.votes, answers.auxiliary_logits, strict=True)]
    assert found["auxiliary"]["kl"]["value"] == pytest.approx(np.mean(mine), abs=1e-5)
    low, high = found["auxiliary"]["kl"]["interval"].values()
    assert low < found["auxiliary"]["kl"]["value"] < high


def test_subgroups_by_hand(run: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = build_renamed(tmp_path / "other", test=30, voted=False)
    found = evaluate(run, "--shards", other, "--group-by", "glasses", "--group-by", "side")
    assert "no annotator votes" in capsys.readouterr().out
    assert found["distances"] is None and found["bayes_accuracy"] is None
    split = open_dataset(faces).split("test")
    right = load_predictions(run, "test").answers.predicted_labels == split.labels
    numbers = [int(str(key).rpartition("-")[2]) for key in split.keys]
    for field, of in (("glasses", lambda n: str(n % 3 == 0)), ("side", lambda n: "left" if n % 2 else "not given")):
        output = {group["name"]: group for group in found["groups"][field]}
        base = 2 * 10**9  # where the indices of test samples start
        for name, group in output.items():
            members = [row for row, number in enumerate(numbers) if of(base + number) == name]
            assert group["faces"] == len(members)
            assert group["accuracy"]["value"] == np.mean(right[members])
        assert sum(group["faces"] for group in output.values()) == 30
    renamed = open_dataset(other).split("test")
    sides = ["left" if int(str(key).rpartition("-")[2]) % 2 else "not given" for key in renamed.keys]
    assert read_groups(renamed, ["side"]) == {"side": sides}
    line = refused(capsys, run, "--shards", other, "--group-by", "hat", "--group-by", "weight")
    assert "--group-by hat, weight: the KEY.json files of split test in " in line
    assert "contain no such field" in line
    assert "available: glasses, height, side, width" in line
    line = refused(capsys, run, "--shards", other, "--require-votes")
    assert "--require-votes: split test of " in line


def test_samples_without_votes_are_left_out_of_distances(run: Path, faces: Path) -> None:
    """Also: the row of D is the label's, which an asymmetric matrix shows."""
    split = open_dataset(faces).split("test")
    rows = np.random.default_rng(0).dirichlet(np.ones(7), size=7)
    trained = load_trained_model(run)._replace(class_distributions=torch.from_numpy(rows))
    answers = load_predictions(run, "test").answers
    voted = np.arange(30) % 3 == 1
    assert split.votes is not None
    found = compare_with_votes(trained, answers, replace(split, votes=split.votes * voted[:, None]))
    assert found is not None and found.faces == 10
    own = [entropy(split.votes[face], rows[split.labels[face]]) for face in np.flatnonzero(voted)]
    assert found.measures["class distribution"]["kl"].value == pytest.approx(np.mean(own), abs=1e-9)
    assert compare_with_votes(trained, answers, replace(split, votes=split.votes * 0)) is None
