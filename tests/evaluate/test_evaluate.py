"""The evaluate command on a trained run: its result, other checkpoints and splits, ranks, and user errors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adadf_dist.checkpoint.trained_model import load_trained_model
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.sampling import stratified_holdout
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.evaluate.__main__ import load_same_on_all_ranks, main
from adadf_dist.evaluate.annotators import distributions
from adadf_dist.evaluate.cli import parse_options
from adadf_dist.evaluate.data import eval_preprocessing
from adadf_dist.method.model import DualBranch
from adadf_dist.tracking.artifacts import load_predictions
from tests.helpers.dataset_builds import ROOT, run_build
from tests.helpers.evaluations import build_renamed, evaluate, refused
from tests.helpers.remote_server import serve
from tests.helpers.runs import command, finish, settings, train_here

MODULE = ("-m", "adadf_dist.evaluate")


def test_accuracy_equals_the_runs_result(run: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(run)
    result = json.loads((run / "result.json").read_text())["test"]
    scores = found["scores"]
    assert scores["accuracy"]["value"] == result["accuracy"]
    assert scores["accuracy"]["interval"] == {
        "low": result["accuracy_interval"][0],
        "high": result["accuracy_interval"][1],
    }
    assert scores["mean_class_accuracy"]["value"] == pytest.approx(result["mean_class_accuracy"], abs=1e-12)
    assert scores["confusion"] == result["confusion"]
    assert scores["calibration"]["nll"] == pytest.approx(result["cross_entropy"], abs=1e-6)
    predicted = found["distances"]["measures"]["predicted"]["kl"]["value"]
    assert predicted == pytest.approx(result["votes_kl"], abs=1e-6)
    assert found["bayes_accuracy"] == result["bayes_accuracy"]
    assert (found["asked"]["split"], found["asked"]["faces"]) == ("test", 30)
    output = capsys.readouterr().out
    assert f"{result['accuracy']:.2%}" in output
    assert "distance from the votes of 30 samples" in output


def test_other_checkpoints_and_splits_are_evaluated(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    last = evaluate(run, "--checkpoint", "last")
    assert last["asked"]["epoch"] == 2
    assert last["scores"]["accuracy"]["value"] == result["final_epoch_test"]["accuracy"]
    validation = evaluate(run / "checkpoints" / "selected.pt", "--split", "validation")
    assert validation["scores"]["accuracy"]["value"] == result["validation_accuracy"]


def test_unfinished_run_is_evaluated_at_its_selected_checkpoint(run: Path, tmp_path: Path) -> None:
    """Only the selected checkpoint is certain to exist; another may be selected between the reads of two ranks."""
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "checkpoints" / "selected.pt", tmp_path / "begun" / "checkpoints")
    assert evaluate(tmp_path / "begun")["scores"] == evaluate(run)["scores"]

    class Behind(World):
        """Two ranks, of which the other opened the checkpoint one epoch later."""

        def all_gather_object(self, value: Any) -> list[Any]:
            return [value, (value[0], value[1] + 1)]

    with pytest.raises(UserError, match="replaced the checkpoint while it was being loaded; run the command again"):
        load_same_on_all_ranks(parse_options([str(tmp_path / "begun")]), Behind(torch.device("cpu")))


def test_only_the_split_of_a_remote_dataset_is_downloaded(run: Path, faces: Path, tmp_path: Path) -> None:
    with serve(faces) as site:
        found = evaluate(run, "--shards", site.url, "--cache-dir", tmp_path / "cache")
        assert not [name for name in site.count() if name.startswith("train") and name.endswith(".tar")]
        evaluate(run, "--shards", site.url, "--cache-dir", tmp_path / "cache", "--split", "train")
        assert site.count()["train-000000.tar"] == 1
    assert found["scores"] == evaluate(run)["scores"]


def test_different_loader_is_reported(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = evaluate(run)["scores"]["calibration"]["nll"]
    assert capsys.readouterr().err == ""
    trained = load_trained_model(run)
    by_dali = trained._replace(preprocessing=replace(trained.preprocessing, loader="dali"))
    monkeypatch.setattr("adadf_dist.evaluate.__main__.load_trained_model", lambda path, which: by_dali)
    monkeypatch.setattr(
        "adadf_dist.evaluate.data.dali_unavailable_reason",
        lambda: "it cannot be imported (not there); install it with pip install 'adadf_dist[dali]'",
    )
    assert "the run's loader is dali, but it cannot be imported" in refused(capsys, run)
    found = evaluate(run, "--loader", "torch", "--precision", "bf16")
    assert capsys.readouterr().err.startswith("note: using loader torch instead of the run's dali")
    assert (found["asked"]["loader"], found["asked"]["precision"]) == ("torch", "bf16")
    assert found["scores"]["calibration"]["nll"] == pytest.approx(own, abs=0.05)
    assert found["scores"]["calibration"]["nll"] != own  # bf16 rounds


def test_ten_crops_are_cropped_once(run: Path) -> None:
    plain = load_trained_model(run).preprocessing
    cropped = replace(plain, ten_crop=40)
    assert eval_preprocessing(plain, "flip") == plain
    assert eval_preprocessing(cropped, "tencrop") == eval_preprocessing(cropped, "none") == cropped
    with pytest.raises(UserError, match="--tta flip: the run uses ten crops"):
        eval_preprocessing(cropped, "flip")


def test_baseline_has_no_auxiliary_branch(run: Path, faces: Path) -> None:
    trained = load_trained_model(run)
    labels = open_dataset(faces).split("test").labels
    answers = load_predictions(run, "test").answers
    assert list(distributions(trained, answers, labels))[:3] == ["predicted", "auxiliary", "fused"]
    baseline = trained._replace(model=DualBranch(trained.config.model, 7, auxiliary=False))
    assert list(distributions(baseline, answers, labels)) == [
        "predicted",
        "class distribution",
        "one-hot",
        "label-smoothed",
    ]


def test_run_is_tested_by_both_label_rules_of_ferplus(tmp_path: Path) -> None:
    files = [
        ROOT.parent / "shared" / "data" / "fer2013" / name for name in ("mini_fer2013.csv.gz", "mini_fer2013new.csv")
    ]
    if not all(file.is_file() for file in files):
        pytest.skip("needs FER2013 in ../shared, which is absent")
    rules = {
        rule: run_build("fer2013", tmp_path / rule, "--csv", files[0], "--ferplus", files[1], "--label-rule", rule)
        for rule in ("majority", "ferplus")
    }
    out = tmp_path / "run"
    train_here(settings(rules["majority"].folder, out, epochs="1", batch_size="64"))
    table, answers = load_predictions(out, "test")[:2]
    predicted = dict(zip(table.keys.tolist(), answers.predicted_labels.tolist(), strict=True))
    for dataset in rules.values():
        test = dataset.split("test")
        found = evaluate(out, "--shards", dataset.folder)
        correct = [predicted[key] == label for key, label in zip(test.keys.tolist(), test.labels.tolist(), strict=True)]
        assert found["scores"]["accuracy"]["value"] == pytest.approx(np.mean(correct), abs=1e-12)
        assert (found["asked"]["faces"], found["asked"]["training_samples"]) == (len(test), 0)
    assert len(rules["ferplus"].split("test")) < len(table.keys)


def test_held_out_validation_equals_the_runs(run: Path, tmp_path: Path) -> None:
    """The samples that the run held out, with the dataset's own labels."""
    folder = tmp_path / "train-only"
    build_synthetic_dataset(folder, {"train": 64}, size=32, workers=1)
    train = open_dataset(folder).split("train")
    kept, held_out = stratified_holdout(train.labels, 0.1, 0)
    found = evaluate(run, "--shards", folder, "--allow-training-samples")  # the run held out none of them
    assert (found["asked"]["split"], found["asked"]["faces"]) == ("validation", len(held_out))
    assert found["asked"]["training_samples"] == len(held_out)
    counts = np.bincount(train.labels[held_out], minlength=7)
    assert [row["faces"] for row in found["scores"]["classes"]] == counts.tolist()
    assert evaluate(run, "--shards", folder, "--split", "train")["asked"]["faces"] == len(kept)  # its own train


def test_two_ranks_equal_one(run: Path, faces: Path, tmp_path: Path) -> None:
    """Batches of 4 and 3 samples: the ranks' slices are uneven."""
    own = evaluate(run, "--batch-size", "4", "--tta", "flip")
    file = tmp_path / "two.json"
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", *MODULE]
    words = [str(run), "--batch-size", "4", "--tta", "flip", "--json", str(file)]
    done = finish([command({})[0], "-m", *launcher, *words])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("macro F1") == 1
    two = json.loads(file.read_text())
    assert two["asked"].pop("ranks") == 2
    own["asked"].pop("ranks")
    assert_close(two, own)


def assert_close(found: object, wanted: object) -> None:
    if isinstance(wanted, dict):
        assert isinstance(found, dict) and found.keys() == wanted.keys()
        for key in wanted:
            assert_close(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-5)
    else:
        assert found == wanted


def test_user_errors_are_one_line(run: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such run folder or checkpoint" in refused(capsys, tmp_path / "nowhere")
    assert "no such dataset folder" in refused(capsys, run, "--shards", tmp_path / "nowhere")
    file = tmp_path / "there.json"
    file.write_text("kept")
    assert "already exists" in refused(capsys, run, "--json", file)
    assert file.read_text() == "kept"
    assert "is not a folder" in refused(capsys, run, "--json", file / "x.json")
    names = ["neutral", "glad", "sad", "surprise", "fear", "disgust", "anger"]
    other = build_renamed(tmp_path / "other", test=8, names=names)
    line = refused(capsys, run, "--shards", other)
    assert "glad" in line and "happy" in line and "--class-mapping FILE" in line
    assert "has no train split; pass one of its splits" in refused(capsys, run, "--shards", other, "--split", "train")
    copied = tmp_path / "moved.pt"
    content = torch.load(run / "checkpoints" / "selected.pt", weights_only=True)
    content["config"]["data"]["shards"] = "gone/faces"
    torch.save(content, copied)
    assert "gone/faces: the run's dataset was not found; pass its new location as --shards" in refused(capsys, copied)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('glad = "hapy"\nsad = "sad"\nBored = "surprise"\n')
    line = refused(capsys, run, "--shards", other, "--class-mapping", mapping)
    assert "'Bored': not a dataset class" in line
    assert "hapy': not a model class" in line
    assert "'anger', 'disgust', 'fear', 'neutral', 'surprise': not mapped" in line
    mapping.write_text("".join(f'{name} = ""\n' for name in names))
    assert "all classes are excluded" in refused(capsys, run, "--shards", other, "--class-mapping", mapping)


def test_undecodable_image_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = build_renamed(tmp_path / "other", test=8)
    split = open_dataset(other).split("test")
    shard, offset, size = split.locations[5].tolist()
    with (other / split.shards[shard]).open("r+b") as tar:
        tar.seek(offset)
        tar.write(bytes(size))
    line = refused(capsys, run, "--shards", other)
    assert f"sample {split.keys[5]} (test split)" in line


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert not ended.value.code
    output = capsys.readouterr().out
    for word in ("--class-mapping", "--tta", "--group-by", "examples:", "torchrun", "docs/evaluation.md"):
        assert word in output
