"""The audit: training dynamics, scores on known label noise, the table, and the page."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from sklearn.metrics import roc_auc_score

from adadf_dist.audit.__main__ import main
from adadf_dist.audit.ranking import score_labels
from adadf_dist.audit.run_data import AuditInputs, load_audit_inputs
from adadf_dist.audit.training_dynamics import load_training_dynamics, summarize
from adadf_dist.data.dataset import Split, open_dataset
from adadf_dist.data.jpeg import decode
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.errors import UserError
from adadf_dist.tracking.artifacts import load_samples
from benchmarks.__main__ import main as benchmark
from benchmarks.audit_scores import compare_scores, forgetting, precision_at, rank_average
from benchmarks.reference_labels import injected_noise, labels_from_dataset
from tests.helpers.browser import Page, chromium_page, needs_chromium
from tests.helpers.dataset_builds import run_build
from tests.helpers.runs import settings, train_here
from tests.helpers.waiting import wait_until

CPU = torch.device("cpu")
NAN = float("nan")
COLOURS = ("red", "lime", "blue", "yellow", "magenta", "cyan", "white")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic faces tinted by class, so that a network learns them in a few steps.

    There is no validation split: the trainer carves one.
    """
    folder = tmp_path_factory.mktemp("shards")
    split = build_synthetic_dataset(folder / "plain", {"train": 280}, size=32, workers=1).split("train")
    names = ["<script>", *split.classes[1:]]  # which no page may take for a tag
    for place, (key, label) in enumerate(zip(split.keys.tolist(), split.labels.tolist(), strict=True)):
        tint = Image.new("RGB", (32, 32), ImageColor.getrgb(COLOURS[label]))
        file = folder / "tinted" / names[label] / f"{key}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.blend(decode(bytes(split.read(place))).convert("RGB"), tint, 0.6).save(file)
    return run_build("folder", folder / "drawn", "--root", folder / "tinted", "--validation-fraction", 0).folder


@pytest.fixture(scope="module")
def run(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on labels a fifth of which are wrong."""
    out = tmp_path_factory.mktemp("runs") / "noisy"
    more = {"augment__policy": "none", "augment__erase_prob": "0", "optimizer__attention_lr_mult": "0.02"}
    train_here(settings(drawn, out, epochs="3", data__label_noise_rate="0.2", **more))
    return out


@pytest.fixture(scope="module")
def audited(run: Path) -> Path:
    main([str(run), "--max-images", "60"])
    return run / "audit"


@pytest.fixture(scope="module")
def compared(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of the benchmark that compares scores."""
    file = tmp_path_factory.mktemp("scores") / "scores.json"
    benchmark(["audit", str(run), "--json", str(file)])
    return file


@pytest.fixture(scope="module")
def material(run: Path) -> Iterator[AuditInputs]:
    with load_audit_inputs(run, "selected", {}, CPU) as opened:
        yield opened


def table(audited: Path) -> list[dict[str, str]]:
    with (audited / "audit.csv").open() as stream:
        return list(csv.DictReader(stream))


# The evidence


def test_forgetting_and_means_match_a_handmade_history() -> None:
    correct = np.array(
        # learned, forgotten twice, never learned, not seen in epoch 2, half correct, never seen
        [
            [0.0, 1.0, 0.0, 1.0, 0.5, NAN],
            [1.0, 0.0, 0.0, NAN, 1.0, NAN],
            [1.0, 1.0, 0.0, 0.0, 0.5, NAN],
            [1.0, 0.0, 0.0, 1.0, 0.6, NAN],
        ]
    )
    attention = np.where(np.isnan(correct), NAN, [[0.1], [0.2], [0.3], [0.6]])
    traces = summarize(attention, 10 * attention, correct)
    assert traces.forgetting_events.tolist() == [0, 2, 0, 1, 1, 0]
    assert traces.never_learned.tolist() == [False, False, True, False, False, False]
    assert traces.wrong[:5].tolist() == pytest.approx([1 / 4, 2 / 4, 1, 1 / 3, 2 / 4])
    assert traces.attention_mean[:4].tolist() == pytest.approx([0.3, 0.3, 0.3, 1 / 3])
    assert traces.loss_last[:5].tolist() == pytest.approx([6.0] * 5)
    assert np.isnan([traces.wrong[5], traces.attention_mean[5], traces.loss_last[5]]).all()
    assert forgetting(traces).argsort()[::-1][:2].tolist() == [2, 1]


def test_last_epoch_is_the_last_that_contained_the_sample() -> None:
    seen_first = np.array([[0.5], [NAN]])
    assert summarize(seen_first, seen_first, seen_first).attention_last.tolist() == [0.5]


def test_suspicion_is_the_mean_probability_of_other_classes(material: AuditInputs) -> None:
    target, auxiliary = np.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]]), np.array([[0.5, 0.5, 1e-9], [0.2, 0.2, 0.6]])
    answers = material.answers._replace(target_logits=np.log(target), auxiliary_logits=np.log(auxiliary))
    split = replace(material.split.subset(np.arange(2), "train"), labels=np.array([0, 1]))
    findings = score_labels(material._replace(split=split, answers=answers))
    assert findings.label_error_score.tolist() == pytest.approx([0.4, 0.65])
    assert findings.suggested_label.tolist() == [0, 2]
    assert findings.ranked.tolist() == [1, 0]


def test_rank_average_shares_ties_and_centers_missing_scores() -> None:
    assert rank_average(np.array([3.0, 1.0, 2.0])).tolist() == pytest.approx([1, 0, 0.5])
    assert rank_average(np.array([1.0, 1.0, 5.0])).tolist() == pytest.approx([0.25, 0.25, 1])
    assert rank_average(np.array([1.0, NAN, 5.0])).tolist() == pytest.approx([0, 0.5, 1])


# Scores of scores


def test_precision_averages_over_orders_of_ties() -> None:
    random = np.random.default_rng(1)
    wrong = random.random(200) < 0.4
    distinct = random.permutation(200).astype(float)
    for k in (1, 7, 200):
        first = sorted(range(200), key=lambda face: -distinct[face])[:k]
        assert precision_at(distinct, wrong, k) == pytest.approx(np.mean([wrong[face] for face in first]))
    tied = random.integers(0, 4, 200).astype(float)
    drawn = []
    for _ in range(4000):
        order = random.permutation(200)
        drawn.append(wrong[order[np.argsort(-tied[order], kind="stable")][:30]].mean())
    assert np.isnan(precision_at(tied, wrong, 0))
    assert precision_at(tied, wrong, 30) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 4000**0.5)


# A run


def test_audit_reads_the_split_used_for_training(run: Path, drawn: Path, material: AuditInputs) -> None:
    faces = load_samples(run)
    assert [str(key) for key in material.split.keys] == faces.keys.tolist()
    assert material.labels.tolist() == faces.labels.tolist()
    whole = open_dataset(drawn).split("train")
    assert len(whole) == 280 > len(material.labels)  # validation is held out
    pictures = {str(key): bytes(whole.read(place)) for place, key in enumerate(whole.keys)}
    assert bytes(material.split.read(7)) == pictures[str(material.split.keys[7])]


def test_training_dynamics_equal_the_files(run: Path, material: AuditInputs) -> None:
    epochs = [np.load(file) for file in sorted((run / "history").glob("epoch-*.npz"))]
    assert material.traces.epochs == len(epochs) == 3
    for face in (0, 11, 200):
        right = [bool(epoch["correct"][face] > 0.5) for epoch in epochs]
        assert material.traces.forgetting_events[face] == sum(a and not b for a, b in pairwise(right))
        assert material.traces.never_learned[face] == (not any(right))
        losses = [float(epoch["loss"][face]) for epoch in epochs]
        assert material.traces.loss_mean[face] == pytest.approx(sum(losses) / 3)
        assert material.traces.loss_last[face] == pytest.approx(losses[-1])


def test_injected_noise_is_ranked_better_than_chance(material: AuditInputs, compared: Path) -> None:
    wrong = material.faces.labels != material.faces.true_labels
    cards = json.loads(compared.read_text())
    rows = {row["name"]: row for row in cards[0]["scores"]}
    own = rows["**suspicion**"]
    both = (material.answers.target_probs + material.answers.auxiliary_probs) / 2
    given = np.array([1 - both[face, label] for face, label in enumerate(material.labels)])
    assert own["auc"] == pytest.approx(roc_auc_score(wrong, given))
    count = int(wrong.sum())
    assert cards[0]["wrong"] == count == round(0.2 * len(wrong))
    # four standard errors above 0.5, the expectation of an uninformative score (Mann and Whitney)
    assert own["auc"] > 0.5 + 4 * ((len(wrong) + 1) / (12 * count * (len(wrong) - count))) ** 0.5
    assert own["at_changed"] > 0.2 + 4 * (0.2 * 0.8 / count) ** 0.5
    assert own["at_changed"] == pytest.approx(wrong[np.argsort(-given, kind="stable")[:count]].mean())
    assert {"attention, mean", "loss, mean", "loss, last epoch", "forgetting"} < set(rows)


def test_table_includes_confident_learning(compared: Path) -> None:
    pytest.importorskip("cleanlab", reason="the optional extra is not installed")
    card = json.loads(compared.read_text())[0]
    names = [row["name"] for row in card["scores"]]
    assert {"confident learning, label quality", "confident learning, issues first"} < set(names)
    assert "out-of-sample" in card["remarks"][0]


def test_table_lists_every_sample_once_most_suspicious_first(material: AuditInputs, audited: Path) -> None:
    rows = table(audited)
    assert sorted(row["key"] for row in rows) == sorted(str(key) for key in material.split.keys)
    scores = [float(row["label_error_score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    places = {str(key): place for place, key in enumerate(material.split.keys)}
    for row in rows[:5]:
        face = places[row["key"]]
        target = [float(row[f"target_{name}"]) for name in material.classes]
        auxiliary = [float(row[f"auxiliary_{name}"]) for name in material.classes]
        assert sum(target) == pytest.approx(1, abs=1e-4)
        both = [(a + b) / 2 for a, b in zip(target, auxiliary, strict=True)]
        assert row["suggested_label"] == material.classes[both.index(max(both))]
        assert row["label"] == material.classes[material.faces.labels[face]]
        assert row["true_label"] == material.classes[material.faces.true_labels[face]]
        assert float(row["label_error_score"]) == pytest.approx(
            1 - both[material.classes.index(row["label"])], abs=1e-4
        )


def test_report_is_markdown_and_replaced_only_with_force(
    run: Path, audited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(run)])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    (audited / "relabel.csv").write_text("key,decision,label\n")
    before = (audited / "audit.csv").read_bytes()
    main([str(run), "--max-images", "60", "--overwrite"])
    assert (audited / "audit.csv").read_bytes() == before
    assert (audited / "relabel.csv").exists()  # the audit must not remove a user's file


def test_bf16_predictions_differ_from_fp32(run: Path) -> None:
    logits = []
    for precision in ("fp32", "bf16"):
        with load_audit_inputs(run, "selected", {}, CPU, precision=precision) as opened:  # type: ignore[arg-type]
            logits.append(opened.answers.target_logits)
    assert (logits[0] != logits[1]).any()
    assert abs(logits[0] - logits[1]).max() < 0.5


def test_options_reach_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[object, ...]] = []

    def take(*values: object) -> None:
        found.append(values)
        raise UserError("enough")

    monkeypatch.setattr("adadf_dist.audit.__main__.load_audit_inputs", take)
    words = ["--checkpoint", "last", "--shards", "a", "--cache-dir", "b", "--device", "cpu", "--precision", "bf16"]
    with pytest.raises(SystemExit):
        main([str(tmp_path), *words])
    assert found == [(tmp_path, "last", {"data.shards": "a", "data.cache_dir": "b"}, CPU, False, "bf16")]


def test_missing_cleanlab_is_reported(
    run: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(run, tmp_path)
    main([str(copy), "--max-images", "1", "--reference-labels", str(drawn)])
    note = capsys.readouterr().err
    assert note.count("\n") == 1
    assert f"python -m benchmarks audit {copy} --reference-labels {drawn}" in note
    assert (copy / "audit" / "audit.csv").exists()


def test_the_benchmark_prints_a_table_per_source_of_labels(
    run: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark(["audit", str(run), "--reference-labels", str(drawn)])
    output = capsys.readouterr().out
    assert len(re.findall(r"\| \*\*suspicion\*\* \| [01]\.\d{3} \| [\d.]+% \|", output)) == 2
    assert "| attention, mean | 0." in output
    assert f"labels of {drawn.name}: " in output and "data.label_noise_rate 0.2: " in output


def test_the_benchmark_needs_known_errors(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = copy_of(run, tmp_path)
    with np.load(copy / "samples.npz") as file:
        arrays = dict(file)
    np.savez(copy / "samples.npz", **{**arrays, "true_labels": arrays["labels"]})
    with pytest.raises(SystemExit):
        benchmark(["audit", str(copy)])
    assert "trained without label noise; pass --reference-labels DIR" in capsys.readouterr().err


def test_cleanlab_missing_is_said(material: AuditInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    output = compare_scores(score_labels(material), injected_noise(material)).to_markdown()
    assert "| confident learning" not in output
    assert "pip install 'adadf_dist[benchmarks]'" in output


# Other labels of the same photos


def renamed(material: AuditInputs) -> Split:
    """The same samples under new keys."""
    keys = [f"new-{key}" for key in material.split.keys]
    return replace(material.split, keys=np.array(keys, dtype=np.dtypes.StringDType()))


def test_reference_labels_match_by_key_and_by_image(material: AuditInputs, drawn: Path) -> None:
    noisy = material.faces.labels != material.faces.true_labels
    by_key = labels_from_dataset(material.split, drawn)
    assert by_key.labels.tolist() == material.faces.true_labels.tolist()
    assert f"{int(noisy.sum()):,} are labeled differently" in by_key.source
    looked = min(100, len(noisy))
    assert f"of {looked} matched by key, {looked} have an identical image" in by_key.source
    by_picture = labels_from_dataset(renamed(material), drawn)
    assert by_picture.labels.tolist() == by_key.labels.tolist()
    assert f"0 of {len(noisy):,} samples matched by key, {len(noisy):,} by image" in by_picture.source


def test_reference_labels_accept_synonyms_and_unshared_classes(material: AuditInputs, drawn: Path) -> None:
    """The run lacks fear and names happy differently; the other folder has both."""
    classes = tuple({"happy": "Happiness", "fear": "boredom"}.get(name, name) for name in material.classes)
    other = labels_from_dataset(replace(material.split, classes=classes), drawn)
    fear = material.classes.index("fear")
    unknown = (material.labels == fear) | (material.faces.true_labels == fear)
    assert other.labels[~unknown].tolist() == material.faces.true_labels[~unknown].tolist()
    assert (other.labels[unknown] == -1).all()


def test_different_images_under_the_same_keys_are_detected(material: AuditInputs, tmp_path: Path) -> None:
    strange = build_synthetic_dataset(tmp_path / "strange", {"train": 8}, size=32, seed=9)
    keys = strange.split("train").keys
    counted = replace(material.split.subset(np.arange(8), "train"), keys=keys)
    assert "of 8 matched by key, 0 have an identical image" in labels_from_dataset(counted, strange.folder).source


def test_folders_without_shared_samples_are_rejected(material: AuditInputs, tmp_path: Path) -> None:
    strange = build_synthetic_dataset(tmp_path / "strange", {"train": 8}, size=32, seed=9).folder
    with pytest.raises(UserError, match="no sample has the same key or image"):
        labels_from_dataset(renamed(material), strange)
    with pytest.raises(UserError, match=r"its classes .*neutral"):
        labels_from_dataset(replace(material.split, classes=tuple("ABCDEFG")), strange)


# User errors


def copy_of(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("audit", "tensorboard")))


def problem(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("adadf_dist.audit: error: ")
    assert line.count("\n") == 1
    return line


def test_incomplete_run_is_rejected(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such run folder" in problem(capsys, str(tmp_path / "nowhere"))
    copy = copy_of(run, tmp_path)
    moved = str(tmp_path / "gone")
    assert "gone" in problem(capsys, str(copy), "--shards", moved)
    shutil.rmtree(copy / "history")
    assert "history/epoch-0001.npz" in problem(capsys, str(copy))
    (copy / "samples.npz").unlink()
    assert "samples.npz: missing" in problem(capsys, str(copy))
    shutil.rmtree(copy / "checkpoints")
    assert "no checkpoint found" in problem(capsys, str(copy))
    assert "is a file" in problem(capsys, str(copy / "config.yaml"))


def test_different_dataset_is_rejected(
    run: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(run, tmp_path)
    other = run_build("folder", tmp_path / "other", "--root", drawn.parent / "tinted", "--validation-fraction", 0.2)
    capsys.readouterr()  # the builder's progress
    assert "training samples differ from the run's" in problem(capsys, str(copy), "--shards", str(other.folder))
    with np.load(copy / "samples.npz") as file:
        arrays = dict(file)
    arrays["labels"][0] = (arrays["labels"][0] + 1) % 7
    np.savez(copy / "samples.npz", **arrays)
    assert "training labels differ from the run's" in problem(capsys, str(copy))


def test_mismatched_classes_are_rejected(
    run: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = Path(shutil.copytree(drawn, tmp_path / "renamed"))
    manifest = renamed / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"happy"', '"delighted"'))
    output = problem(capsys, str(copy_of(run, tmp_path)), "--shards", str(renamed))
    assert "has the classes " in output
    assert "delighted" in output


def test_unfinished_run_is_audited_by_its_completed_epochs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(run, tmp_path)
    (copy / "history" / "epoch-0003.npz").unlink()
    (copy / "history" / "epoch-0003.partial.npz").write_bytes(b"half")
    main([str(copy), "--max-images", "1"])
    assert "the run is at 2 of 3 epochs" in capsys.readouterr().out
    assert load_training_dynamics(copy, len(load_samples(copy).labels)).epochs == 2
    assert "2 of 3 epochs" in (copy / "audit" / "audit.html").read_text()


def test_moved_dataset_is_found_by_option(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = copy_of(run, tmp_path)
    selected = copy / "checkpoints" / "selected.pt"
    content = torch.load(selected, weights_only=True)
    content["config"]["data"]["shards"] = "gone/faces"
    torch.save(content, selected)
    assert "gone/faces: the run's dataset was not found; pass its location as --shards" in problem(capsys, str(copy))


def test_history_of_other_samples_is_rejected(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = copy_of(run, tmp_path)
    three = np.zeros(3)
    np.savez(copy / "history" / "epoch-0002.npz", attention=three, loss=three, correct=three)
    assert "epoch-0002.npz: does not match the run's" in problem(capsys, str(copy))
    (copy / "history" / "epoch-0002.npz").unlink()
    assert "history/epoch-0002.npz is missing" in problem(capsys, str(copy))


# The page


def test_page_needs_no_network(audited: Path) -> None:
    content = (audited / "audit.html").read_text()
    assert "http" not in content
    assert content.count("<script") == content.count("</script") == 2


def dataset_classes(folder: Path) -> dict[str, str]:
    split = open_dataset(folder).split("train")
    return {key: split.classes[label] for key, label in zip(split.keys.tolist(), split.labels, strict=True)}


def test_page_shows_dataset_labels(audited: Path, drawn: Path) -> None:
    """The run's label noise changed a fifth of them."""
    content = (audited / "audit.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', content)[1])  # type: ignore[index]
    classes = dataset_classes(drawn)
    assert "<script>" in data["classes"]
    assert all(data["classes"][face["stored"]] == classes[face["key"]] for face in data["faces"])
    assert any(face["stored"] != face["label"] for face in data["faces"])


@pytest.fixture
def page(audited: Path, tmp_path: Path) -> Iterator[Page]:
    with chromium_page() as opened:
        opened.downloads_to(tmp_path)
        opened.open(audited / "audit.html")
        yield opened


def shown(page: Page) -> list[str]:
    script = "[...document.querySelectorAll('.face:not([hidden]) code')].map((code) => code.textContent)"
    found: list[str] = page.run(script)
    return found


@needs_chromium
def test_page_filters_records_and_exports_decisions(page: Page, audited: Path, drawn: Path, tmp_path: Path) -> None:
    classes = dataset_classes(drawn)
    rows = table(audited)[:60]
    keys = [row["key"] for row in rows]
    assert shown(page) == keys
    loaded = (
        "[...document.querySelectorAll('.face img')].filter((img) => img.complete && img.naturalWidth === 32).length"
    )
    assert page.run(loaded) == 60

    page.press("k")  # the first sample; then the next one has the focus
    page.press("r")
    page.press("ArrowRight")
    page.press("d")
    page.click(".face:nth-child(6) [data-do=relabel]")
    page.press("7")  # the seventh sample gets class 7
    page.press("k")
    page.press("ArrowLeft")
    page.press("u")  # the eighth is undecided again
    wanted = {
        keys[0]: ("keep", ""),
        keys[1]: ("relabel", other_than_label(rows[1])),
        keys[3]: ("drop", ""),
        keys[5]: ("relabel", other_than_label(rows[5])),
        keys[6]: ("relabel", page.run("data.classes[6]")),
    }
    page.open(audited / "audit.html")  # nothing is lost on reload
    assert "5 decided" in page.run("document.getElementById('count').textContent")

    label = rows[0]["label"]
    number = page.run(f"data.classes.indexOf({json.dumps(label)})")
    page.choose("#label", str(number))
    assert shown(page) == [row["key"] for row in rows if row["label"] == label]
    page.choose("#label", "")
    doubted = next(row for row in rows if row["label"] != row["suggested_label"])
    pair = (doubted["label"], doubted["suggested_label"])
    page.choose("#pair", ">".join(str(page.run(f"data.classes.indexOf({json.dumps(name)})")) for name in pair))
    assert shown(page) == [row["key"] for row in rows if (row["label"], row["suggested_label"]) == pair]
    page.choose("#pair", "")
    page.choose("#which", "open")
    assert shown(page) == [key for key in keys if key not in wanted]

    page.click("#export")
    file = tmp_path / "relabel.csv"
    wait_until(lambda: file.exists() and file.stat().st_size)
    with file.open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["key", "decision", "label", "old_label"]
    assert {key: (decision, name) for key, decision, name, old in lines} == wanted
    assert {key: old for key, _, _, old in lines} == {key: classes[key] for key in wanted}
    assert page.problems == []


def other_than_label(row: dict[str, str]) -> str:
    """The likeliest class of a sample besides its label."""
    if row["suggested_label"] != row["label"]:
        return row["suggested_label"]
    shares = {name[7:]: float(share) for name, share in row.items() if name.startswith("target_")}
    return max((share, name) for name, share in shares.items() if name != row["label"])[1]
