"""Label noise: its amount, its targets, and the record of true labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from adadf_dist import train
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import DataConfig
from adadf_dist.data.datamodule import open_data
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.label_noise import LabelNoise, apply_label_noise, read_noise, symmetric_noise
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.errors import UserError
from adadf_dist.training.final_test import Result
from tests.helpers.runs import settings

CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger")


def test_symmetric_noise_is_exact_uniform_and_seeded() -> None:
    true = np.repeat(np.arange(7), 3000)
    noise = symmetric_noise(true, 7, 0.3, seed=0)
    assert len(noise.changed) == round(0.3 * len(true))
    assert np.array_equal(noise.true, true)
    for c in range(7):  # uniform over the six others: chi-squared, 0.1 % limit of 5 degrees of freedom
        counts = np.bincount(noise.given[(true == c) & (noise.given != true)], minlength=7)
        assert counts[c] == 0
        others = np.delete(counts, c)
        assert ((others - others.mean()) ** 2 / others.mean()).sum() < 20.5
    assert np.array_equal(noise.given, symmetric_noise(true, 7, 0.3, seed=0).given)
    assert not np.array_equal(noise.given, symmetric_noise(true, 7, 0.3, seed=1).given)
    assert len(symmetric_noise(true, 7, 1.0, seed=0).changed) == len(true)


@pytest.mark.parametrize("held_out", [False, True])
def test_only_train_is_noisy(held_out: bool, faces: Path, tmp_path: Path) -> None:
    if held_out:
        faces = build_synthetic_dataset(tmp_path / "faces", {"train": 80, "test": 10}, size=32).folder
    values = settings(faces, tmp_path / "out", data__validation_fraction="0.2")
    device = torch.device("cpu")
    with open_data(build_config([ConfigLayer("test", values)]), 0, 1, device) as clean:
        pass
    with open_data(
        build_config([ConfigLayer("test", {**values, "data.label_noise_rate": 0.5})]), 0, 1, device
    ) as noisy:
        batch = next(noisy.train_batches(0))
    assert noisy.noise is not None
    assert np.array_equal(noisy.noise.true, clean.train_split.labels)
    assert (noisy.train_split.labels != clean.train_split.labels).sum() == round(0.5 * len(clean.train_split))
    assert np.array_equal(batch.labels.numpy(), noisy.noise.given[batch.sample_ids.numpy()])
    assert np.array_equal(noisy.validation_split.labels, clean.validation_split.labels)
    assert clean.test_split is not None
    assert noisy.test_split is not None
    assert np.array_equal(noisy.test_split.labels, clean.test_split.labels)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def noise_of(faces: Path, path: Path) -> LabelNoise:
    dataset = open_dataset(faces)
    others = [str(key) for name in dataset.splits for key in dataset.split(name).keys]
    return read_noise(dataset.split("train"), path, 0, others)


def test_confusion_matrix_accepts_any_class_order(faces: Path, tmp_path: Path) -> None:
    """Every label becomes the class to which the matrix sends its own."""
    target = {name: CLASSES[(number + 2) % 7] for number, name in enumerate(CLASSES)}
    shuffled = CLASSES[3:] + CLASSES[:3]
    rows = [",".join("5" if column == target[row] else "0" for column in shuffled) for row in shuffled]
    named = [f"{row},{cells}" for row, cells in zip(shuffled, rows, strict=True)]
    plain = noise_of(faces, write(tmp_path / "a.csv", "\n".join([",".join(shuffled), *rows])))
    with_names = noise_of(faces, write(tmp_path / "b.csv", "\n".join(["," + ",".join(shuffled), *reversed(named)])))
    assert np.array_equal(plain.given, (plain.true + 2) % 7)
    assert np.array_equal(with_names.given, plain.given)


def test_noise_is_sampled_from_a_confusion_matrix(tmp_path: Path) -> None:
    counts = {"train": 1500}
    split = build_synthetic_dataset(tmp_path / "many", counts, size=16).split("train")
    rows = ["0.7,0.3,0,0,0,0,0", *(",".join("1" if i == j else "0" for j in range(7)) for i in range(1, 7))]
    noise = read_noise(split, write(tmp_path / "m.csv", "\n".join([",".join(CLASSES), *rows])), seed=0)
    first = split.labels == 0
    share = float((noise.given[first] == 1).mean())
    assert abs(share - 0.3) < 4 * np.sqrt(0.21 / first.sum())
    assert set(noise.changed) <= set(np.flatnonzero(first))


def test_noise_lists_of_scn_and_eac_load(faces: Path, tmp_path: Path) -> None:
    dataset = open_dataset(faces)
    split = dataset.split("train")
    lines = [
        f"{key}_aligned.jpg {(int(label) + 1) % 7 + 1}" for key, label in zip(split.keys, split.labels, strict=True)
    ]
    lines.append(f"{dataset.split('test').keys[0]}_aligned.jpg 7")
    noise = noise_of(faces, write(tmp_path / "list.txt", "\n".join(lines) + "\n"))
    assert np.array_equal(noise.given, (split.labels + 1) % 7)
    some = noise_of(faces, write(tmp_path / "some.txt", f"train/{split.keys[4]}.jpg anger\n"))
    assert set(some.changed) <= {4}
    assert some.given[4] == CLASSES.index("anger")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        ("someone.jpg 3\n", "line 1: no sample is named someone.jpg"),
        ("a.jpg 3\nb.jpg\n", "line 2 must be `name label`"),
        ("a.jpg 8\n", "label 8 is out of range; the 7 classes are numbered 1 to 7"),
        ("a.jpg 0\nb.jpg 7\n", "label 7 is out of range; the 7 classes are numbered 0 to 6"),
        ("a.jpg joyful\nb.jpg 1\n", "label 'joyful' is neither a number nor a class"),
        ("neutral,happy\n1,0\n0,1\n", "line 1 must be either the header of a matrix"),
        (",".join(CLASSES) + "\n1,0,0,0,0,0,0\n", "expected 7 rows of numbers, one per class, but found 1"),
        (
            ",".join(CLASSES) + "\n" + "1,0,0,0,0,0,0\n" * 6 + "1,0,0,0,0,0,-1\n",
            "line 8 must contain 7 nonnegative numbers",
        ),
        (",".join(CLASSES) + "\n" + "0,0,0,0,0,0,0\n" * 7, "line 2 must contain 7 nonnegative numbers"),
        (",".join(CLASSES) + "\n" + "a,0,0,0,0,0,0\n" * 7, "line 2 must contain 7 nonnegative numbers"),
    ],
)
def test_invalid_noise_file_is_rejected(content: str, reason: str, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        noise_of(faces, write(tmp_path / "noise.txt", content))
    assert reason in str(caught.value)
    assert "noise.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_noise_file_is_rejected(faces: Path, tmp_path: Path) -> None:
    config = DataConfig(label_noise_file=str(tmp_path / "nowhere.txt"))
    with pytest.raises(UserError, match=r"data\.label_noise_file: .*nowhere\.txt: no such file"):
        apply_label_noise(open_dataset(faces).split("train"), config, 0)


def test_two_kinds_of_noise_at_once_are_rejected() -> None:
    with pytest.raises(UserError, match=r"data\.label_noise_file"):
        build_config([ConfigLayer("test", {"data.label_noise_rate": 0.1, "data.label_noise_file": "x"})])


def test_run_lists_the_changed_labels(faces: Path, tmp_path: Path) -> None:
    values = settings(faces, tmp_path / "out", data__label_noise_rate="0.25", epochs="1")
    assert isinstance(train.run(build_config([ConfigLayer("test", values)])), Result)
    with (tmp_path / "out" / "label_noise.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    index = pq.read_table(faces / "train.parquet").to_pydict()
    true = dict(zip(index["key"], index["label"], strict=True))
    assert len(rows) == 16  # a quarter of 64
    assert all(CLASSES[true[row["key"]]] == row["true"] != row["given"] for row in rows)
