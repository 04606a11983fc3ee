"""The paper's tables as grids: rows, published numbers, and results."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy import stats

from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError
from tests.helpers.fake_trainer import InProcessRunner, Stopped, base, noise, train_by
from tune.paper.grids import GRIDS, config_id, configurations, rows_of
from tune.paper.published import PAPER_RESULTS
from tune.study.study import STUDY_FILE, start
from tune.study.trial import DEFAULT
from tune.tables import make_tables, plan

PAPER = Path(__file__).parents[3] / "shared" / "reference" / "paper.txt"
SUPERVISION_POINTS = {"one_hot": 0, "label": 1, "class": 2, "fused": 3}


def better_fused(config: Config, epoch: int) -> float:
    return 0.6 + 0.01 * SUPERVISION_POINTS[config.loss.supervision] + 0.0005 * noise(config)


def make(folder: Path, *names: str, seeds: int = 3, epochs: int = 2) -> str:
    command = [*names, "--preset", "rafdb", "--epochs", str(epochs), "--out", str(folder), "--num-seeds", str(seeds)]
    study, options, preset = plan(command)
    start(study, resume=(folder / STUDY_FILE).exists())
    make_tables(study, options.tables, preset, InProcessRunner())
    return (folder / f"{names[0]}.md").read_text()


@pytest.mark.parametrize("name", list(PAPER_RESULTS))
def test_every_published_number_has_a_row(name: str) -> None:
    labels = {row.label for row in GRIDS[name].rows}
    for figures in PAPER_RESULTS[name].values():
        assert set(figures) <= labels


def test_published_numbers_equal_the_paper() -> None:
    """Read from the paper's own tables, in their order."""
    if not PAPER.exists():
        pytest.skip("the paper's text is not in this checkout")
    text = PAPER.read_text()
    sweeps = text[text.index("4.3 Parameter Analysis") : text.index("In this section, we aim")]
    found = re.findall(r"^(RAF-DB|AffectNet|SFEW) \| (.*) \|$", sweeps, re.MULTILINE)
    names = ["lambda_min", "threshold", "epoch_threshold"]
    presets = {"RAF-DB": "rafdb", "AffectNet": "affectnet7", "SFEW": "sfew"}
    assert len(found) == 9
    for place, (dataset, cells) in enumerate(found):
        figures = [float(cell.strip("% ")) for cell in cells.split("|")]
        assert list(PAPER_RESULTS[names[place // 3]][presets[dataset]].values()) == figures
    ablation = text[text.index("4.4 Distribution Analysis") : text.index("To separately evaluate")]
    rows = [re.findall(r"\d\d\.\d\d", line) for line in ablation.splitlines() if "✓" in line]
    columns = list(zip(*rows, strict=True))
    for preset, column in zip(("rafdb", "affectnet7", "sfew"), columns, strict=True):
        assert list(PAPER_RESULTS["ablation"][preset].values()) == [float(figure) for figure in column]
    for backbone, pattern in (
        ("resnet18", r"Ours \(ResNet18\) \| (.*) \|"),
        ("resnet50", r"Ours \(ResNet50\) \| (.*) \|"),
    ):
        cells = re.findall(pattern, text)[0].split("|")
        assert [PAPER_RESULTS["backbone"][p][backbone] for p in ("rafdb", "affectnet7", "sfew")] == [
            float(c) for c in cells
        ]
    noisy = dict(re.findall(r"Ours \| ResNet18 \| (\d\d) \| (\d\d\.\d\d)", text))
    for share, figure in noisy.items():
        assert PAPER_RESULTS["noise"]["rafdb"][f"Ada-DF, {share} %"] == float(figure)
    assert len(noisy) == 3


def test_run_in_several_tables_is_trained_once() -> None:
    config = base()  # the package's defaults: the recipe for RAF-DB
    shared = [
        ("lambda_min", "0.2"),
        ("threshold", "0.7"),
        ("epoch_threshold", "1"),
        ("ablation", "fused distributions"),
    ]
    for name, label in [*shared, ("backbone", "resnet18"), ("noise", "Ada-DF, 0 %")]:
        row = next(row for row in rows_of(config, name) if row.label == label)
        assert config_id(config, row) == DEFAULT
    every = configurations(config)
    # three sweeps of five and an ablation of four share the default; one backbone; noise adds three of each method
    assert len(every) == 1 + 3 * 4 + 3 + 1 + 6
    assert len({str(values) for values in every}) == len(every)


def test_sweep_includes_the_default_value() -> None:
    rows = rows_of(base(loss__epoch_threshold=2), "epoch_threshold")
    assert [row.label for row in rows] == ["1", "2", "3", "5", "7", "9"]


def test_table_equals_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_by(monkeypatch, better_fused)
    monkeypatch.setattr("tune.study.trial.read_test", lambda folder: {})  # a dataset without a test split
    text = make(tmp_path, "ablation")
    accuracies: dict[str, list[float]] = {}
    for seed in range(3):
        for name in SUPERVISION_POINTS:
            config = base(seed=seed, epochs=2, loss__supervision=name)
            accuracies.setdefault(name, []).append(100 * better_fused(config, 2))
    labels = ["single label", "label distributions", "class distributions", "fused distributions"]
    rows: dict[str, dict[str, str]] = {
        row["supervision"]: row for row in csv.DictReader((tmp_path / "ablation.csv").read_text().splitlines())
    }
    for label, name in zip(labels, SUPERVISION_POINTS, strict=True):
        values = accuracies[name]
        interval = stats.t.interval(0.95, 2, fmean(values), stats.sem(values))
        row = rows[label]
        assert [float(row[f"validation_seed{seed}"]) for seed in range(3)] == pytest.approx(values, abs=1e-4)
        assert float(row["mean"]) == pytest.approx(fmean(values), abs=1e-4)
        assert (float(row["low"]), float(row["high"])) == pytest.approx(interval, abs=1e-4)
        assert (
            f"| {label} | {fmean(values):.2f} | {interval[0]:.2f} to {interval[1]:.2f} | {fmean(values) - 1:.2f} |"
            in text
        )
        if name != "one_hot":
            paired = stats.ttest_rel(values, accuracies["one_hot"]).confidence_interval(1 - 0.05 / 3)
            assert float(row["difference_low"]) == pytest.approx(paired.low, abs=1e-4)
            assert float(row["difference_high"]) == pytest.approx(paired.high, abs=1e-4)
    assert "Significantly different: label distributions, class distributions, fused distributions." in text
    assert "| 88.71 |" in text and "paper (RAF-DB), %" in text
    assert (tmp_path / "ablation.svg").stat().st_size > 5000


def test_every_run_is_tested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train_by(monkeypatch, better_fused)
    make(tmp_path, "lambda_min")
    assert len(trainer.tested) == len(set(trainer.tested)) == 15
    make(tmp_path, "lambda_min", "threshold")
    assert len(trainer.tested) == len(set(trainer.tested)) == 15 + 12
    make(tmp_path, "lambda_min", "threshold", seeds=4)
    assert len(trainer.tested) == len(set(trainer.tested)) == 27 + 9
    assert len(trainer.epochs) == len(set(trainer.epochs)) == 36 * 2
    assert not list(tmp_path.glob("trials/*/checkpoints"))


def test_stopped_tables_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_by(monkeypatch, better_fused)
    whole = make(tmp_path / "whole", "noise")

    def until(config: Config, epoch: int) -> float:
        if len(trainer.epochs) == 21:
            raise Stopped
        return better_fused(config, epoch)

    trainer = train_by(monkeypatch, until)
    with pytest.raises(Stopped):
        make(tmp_path / "cut", "noise")
    later = train_by(monkeypatch, better_fused)
    assert make(tmp_path / "cut", "noise") == whole
    assert len(trainer.epochs) + len(later.epochs) == 8 * 3 * 2
    with pytest.raises(UserError, match=r"base\.epochs was 2 and is now 3"):
        make(tmp_path / "cut", "noise", epochs=3)


def test_failed_row_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(config: Config, epoch: int) -> float:
        if config.loss.lambda_min == 0.3 and config.seed == 1:
            raise UserError("the loss is not finite")
        return better_fused(config, epoch)

    train_by(monkeypatch, failing)
    text = make(tmp_path, "lambda_min")
    assert "- 0.3: the loss is not finite" in text
    assert text.count("| 0.") == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone", "--model.pretrained", "msceleb.pth"], "msceleb.pth contains weights of one backbone"),
        (["ablation", "--num-seeds", "1"], "--num-seeds 1"),
        (["ablation", "--evaluation.protocol", "paper"], "evaluation.protocol"),
    ],
)
def test_invalid_command_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan([*words, "--preset", "rafdb"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_table_is_named(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        plan(["table1", "--preset", "rafdb"])
    assert "lambda_min" in capsys.readouterr().err
