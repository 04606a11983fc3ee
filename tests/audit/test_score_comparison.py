"""The benchmark that compares scores of label errors."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adadf_dist.audit.ranking import score_labels
from adadf_dist.audit.run_data import AuditInputs
from benchmarks.__main__ import main as benchmark
from benchmarks.audit_scores import compare_scores, precision_at, rank_average
from benchmarks.reference_labels import injected_noise
from tests.helpers.audits import copy_run

NAN = float("nan")


@pytest.fixture(scope="module")
def comparison(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of the benchmark that compares scores."""
    file = tmp_path_factory.mktemp("scores") / "scores.json"
    benchmark(["audit", str(run), "--json", str(file)])
    return file


def test_rank_average_shares_ties_and_centers_missing_scores() -> None:
    assert rank_average(np.array([3.0, 1.0, 2.0])).tolist() == pytest.approx([1, 0, 0.5])
    assert rank_average(np.array([1.0, 1.0, 5.0])).tolist() == pytest.approx([0.25, 0.25, 1])
    assert rank_average(np.array([1.0, NAN, 5.0])).tolist() == pytest.approx([0, 0.5, 1])


def test_precision_averages_over_orders_of_ties() -> None:
    random = np.random.default_rng(1)
    wrong = random.random(200) < 0.4
    distinct = random.permutation(200).astype(float)
    for k in (1, 7, 200):
        first = sorted(range(200), key=lambda sample: -distinct[sample])[:k]
        assert precision_at(distinct, wrong, k) == pytest.approx(np.mean([wrong[sample] for sample in first]))
    tied = random.integers(0, 4, 200).astype(float)
    precisions = []
    for _ in range(4000):
        order = random.permutation(200)
        precisions.append(wrong[order[np.argsort(-tied[order], kind="stable")][:30]].mean())
    assert np.isnan(precision_at(tied, wrong, 0))
    assert precision_at(tied, wrong, 30) == pytest.approx(np.mean(precisions), abs=4 * np.std(precisions) / 4000**0.5)


def test_injected_noise_is_ranked_better_than_chance(inputs: AuditInputs, comparison: Path) -> None:
    wrong = inputs.faces.labels != inputs.faces.true_labels
    cards = json.loads(comparison.read_text())
    rows = {row["name"]: row for row in cards[0]["scores"]}
    own = rows["**suspicion**"]
    both = (inputs.answers.target_probs + inputs.answers.auxiliary_probs) / 2
    given = np.array([1 - both[sample, label] for sample, label in enumerate(inputs.labels)])
    assert own["auc"] == pytest.approx(roc_auc_score(wrong, given))
    count = int(wrong.sum())
    assert cards[0]["wrong"] == count == round(0.2 * len(wrong))
    # four standard errors above 0.5, the expectation of an uninformative score (Mann and Whitney)
    assert own["auc"] > 0.5 + 4 * ((len(wrong) + 1) / (12 * count * (len(wrong) - count))) ** 0.5
    assert own["at_changed"] > 0.2 + 4 * (0.2 * 0.8 / count) ** 0.5
    assert own["at_changed"] == pytest.approx(wrong[np.argsort(-given, kind="stable")[:count]].mean())
    assert {"attention, mean", "loss, mean", "loss, last epoch", "forgetting"} < set(rows)


def test_table_includes_confident_learning(comparison: Path) -> None:
    pytest.importorskip("cleanlab", reason="the optional extra is not installed")
    card = json.loads(comparison.read_text())[0]
    names = [row["name"] for row in card["scores"]]
    assert {"confident learning, label quality", "confident learning, issues first"} < set(names)
    assert "out-of-sample" in card["remarks"][0]


def test_the_benchmark_prints_a_table_per_source_of_labels(
    run: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark(["audit", str(run), "--reference-labels", str(dataset)])
    output = capsys.readouterr().out
    assert len(re.findall(r"\| \*\*suspicion\*\* \| [01]\.\d{3} \| [\d.]+% \|", output)) == 2
    assert "| attention, mean | 0." in output
    assert f"labels of {dataset.name}: " in output and "data.label_noise_rate 0.2: " in output


def test_the_benchmark_needs_known_errors(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = copy_run(run, tmp_path)
    with np.load(copy / "samples.npz") as file:
        arrays = dict(file)
    np.savez(copy / "samples.npz", **{**arrays, "true_labels": arrays["labels"]})
    with pytest.raises(SystemExit):
        benchmark(["audit", str(copy)])
    assert "trained without label noise; pass --reference-labels DIR" in capsys.readouterr().err


def test_cleanlab_missing_is_said(inputs: AuditInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    output = compare_scores(score_labels(inputs), injected_noise(inputs)).to_markdown()
    assert "| confident learning" not in output
    assert "pip install 'adadf_dist[benchmarks]'" in output
