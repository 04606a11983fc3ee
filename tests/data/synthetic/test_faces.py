"""Synthetic faces: reproducible, with calibrated votes, learnable, and without shortcuts to the label."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from adadf_dist.data.synthetic.faces import (
    ACTION_UNITS,
    APPEARANCE,
    CONFUSIONS,
    EMOTIONS,
    PROTOTYPES,
    Face,
    bayes_accuracy,
    contact_sheet,
    main,
    perceived_distribution,
    render_sample,
)
from adadf_dist.data.synthetic.renderer import FaceRenderer
from adadf_dist.errors import UserError

TRAINING, HELD_OUT = 2000, 500
SIGNIFICANT = 1e-3
"""Chance of a false alarm over all the tests of a family together. The seeds are fixed, so it is taken once."""


@pytest.fixture(scope="module")
def clear() -> list[Face]:
    return [render_sample(1, index, size=48, ambiguity=0.0) for index in range(TRAINING + HELD_OUT)]


@pytest.fixture(scope="module")
def mixed() -> list[Face]:
    """Samples as users get them, only smaller."""
    return [render_sample(2, index, size=16) for index in range(1500)]


def fingerprint(face: Face) -> str:
    parts = [face.image, face.label, face.votes, face.distribution, face.units, list(face.nuisance.values())]
    return hashlib.sha256(b"".join(np.asarray(part).tobytes() for part in parts)).hexdigest()


def test_face_depends_only_on_seed_and_index() -> None:
    forth = {index: fingerprint(render_sample(3, index)) for index in range(12)}
    back = {index: fingerprint(render_sample(3, index)) for index in reversed(range(12))}
    assert forth == back
    assert len({*forth.values(), *(fingerprint(render_sample(4, index)) for index in range(12))}) == 24


def test_another_process_renders_the_same_face() -> None:
    code = (
        "import hashlib; from adadf_dist.data.synthetic.faces import render_sample; face = render_sample(2**40, 7)\n"
        "print(hashlib.sha256(face.image.tobytes() + face.votes.tobytes()).hexdigest())"
    )
    root, settings = Path(__file__).parents[3], {**os.environ, "PYTHONHASHSEED": "1"}  # different from this process's
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=settings, capture_output=True, timeout=120)
    here = render_sample(2**40, 7)
    assert done.stdout.decode().strip() == hashlib.sha256(here.image.tobytes() + here.votes.tobytes()).hexdigest()


@pytest.mark.parametrize("size", [16, 49, 128])
def test_size_changes_only_the_image(size: int) -> None:
    for index in range(4):
        face, other = render_sample(5, index), render_sample(5, index, size)
        assert other.image.shape == (size, size, 3)
        assert other.image.dtype == np.uint8
        assert (other.label, other.nuisance) == (face.label, face.nuisance)
        np.testing.assert_array_equal(other.votes, face.votes)
        np.testing.assert_array_equal(other.units, face.units)
        thumbnails = [
            np.asarray(Image.fromarray(one.image).resize((16, 16), Image.Resampling.BOX)) for one in (face, other)
        ]
        assert np.abs(thumbnails[0].astype(float) - thumbnails[1]).mean() < 12  # of 255: the same portrait


def test_votes_and_labels_agree(mixed: list[Face]) -> None:
    for face in mixed:
        assert face.votes.shape == face.distribution.shape == (7,)
        assert face.votes.sum() == 10
        assert face.votes.min() >= 0
        assert face.votes[face.label] == face.votes.max()
        assert face.distribution.sum() == pytest.approx(1, abs=1e-12)
        assert face.distribution.min() >= 0
        assert 0 <= face.units.min() <= face.units.max() <= 1


def test_ties_favor_no_class() -> None:
    tied = [face for face in (render_sample(6, index, 16, ambiguity=1.0) for index in range(700)) if is_tied(face)]
    lowest = sum(face.label == int(face.votes.argmax()) for face in tied)
    assert len(tied) > 50
    assert abs(lowest - len(tied) / 2) < 3.5 * np.sqrt(len(tied) / 4)  # ties of three are rare


def is_tied(face: Face) -> bool:
    return int((face.votes == face.votes.max()).sum()) > 1


def test_classes_are_balanced(mixed: list[Face], clear: list[Face]) -> None:
    counts = np.bincount([face.label for face in mixed + clear], minlength=7)
    even = counts.sum() / 7
    assert chi_squared_tail(float(((counts - even) ** 2 / even).sum()), 6) > SIGNIFICANT


def full(name: str, intensity: float = 1.0) -> NDArray[np.float64]:
    return intensity * np.array([float(unit in PROTOTYPES[name]) for unit in ACTION_UNITS])


def row(name: str) -> NDArray[np.float64]:
    """Vote shares of an unambiguous expression, from the table."""
    wrong = np.array([CONFUSIONS[name].get(other, 0.0) for other in EMOTIONS])
    wrong[EMOTIONS.index(name)] = 1 - wrong.sum()
    return wrong


def test_unambiguous_expression_is_voted_as_tabulated() -> None:
    for name in EMOTIONS:
        np.testing.assert_allclose(perceived_distribution(full(name)), row(name), atol=1e-12)


def test_blend_is_voted_by_its_weight() -> None:
    for one, other in itertools.permutations(EMOTIONS[1:], 2):
        seen = perceived_distribution(full(one, 0.7) + full(other, 0.3))
        np.testing.assert_allclose(seen, 0.7 * row(one) + 0.3 * row(other), atol=1e-12)


def test_weaker_expression_is_voted_more_neutral() -> None:
    for name in EMOTIONS[1:]:
        neutral = [perceived_distribution(full(name, intensity))[0] for intensity in np.linspace(0.8, 0.1, 8)]
        assert all(before < after for before, after in itertools.pairwise(neutral))
        assert neutral[0] < 0.1
        assert neutral[-1] > 0.9


def calibration_tails(votes: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two-sided probability of vote counts this far from the stated shares, in each cell: 7 classes by 4 levels."""
    tails = []
    for emotion in range(7):
        share = shares[:, emotion]
        for low, high in itertools.pairwise((0.0, 0.05, 0.3, 0.6, 1.01)):
            cell = (share >= low) & (share < high)
            spread = np.sqrt((10 * share[cell] * (1 - share[cell])).sum())
            z = (votes[cell, emotion].sum() - 10 * share[cell].sum()) / max(spread, 1e-9)
            tails.append(chi_squared_tail(float(z**2), 1))
    return np.array(tails)


def test_votes_follow_the_distribution(mixed: list[Face], clear: list[Face]) -> None:
    faces = mixed + clear
    votes, shares = np.stack([face.votes for face in faces]), np.stack([face.distribution for face in faces])
    assert calibration_tails(votes, shares).min() > SIGNIFICANT / 28
    off = 0.95 * shares + 0.05 / 7  # five percent of the annotators guess: the same check must detect it
    assert calibration_tails(votes, off).min() < SIGNIFICANT / 28


def test_bayes_accuracy_counts_the_argmax() -> None:
    assert bayes_accuracy([[0.6, 0.4], [0.1, 0.9], [0.7, 0.3], [0.2, 0.8]], [0, 1, 1, 1]) == 0.75


def test_ceiling_equals_the_default(mixed: list[Face], clear: list[Face]) -> None:
    assert 0.85 < bayes_accuracy([face.distribution for face in mixed], [face.label for face in mixed]) < 0.93
    assert bayes_accuracy([face.distribution for face in clear], [face.label for face in clear]) > 0.99


def chi_squared_tail(statistic: float, freedom: int) -> float:
    return float(torch.special.gammaincc(torch.tensor(freedom / 2.0).double(), torch.tensor(statistic / 2.0).double()))


def independence_tail(values: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The chance of as much association by luck, the smaller of two tests (so doubled): Pearson's of the value cut at
    its quintiles against the label, for any dependence, and Kruskal and Wallis's of ranks, keen on shifts."""
    bins = np.searchsorted(np.quantile(values, [0.2, 0.4, 0.6, 0.8]), values)
    table = np.zeros((5, 7))
    np.add.at(table, (bins, labels), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    pearson = float(((table - expected) ** 2 / expected).sum())
    ranks = values.argsort().argsort() + 1
    sizes, sums = np.bincount(labels, minlength=7), np.bincount(labels, ranks, 7)
    n = len(values)
    kruskal = float(12 / (n * (n + 1)) * (sums**2 / sizes).sum() - 3 * (n + 1))
    return 2 * min(chi_squared_tail(pearson, 4 * 6), chi_squared_tail(kruskal, 6))


def test_no_nuisance_factor_predicts_the_label(mixed: list[Face], clear: list[Face]) -> None:
    faces = mixed + clear
    labels = np.array([face.label for face in faces])
    columns = {name: np.array([face.nuisance[name] for face in faces]) for name in APPEARANCE}
    for place in (0, -1):  # the rendered pixels, not only the metadata: the upper corners of the image
        columns[f"corner {place}"] = np.array([float(face.image[0, place].sum()) for face in faces])
    bound = SIGNIFICANT / len(columns)
    tails = {name: independence_tail(values, labels) for name, values in columns.items()}
    assert {name: tail for name, tail in tails.items() if tail < bound} == {}

    angry = labels == EMOTIONS.index("anger")
    for name, (low, high) in APPEARANCE.items():  # injected into one emotion of seven: a shift, and a narrower spread
        middle = (low + high) / 2
        shifted = columns[name] + 0.15 * (high - low) * angry
        narrow = np.where(angry, middle + 0.6 * (columns[name] - middle), columns[name])
        assert independence_tail(shifted, labels) < bound, f"a shift planted in {name} goes unseen"
        assert independence_tail(narrow, labels) < bound, f"a spread planted in {name} goes unseen"


def test_each_action_unit_changes_only_its_region() -> None:
    """Otherwise no observer could read the true distribution off the image."""
    for index in range(20):
        look = render_sample(7, index, size=16).nuisance
        rest = dict.fromkeys(ACTION_UNITS, 0.0)
        calm = FaceRenderer(rest, look, 64).image
        for unit in ACTION_UNITS:
            change = np.abs(FaceRenderer({**rest, unit: 1.0}, look, 64).image - calm).max(axis=0)
            assert (change > 0.06).sum() >= 10, f"action unit {unit} is all but invisible on face {index}"
            assert max(change[:4, :4].max(), change[:4, -4:].max()) == 0, f"action unit {unit} changes the backdrop"


def test_nuisance_factors_together_do_not_predict_the_label(mixed: list[Face], clear: list[Face]) -> None:
    """A linear classifier on all of them is at chance on held-out samples, and well above it where one is injected."""
    faces = mixed + clear
    labels = torch.tensor([face.label for face in faces])
    values = torch.tensor([list(face.nuisance.values()) for face in faces])
    values = (values - values.mean(0)) / values.std(0)
    planted = values.clone()
    planted[:, 5] += 1.5 * (labels == 2)
    commonest = labels.bincount().max().item() / len(labels)
    bound = commonest + 3.5 * (commonest * (1 - commonest) / 2000) ** 0.5
    assert linear_accuracy(values, labels) < bound < linear_accuracy(planted, labels)


def linear_accuracy(values: torch.Tensor, labels: torch.Tensor) -> float:
    """Ridge regression to one-hot labels, fitted on all but the first 2,000 rows and evaluated on those."""
    inputs = torch.cat([values, torch.ones(len(values), 1)], dim=1).double()
    targets = nn.functional.one_hot(labels, 7).double()
    train = inputs[2000:]
    solution = torch.linalg.solve(train.T @ train + torch.eye(train.shape[1]), train.T @ targets[2000:])
    return float(((inputs[:2000] @ solution).argmax(1) == labels[:2000]).double().mean())


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_small_network_learns_clear_faces(clear: list[Face]) -> None:
    """At least 90 % on held-out samples despite pose, light, skin and glasses; chance is 14 %."""
    images = torch.tensor(np.stack([face.image for face in clear])).permute(0, 3, 1, 2).float() / 255 - 0.5
    labels = torch.tensor([face.label for face in clear])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = train(small_network(), images[:TRAINING], labels[:TRAINING], epochs=8)
    with torch.no_grad():
        right = (network.eval()(images[TRAINING:]).argmax(1) == labels[TRAINING:]).double().mean().item()
    print(f"held-out accuracy on clear faces: {right:.3f}")
    assert right > 0.9


def small_network() -> nn.Sequential:
    def block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    parts = [*block(3, 12, 2), *block(12, 24), nn.MaxPool2d(2), *block(24, 64), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 6 * 6, 7))


def train(network: nn.Sequential, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Sequential:
    network.to(memory_format=torch.channels_last)
    batches = len(images) // 50
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).view(batches, -1):
            batch = images[rows].flip(3) if torch.rand(()) < 0.5 else images[rows]
            logits = network(batch.contiguous(memory_format=torch.channels_last))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return network


@pytest.mark.parametrize(
    ("seed", "index", "size", "ambiguity", "named"),
    [(0, 0, 8, 0.3, "size"), (0, 0, 2000, 0.3, "size"), (0, 0, 64, 1.5, "ambiguity"), (0, -1, 64, 0.3, "negative")],
)
def test_invalid_arguments_are_named(seed: int, index: int, size: int, ambiguity: float, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        render_sample(seed, index, size, ambiguity)
    assert "\n" not in str(caught.value)


def test_contact_sheet_has_a_row_for_each_emotion(tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "sheet.png"), "--image-size", "16", "--seed", "9"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    np.testing.assert_array_equal(pixels, np.asarray(contact_sheet(9, 16)))
    faces = [render_sample(9, index, 16, ambiguity=0.0) for index in range(60)]
    for number in range(len(EMOTIONS)):
        first = next(face for face in faces if face.distribution.argmax() == number)
        np.testing.assert_array_equal(pixels[20 * number : 20 * number + 16, 60:76], first.image)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--out", "sheet.nope"], "sheet.nope"), (["--out", "file/sheet.png", "--image-size", "16"], "file")],
)
def test_bad_contact_sheet_is_one_line(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert named in said
