"""A trained network measured on any dataset: every number against another way to it, and every mistake in one line."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from scipy.stats import entropy
from sklearn import metrics as sk

from adadf_dist.checkpoint.trained_model import TrainedPredictor, load_trained_model
from adadf_dist.data.build.builder import BuildOptions, build_dataset
from adadf_dist.data.build.writer import Sample
from adadf_dist.data.dataset import Split, open_dataset
from adadf_dist.data.preprocessing import ten_crop
from adadf_dist.data.sampling import stratified_holdout
from adadf_dist.data.synthetic import dataset
from adadf_dist.data.synthetic.dataset import SyntheticSource, build_synthetic_dataset
from adadf_dist.data.workers.task_pool import ProcessPool
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.evaluate.__main__ import load_same_on_all_ranks, main
from adadf_dist.evaluate.annotators import compare_with_votes, distributions
from adadf_dist.evaluate.class_mapping import map_labels
from adadf_dist.evaluate.cli import parse_options
from adadf_dist.evaluate.data import eval_preprocessing
from adadf_dist.evaluate.subgroups import read_groups
from adadf_dist.method.model import DualBranch
from adadf_dist.metrics.scores import bootstrap_means, calibrate, score
from adadf_dist.tracking.artifacts import load_predictions
from tests.remote_server import serve
from tests.runs import command, finish, settings, train_here

MODULE = ("-m", "adadf_dist.evaluate")


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train_here(settings(faces, out, epochs="2"))
    return out


@dataclass(frozen=True)
class Renamed(SyntheticSource):
    """The drawn faces under other names or another order of the classes, with more said of each."""

    names: tuple[str, ...] = ()
    """Of the drawn emotions, in their order."""
    order: tuple[int, ...] = ()
    """Label k of this dataset is drawn emotion `order[k]`."""
    voted: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.names[emotion] for emotion in self.order)

    def load(self, number: int) -> Sample:
        drawn = super().load(number)
        assert drawn.votes is not None and drawn.distribution is not None
        details = {"glasses": number % 3 == 0, "weight": number / 7} | ({"side": "left"} if number % 2 else {})
        return drawn._replace(
            label=self.order.index(drawn.label),
            votes=[drawn.votes[emotion] for emotion in self.order] if self.voted else None,
            distribution=[drawn.distribution[emotion] for emotion in self.order] if self.voted else None,
            details=details,
        )


def build_renamed(out: Path, test: int, names: Sequence[str] = (), voted: bool = True) -> Path:
    """A dataset of test faces alone, the first `test` that `faces` tests on, its classes in another order."""
    names = tuple(names) or tuple(dataset.EMOTIONS)
    order = (3, 0, 6, 1, 5, 2, 4)
    source = Renamed({"train": 2, "test": test}, 32, 0, names=names, order=order, voted=voted)
    build_dataset(source, out, BuildOptions(name="renamed", seed=0), ProcessPool(1))
    manifest = json.loads((out / "dataset.json").read_text())
    for shard in manifest["splits"].pop("train")["shards"]:
        (out / shard["file"]).unlink()
    (out / "dataset.json").write_text(json.dumps(manifest))
    return out


def evaluate(*words: object) -> dict[str, Any]:
    """The report of an evaluation in this process."""
    file = Path(str(words[0])).parent / "report.json"
    main([*map(str, words), "--json", str(file), "--overwrite"])
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of an evaluation that fails."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    output = capsys.readouterr().err
    assert ended.value.code == 2
    assert output.count("\n") == 1, output
    assert output.startswith("adadf_dist.evaluate: error: ")
    return output


def decoded(split: Split, size: int) -> torch.Tensor:
    """[S, 3, size, size], the stored pictures normalised, by Pillow and numpy alone."""
    pictures = []
    for sample in range(len(split)):
        picture = Image.open(io.BytesIO(bytes(split.read(sample)))).convert("RGB")
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.float64) / 255
        pictures.append((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()


def test_the_number_is_the_runs_own(run: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert predicted == pytest.approx(result["vote_divergence"], abs=1e-6)
    assert found["ceiling"] == result["ceiling"]
    assert (found["asked"]["split"], found["asked"]["faces"]) == ("test", 30)
    output = capsys.readouterr().out
    assert f"{result['accuracy']:.2%}" in output
    assert "distance from the votes of 30 samples" in output


def test_other_checkpoints_and_splits(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    last = evaluate(run, "--checkpoint", "last")
    assert last["asked"]["epoch"] == 2
    assert last["scores"]["accuracy"]["value"] == result["last_test"]["accuracy"]
    validation = evaluate(run / "checkpoints" / "selected.pt", "--split", "validation")
    assert validation["scores"]["accuracy"]["value"] == result["validation_accuracy"]


def test_a_run_in_progress_answers_with_what_is_selected(run: Path, tmp_path: Path) -> None:
    """All that such a run surely has is its selected checkpoint; another may be selected between two ranks' looks."""
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "checkpoints" / "selected.pt", tmp_path / "begun" / "checkpoints")
    assert evaluate(tmp_path / "begun")["scores"] == evaluate(run)["scores"]

    class Behind(World):
        """Two ranks, of which the other opened the checkpoint an epoch later."""

        def all_gather_object(self, value: Any) -> list[Any]:
            return [value, (value[0], value[1] + 1)]

    with pytest.raises(UserError, match="another checkpoint while the ranks opened it; rerun"):
        load_same_on_all_ranks(parse_options([str(tmp_path / "begun")]), Behind(torch.device("cpu")))


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
def test_scores_against_scikit_learn_and_loops(missing: bool) -> None:
    random = np.random.default_rng(3)
    logits = (3 * random.normal(size=(200, 5))).astype(np.float32)
    labels = random.integers(0, 4 if missing else 5, 200)
    if missing:
        logits[:, 2] = -20  # a class never predicted, beside one without faces
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


def test_certainty_falls_into_the_last_bin() -> None:
    calibration = calibrate(np.array([[800, 0], [0, 800], [0, 800]], dtype=np.float32), np.array([0, 1, 0]))
    assert [bin.faces for bin in calibration.bins] == [0] * 14 + [3]
    assert calibration.ece == pytest.approx(1 / 3)
    assert calibration.nll == pytest.approx(800 / 3)  # where a probability of zero would have made it infinite


def test_bootstrap_intervals_are_those_of_the_normal_distribution() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(2000, 2)) * [1, 10] + [0, 5]
    means = bootstrap_means(rows)
    assert means == bootstrap_means(rows)
    for column, mean in enumerate(means):
        half = 1.96 * rows[:, column].std() / math.sqrt(2000)
        assert mean.value == pytest.approx(rows[:, column].mean())
        assert mean.interval.low == pytest.approx(mean.value - half, abs=0.1 * half)
        assert mean.interval.high == pytest.approx(mean.value + half, abs=0.1 * half)


def test_the_interval_of_the_mean_class_accuracy() -> None:
    """Each class's recall is a binomial share of its own: their mean has a variance that is known."""
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


def test_the_order_of_the_classes_is_no_matter(run: Path, faces: Path, tmp_path: Path) -> None:
    other = build_renamed(tmp_path / "other", test=30)
    assert open_dataset(other).classes != open_dataset(faces).classes
    own, found = evaluate(run), evaluate(run, "--shards", other)
    assert found["asked"]["dataset"] == str(other)
    assert found["scores"]["confusion"] == own["scores"]["confusion"]
    for measure, mean in own["distances"]["measures"]["auxiliary"].items():
        theirs = found["distances"]["measures"]["auxiliary"][measure]["value"]
        assert theirs == pytest.approx(mean["value"], abs=1e-5), measure


def test_a_mapping_joins_and_leaves_out(run: Path, faces: Path, tmp_path: Path) -> None:
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


def test_votes_of_joined_classes_add_up(faces: Path) -> None:
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


def test_tta_against_pictures_mirrored_and_cut_by_hand(run: Path, faces: Path) -> None:
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
    """Some of the measures on some of the distributions, face by face."""
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


def test_groups(run: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = build_renamed(tmp_path / "other", test=30, voted=False)
    found = evaluate(run, "--shards", other, "--group-by", "glasses", "--group-by", "side")
    assert "no annotator votes" in capsys.readouterr().out
    assert found["distances"] is None and found["ceiling"] is None
    split = open_dataset(faces).split("test")
    right = load_predictions(run, "test").answers.predicted_labels == split.labels
    numbers = [int(str(key).rpartition("-")[2]) for key in split.keys]
    for field, of in (("glasses", lambda n: str(n % 3 == 0)), ("side", lambda n: "left" if n % 2 else "not given")):
        output = {group["name"]: group for group in found["groups"][field]}
        base = 2 * 10**9  # where the numbers of test faces begin
        for name, group in output.items():
            members = [row for row, number in enumerate(numbers) if of(base + number) == name]
            assert group["faces"] == len(members)
            assert group["accuracy"]["value"] == np.mean(right[members])
        assert sum(group["faces"] for group in output.values()) == 30
    renamed = open_dataset(other).split("test")
    sides = ["left" if int(str(key).rpartition("-")[2]) % 2 else "not given" for key in renamed.keys]
    assert read_groups(renamed, ["side"]) == {"side": sides}
    line = refused(capsys, run, "--shards", other, "--group-by", "hat", "--group-by", "weight")
    assert "--group-by hat, weight: KEY.json" in line
    assert "available: glasses, height, side, width" in line
    line = refused(capsys, run, "--shards", other, "--require-votes")
    assert "--require-votes: split test of " in line


def test_of_a_remote_dataset_only_the_split_is_fetched(run: Path, faces: Path, tmp_path: Path) -> None:
    with serve(faces) as site:
        found = evaluate(run, "--shards", site.url, "--cache-dir", tmp_path / "cache")
        assert not [name for name in site.count() if name.startswith("train") and name.endswith(".tar")]
        evaluate(run, "--shards", site.url, "--cache-dir", tmp_path / "cache", "--split", "train")
        assert site.count()["train-000000.tar"] == 1
    assert found["scores"] == evaluate(run)["scores"]


def test_another_loader_is_said(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    own = evaluate(run)["scores"]["calibration"]["nll"]
    assert capsys.readouterr().err == ""
    trained = load_trained_model(run)
    by_dali = trained._replace(preprocessing=replace(trained.preprocessing, loader="dali"))
    monkeypatch.setattr("adadf_dist.evaluate.__main__.load_trained_model", lambda path, which: by_dali)
    monkeypatch.setattr(
        "adadf_dist.evaluate.data.dali_unavailable_reason",
        lambda: "it does not import (not there); install it with pip install 'adadf_dist[dali]'",
    )
    assert "the run's loader is dali, but it does not import" in refused(capsys, run)
    found = evaluate(run, "--loader", "torch", "--precision", "bf16")
    assert capsys.readouterr().err.startswith("note: using loader torch instead of the run's dali")
    assert (found["asked"]["loader"], found["asked"]["precision"]) == ("torch", "bf16")
    assert found["scores"]["calibration"]["nll"] == pytest.approx(own, abs=0.05)
    assert found["scores"]["calibration"]["nll"] != own  # bf16 rounds


def test_ten_crops_are_taken_once(run: Path) -> None:
    plain = load_trained_model(run).preprocessing
    cropped = replace(plain, ten_crop=40)
    assert eval_preprocessing(plain, "flip") == plain
    assert eval_preprocessing(cropped, "tencrop") == eval_preprocessing(cropped, "none") == cropped
    with pytest.raises(UserError, match="--tta flip: the run uses ten crops"):
        eval_preprocessing(cropped, "flip")


def test_faces_without_votes_are_left_out_of_the_distances(run: Path, faces: Path) -> None:
    """Also: the row of D is the label's, which a matrix that is not symmetric shows."""
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


def test_the_baseline_has_no_auxiliary_branch(run: Path, faces: Path) -> None:
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


def test_a_carved_validation_split_is_the_runs(run: Path, tmp_path: Path) -> None:
    """The faces that the run would have set aside, with the dataset's own labels."""
    folder = tmp_path / "train-only"
    build_synthetic_dataset(folder, {"train": 64}, size=32, workers=1)
    train = open_dataset(folder).split("train")
    kept, held_out = stratified_holdout(train.labels, 0.1, 0)
    found = evaluate(run, "--shards", folder, "--allow-training-samples")  # the run held nothing out of them
    assert (found["asked"]["split"], found["asked"]["faces"]) == ("validation", len(held_out))
    assert found["asked"]["training_samples"] == len(held_out)
    counts = np.bincount(train.labels[held_out], minlength=7)
    assert [row["faces"] for row in found["scores"]["classes"]] == counts.tolist()
    assert evaluate(run, "--shards", folder, "--split", "train")["asked"]["faces"] == len(kept)  # its own train


def test_two_ranks_are_one(run: Path, faces: Path, tmp_path: Path) -> None:
    """Batches of 4 and 3 faces: the ranks' slices are uneven."""
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


def test_mistakes_are_one_line(run: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert "has no train split; it has test" in refused(capsys, run, "--shards", other, "--split", "train")
    copied = tmp_path / "moved.pt"
    content = torch.load(run / "checkpoints" / "selected.pt", weights_only=True)
    content["config"]["data"]["shards"] = "gone/faces"
    torch.save(content, copied)
    assert "gone/faces: dataset of the run not found; pass its new location as --shards" in refused(capsys, copied)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('glad = "hapy"\nsad = "sad"\nBored = "surprise"\n')
    line = refused(capsys, run, "--shards", other, "--class-mapping", mapping)
    assert "'Bored': not a dataset class" in line
    assert "hapy': not a model class" in line
    assert "'anger', 'disgust', 'fear', 'neutral', 'surprise': not mapped" in line
    mapping.write_text("".join(f'{name} = ""\n' for name in names))
    assert "all classes are excluded" in refused(capsys, run, "--shards", other, "--class-mapping", mapping)


def test_a_face_that_does_not_decode_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = build_renamed(tmp_path / "other", test=8)
    split = open_dataset(other).split("test")
    shard, offset, size = split.locations[5].tolist()
    with (other / split.shards[shard]).open("r+b") as tar:
        tar.seek(offset)
        tar.write(bytes(size))
    line = refused(capsys, run, "--shards", other)
    assert f"sample {split.keys[5]} (test split)" in line


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert not ended.value.code
    output = capsys.readouterr().out
    for word in ("--class-mapping", "--tta", "--group-by", "examples:", "torchrun", "docs/evaluation.md"):
        assert word in output
