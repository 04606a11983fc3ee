"""Relabel and drop decisions, applied by the trainer and by the builder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adadf_dist import train
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config
from adadf_dist.data.datamodule import DataModule, open_data
from adadf_dist.data.dataset import Dataset, Split, open_dataset
from adadf_dist.data.relabel import read_decisions
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.errors import UserError
from adadf_dist.tracking.artifacts import load_samples
from adadf_dist.training.final_test import Result
from shards.build import main as build_main
from tests.helpers import dataset_trees as trees
from tests.helpers.dataset_builds import facts, run_build, tree
from tests.helpers.runs import settings

CPU = torch.device("cpu")
CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger")


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset from whose training split the trainer holds out validation."""
    return build_synthetic_dataset(
        tmp_path_factory.mktemp("shards") / "faces", {"train": 90, "test": 10}, size=32
    ).folder


def opened(faces: Path, **more: object) -> DataModule:
    with open_data(config_of(faces, **more), 0, 1, CPU) as data:
        return data


def config_of(faces: Path, **more: object) -> Config:
    values = settings(faces, Path("unused"))
    return build_config([ConfigLayer("test", {**values, **{key.replace("__", "."): v for key, v in more.items()}})])


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["key,decision,label", *lines]) + "\n")
    return path


def label_of(split: Split, key: str) -> str:
    return split.classes[int(split.labels[split.keys.tolist().index(key)])]


def other(split: Split, place: int) -> str:
    """A class other than the sample's."""
    return split.classes[(int(split.labels[place]) + 1) % len(split.classes)]


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_only_train_changes_and_the_held_out_split_stays(dataset_folder: Path, tmp_path: Path, noise: float) -> None:
    plain = opened(dataset_folder)
    split = plain.train_split
    a, b, c = (str(split.keys[place]) for place in (3, 11, 40))
    held = str(plain.validation_split.keys[2])
    lines = [f"{a},relabel,{other(split, 3)}", f"{b},drop,", f"{c},keep,", f"{held},drop,"]
    data = opened(
        dataset_folder, data__relabel_file=str(write(tmp_path / "r.csv", *lines)), data__label_noise_rate=noise
    )
    assert data.validation_split.keys.tolist() == plain.validation_split.keys.tolist()
    assert data.validation_split.labels.tolist() == plain.validation_split.labels.tolist()
    assert plain.test_split is not None
    assert data.test_split is not None
    assert data.test_split.labels.tolist() == plain.test_split.labels.tolist()
    assert data.train_split.keys.tolist() == [key for key in split.keys.tolist() if key != b]
    wanted = {key: other(split, 3) if key == a else label_of(split, key) for key in data.train_split.keys.tolist()}
    labels = data.train_split.labels if data.noise is None else data.noise.true
    assert [split.classes[label] for label in labels] == list(wanted.values())
    if noise:
        assert (data.train_split.labels != labels).sum() == round(noise * len(labels))
    assert data.relabeling is not None
    assert data.relabeling[:3] == (1, 1, 1)


def test_image_keeps_its_label(dataset_folder: Path, tmp_path: Path) -> None:
    """Images after a dropped sample still match their labels."""
    train = opened(dataset_folder).train_split
    pictures = {key: bytes(train.read(place)) for place, key in enumerate(train.keys.tolist())}
    file = write(tmp_path / "r.csv", f"{train.keys[0]},drop,")
    split = opened(dataset_folder, data__relabel_file=str(file)).train_split
    assert all(bytes(split.read(place)) == pictures[key] for place, key in enumerate(split.keys.tolist()))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["someone,keep,"], "line 2: unknown sample key someone"),
        (["{train},keep,", "{train},drop,"], "line 3: sample {train} is already in line 2"),
        (["{train},relabel,joyful"], "line 2: label 'joyful' is not a class; the classes are neutral, happy"),
        (["{train},relabel,"], "line 2: label '' is not a class"),
        (["{train},drop,happy"], "line 2: decision drop takes no label"),
        (["", "{train},remove,"], "line 3: decision 'remove' must be one of relabel, drop, keep"),
        (["{train},drop"], "line 2: 2 cells"),
        (["{test},relabel,happy"], "line 2: sample {test} is in split test; only training samples can be changed"),
    ],
)
def test_wrong_line_is_rejected(dataset_folder: Path, tmp_path: Path, lines: list[str], reason: str) -> None:
    dataset = open_dataset(dataset_folder)
    names = {split: str(dataset.split(split).keys[0]) for split in ("train", "test")}
    file = write(tmp_path / "relabel.csv", *(line.format(**names) for line in lines))
    with pytest.raises(UserError) as caught:
        opened(dataset_folder, data__relabel_file=str(file))
    output = str(caught.value)
    assert f"data.relabel_file: {file}: {reason.format(**names)}" in output
    assert "\n" not in output


def old_labels(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["key,decision,label,old_label", *lines]) + "\n")
    return path


def test_file_of_another_dataset_with_the_same_keys_is_rejected(dataset_folder: Path, tmp_path: Path) -> None:
    """Detected by the samples' current classes, dropped and kept ones included; requested classes do not matter."""
    split = opened(dataset_folder).train_split
    key, true, wrong = str(split.keys[3]), label_of(split, str(split.keys[3])), other(split, 3)
    file = old_labels(tmp_path / "r.csv", f"{key},relabel,{wrong},{true}")
    relabeled = opened(dataset_folder, data__relabel_file=str(file)).train_split
    assert label_of(relabeled, key) == wrong
    for line in (f"{key},drop,,{wrong}", f"{key},keep,,{wrong}"):
        file = old_labels(tmp_path / "r.csv", line)
        with pytest.raises(
            UserError, match=rf"r\.csv: line 2: sample {key} is {true} in this dataset, but was {wrong}"
        ):
            opened(dataset_folder, data__relabel_file=str(file))
    file = old_labels(tmp_path / "r.csv", f"{key},relabel,{true},{wrong}", f"{split.keys[4]},drop,,")
    assert label_of(opened(dataset_folder, data__relabel_file=str(file)).train_split, key) == true
    file = old_labels(tmp_path / "r.csv", f"{key},drop,,joyful")
    with pytest.raises(UserError, match=r"line 2: old_label 'joyful' is not a class; the classes are neutral"):
        opened(dataset_folder, data__relabel_file=str(file))


def test_invalid_files_are_rejected(dataset_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.relabel_file: .*nowhere\.csv: no such file"):
        opened(dataset_folder, data__relabel_file=str(tmp_path / "nowhere.csv"))
    (tmp_path / "bare.csv").write_text("train-0000001,drop,\n")
    with pytest.raises(UserError, match=r"line 1: must be a header with the columns key, decision, label"):
        opened(dataset_folder, data__relabel_file=str(tmp_path / "bare.csv"))


def test_too_few_remaining_samples_are_rejected(dataset_folder: Path, tmp_path: Path) -> None:
    train = opened(dataset_folder).train_split
    everyone = write(tmp_path / "all.csv", *(f"{key},relabel,happy" for key in train.keys))
    with pytest.raises(UserError, match="contains only class happy"):
        opened(dataset_folder, data__relabel_file=str(everyone))


def test_streamed_dataset_rejects_dropping(faces: Path, tmp_path: Path) -> None:
    key = open_dataset(faces).split("train").keys[0]
    file = write(tmp_path / "r.csv", f"{key},drop,")
    with pytest.raises(UserError, match=r"drops 1 samples, but data\.access is stream"):
        opened(faces, data__relabel_file=str(file), data__access="stream", data__loader="torch")


def test_run_keeps_its_decisions_and_detects_a_changed_file(faces: Path, tmp_path: Path) -> None:
    split = open_dataset(faces).split("train")
    lines = [f"{split.keys[5]},relabel,{other(split, 5)}", f"{split.keys[9]},drop,"]
    file = write(tmp_path / "r.csv", *lines)
    values = settings(faces, tmp_path / "run", data__relabel_file=str(file))
    short, longer = (build_config([ConfigLayer("test", {**values, "epochs": epochs})]) for epochs in (1, 2))
    assert isinstance(train.run(short), Result)
    assert "r.csv: 1 training samples relabeled, 1 dropped" in (tmp_path / "run" / "run_info.json").read_text()
    recorded = load_samples(tmp_path / "run")
    assert len(recorded.labels) == len(split) - 1
    place = recorded.keys.tolist().index(str(split.keys[5]))
    assert split.classes[recorded.labels[place]] == other(split, 5)

    write(file, f"{split.keys[6]},relabel,{other(split, 6)}", lines[1])  # the same number of samples, another label
    with pytest.raises(
        UserError, match=r"training data has changed since this checkpoint \(data\.shards, data\.relabel_file"
    ):
        train.run(longer)
    write(file, lines[1], lines[0])  # the same decisions in another order are the same
    assert isinstance(train.run(longer), Result)


# The builder


def build_drawn(out: Path, *options: object) -> Dataset:
    return run_build("synthetic", out, "--train", 40, "--validation", 10, "--test", 10, "--image-size", 32, *options)


def test_builder_records_the_decisions(tmp_path: Path) -> None:
    plain = build_drawn(tmp_path / "plain")
    train = plain.split("train")
    a, b = str(train.keys[3]), str(train.keys[11])
    file = write(tmp_path / "mine.csv", f"{a},relabel,{other(train, 3)}", f"{b},drop,")
    changed = build_drawn(tmp_path / "changed", "--relabel", file)
    split = changed.split("train")
    assert split.keys.tolist() == [key for key in train.keys.tolist() if key != b]
    assert {key: label_of(split, key) for key in split.keys.tolist()} == {
        key: other(train, 3) if key == a else label_of(train, key) for key in split.keys.tolist()
    }
    pictures = {key: bytes(train.read(place)) for place, key in enumerate(train.keys.tolist())}
    assert all(bytes(split.read(place)) == pictures[key] for place, key in enumerate(split.keys.tolist()))
    output = facts(changed, "train")[a]
    assert (output["class"], output["relabeled_from"]) == (other(train, 3), label_of(train, a))
    assert "relabeled_from" not in facts(changed, "train")[str(train.keys[4])]
    for name in ("validation", "test"):
        assert (changed.folder / f"{name}-000000.tar").read_bytes() == (
            plain.folder / f"{name}-000000.tar"
        ).read_bytes()
    built = changed.manifest.provenance
    assert built["options"]["relabel"]["file"] == "mine.csv"  # type: ignore[index]
    assert built["options"]["relabel"]["sha256"] == read_decisions(file, CLASSES, "x").sha256  # type: ignore[index]
    assert built["stats"]["relabeled"] == built["stats"]["dropped_by_decision"] == 1  # type: ignore[index]


def test_empty_decisions_change_only_the_note(tmp_path: Path) -> None:
    plain, changed = (
        build_drawn(tmp_path / "a" / "x"),
        build_drawn(tmp_path / "b" / "x", "--relabel", write(tmp_path / "r.csv")),
    )
    before, after = tree(plain.folder), tree(changed.folder)
    assert {name for name in before if before[name] != after[name]} == {"dataset.json"}


def test_builder_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = build_drawn(tmp_path / "plain")
    key = str(plain.split("validation").keys[0])
    file = write(tmp_path / "r.csv", f"{key},drop,")
    words = ["synthetic", "--out", str(tmp_path / "out"), "--train", "40", "--validation", "10", "--test", "10"]
    with pytest.raises(SystemExit) as left:
        build_main([*words, "--image-size", "32", "--relabel", str(file)])
    assert left.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"shards.build: error: --relabel: {file}: line 2: sample {key} is in split validation" in line
    assert not (tmp_path / "out").exists()


def test_decision_on_a_bad_image_drops_it(tmp_path: Path) -> None:
    """It is dropped like any other; its class is known without the image."""
    root = tmp_path / "faces"
    trees.class_folders(root, {"train": ["glad", "sad"] * 3})
    trees.write(root / "train" / "glad" / "bad.jpg", b"broken")
    words = ("--root", root, "--validation-fraction", 0)
    file = old_labels(tmp_path / "r.csv", "train-glad-bad,drop,,glad")
    dataset = run_build("folder", tmp_path / "out", *words, "--relabel", file)
    assert dataset.splits["train"].class_counts == (3, 3)
    file = old_labels(tmp_path / "other.csv", "train-glad-bad,drop,,sad")
    with pytest.raises(UserError, match=r"line 2: sample train-glad-bad is glad in this dataset, but was sad"):
        run_build("folder", tmp_path / "other", *words, "--relabel", file)


def test_builder_rejects_a_file_of_another_dataset(tmp_path: Path) -> None:
    train = build_drawn(tmp_path / "plain").split("train")
    key, true, wrong = str(train.keys[3]), label_of(train, str(train.keys[3])), other(train, 3)
    fitting = old_labels(tmp_path / "a.csv", f"{key},relabel,{wrong},{true}")
    assert label_of(build_drawn(tmp_path / "changed", "--relabel", fitting).split("train"), key) == wrong
    with pytest.raises(UserError, match=rf"b\.csv: line 2: sample {key} is {true} in this dataset, but was {wrong}"):
        build_drawn(tmp_path / "out", "--relabel", old_labels(tmp_path / "b.csv", f"{key},drop,,{wrong}"))


def test_dropping_all_training_samples_is_rejected(tmp_path: Path) -> None:
    train = build_drawn(tmp_path / "plain").split("train")
    file = write(tmp_path / "r.csv", *(f"{key},drop," for key in train.keys))
    with pytest.raises(UserError, match="drops every training sample"):
        build_drawn(tmp_path / "out", "--relabel", file)


def test_digests_distinguish_labels_and_keys(dataset_folder: Path) -> None:
    split = opened(dataset_folder).train_split
    labels = split.labels.copy()
    labels[0] = (labels[0] + 1) % 7
    assert replace(split, labels=labels).digest() != split.digest()
    assert split.subset(np.arange(len(split))[::-1].copy(), "train").digest() != split.digest()
    assert split.subset(np.arange(len(split)), "train").digest() == split.digest()
