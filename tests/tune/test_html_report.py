"""The page of a search, as a browser receives it."""

from __future__ import annotations

import base64
import html.parser
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from scipy import stats

from adadf_dist.errors import UserError
from adadf_dist.metrics.intervals import Score
from tests.helpers.studies import HALVING, SPACE, make_study, put, searched
from tune.report.html_report import write_page
from tune.report.importance import importance
from tune.search import search, write_search_page
from tune.study.comparable import match_budgets
from tune.study.selection import Selection, select_winner
from tune.study.study import Study
from tune.study.trial import Trial


class Page(html.parser.HTMLParser):
    """What a browser would load, the text it would show, and the figures it would draw."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.cells: list[str] = []
        self.scripts: list[str] = []
        self.style = ""
        self.text = ""
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag if tag in ("script", "style") else ""
        self.loads += [value for name, value in attrs if name in ("src", "href", "data", "action", "srcset") and value]
        if tag == "script":
            self.scripts.append("")
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.style += data
        else:
            self.text += data
            if self.cells:
                self.cells[-1] += data

    def figure(self, name: str) -> list[dict[str, Any]] | None:
        """The traces of a figure, or None if there is none."""
        for script in self.scripts:
            found = re.search(rf'Plotly\.newPlot\(\s*"{name}",\s*', script)
            if found:
                traces: list[dict[str, Any]] = json.JSONDecoder().raw_decode(script, found.end())[0]
                return traces
        return None


def numbers(value: Any) -> list[float]:
    """An array of a figure, which plotly may have encoded."""
    if isinstance(value, dict):
        return [float(x) for x in np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])]
    return [math.nan if x is None else float(x) for x in value]


def final(study: Study, accuracies: dict[int, list[float]]) -> Selection:
    """Trials on fresh seeds; the first of the default is tested."""
    values = {number: study.sampled(number).values if number else {} for number in accuracies}
    for trial in study.final_trials(values):
        put(study, trial, [accuracies[trial.number][trial.seed - study.base.seed - 1]])
    put(study, replace(study.final_trials({0: {}})[0], test=True), [accuracies[0][0]], test=0.515)
    return select_winner({number: [Score(value, 10**13) for value in values] for number, values in accuracies.items()})


def test_page_shows_the_whole_search_and_loads_nothing(tmp_path: Path) -> None:
    study = make_study(tmp_path / "<script>study", SPACE, halving=HALVING)
    searched(study, halted=[2, 3, 5], failed=[7])
    choice = final(study, {0: [0.60, 0.61, 0.60], 4: [0.65, 0.66, 0.652], 9: [0.60, 0.59, 0.63]})
    outcomes = study.trials.outcomes()
    page = Page(write_page(study, outcomes, choice))

    assert page.loads == []
    assert page.text.count("<script>study") == 2, "title and heading, escaped"
    assert "font" in page.style and "url(" not in page.style and "@import" not in page.style
    assert not [s for s in page.scripts if not s.strip()], "a script from elsewhere"
    assert {o.trial.name for o in outcomes} <= set(page.cells) and len(outcomes) == 50
    assert "Configuration 4 is significantly better than the default (95%, seeds and samples)." in page.text
    assert "51.50%" in page.text
    assert "failed: loss: is not finite <b>at</b> step 3" in page.text
    assert not list(study.folder.glob("*.partial"))


def test_points_and_error_bars_equal_the_scores(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", SPACE, halving=HALVING)
    searched(study, halted=[2, 3], failed=[7])
    accuracies = {0: [0.60, 0.61, 0.60], 4: [0.65, 0.66, 0.652], 9: [0.60, 0.59, 0.63]}
    choice = final(study, accuracies)
    traces = Page(write_page(study, study.trials.outcomes(), choice)).figure("scatter")
    assert traces is not None

    def of(name: str, axis: str = "x") -> dict[str, Any]:
        (found,) = [t for t in traces if t["name"] == name and t["xaxis"] == axis]
        return found

    went, halted = of("finished"), of("stopped early")
    assert len(numbers(went["y"])) == 37 and len(numbers(halted["y"])) == 2
    assert went["marker"]["symbol"] == "circle" and halted["marker"]["symbol"] == "circle-open"
    assert (numbers(of("default")["x"]), numbers(of("default")["y"])) == ([0.2], [0.6])
    names = re.findall(r"<b>(\d+)-seed0</b>", " ".join(went["text"]))
    assert numbers(went["x"]) == [study.sampled(int(number)).values["loss.lambda_min"] for number in names]

    for name, order in (("finalists on held-out seeds, mean and 95% CI", [4, 9]), ("default on held-out seeds", [0])):
        shown, bars = of(name), of(name)["error_y"]
        values = [accuracies[number] for number in order]
        halves = [stats.t.ppf(0.975, len(v) - 1) * stdev(v) / math.sqrt(len(v)) for v in values]
        trials = [study.sampled(number) if number else study.default() for number in order]
        assert numbers(shown["x"]) == [study.full_values(trial)["loss.lambda_min"] for trial in trials]
        assert numbers(shown["y"]) == pytest.approx([fmean(v) for v in values])
        assert numbers(bars["array"]) == pytest.approx(halves)
        assert numbers(bars["arrayminus"]) == pytest.approx(halves)
    conditional = [n for n in range(1, 41) if study.sampled(n).values.get("optimizer.schedule") == "cosine"]
    assert len(numbers(of("finished", "x5")["x"])) == len(set(conditional) - {2, 3, 7})
    assert 5 < len(conditional) < 35


def test_important_parameter_is_found(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", SPACE, halving=HALVING)
    searched(study, halted=range(10, 30))
    outcomes = study.trials.outcomes()
    compared = match_budgets(study, outcomes)
    assert compared.epochs == 2
    assert [round(a + 0.1, 9) for a in compared.accuracies[1:]] == [
        round(max(o.accuracies[:2]) + 0.1, 9) for o in outcomes[1:]
    ]
    found = importance(study, compared)
    assert found.trials == 40
    assert next(iter(found.shares)) == "optimizer.lr" and found.shares["optimizer.lr"] > 0.6
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found == importance(study, compared)
    traces = Page(write_page(study, outcomes, None)).figure("importance")
    assert traces is not None and traces[0]["y"][-1] == "optimizer.lr"


def test_important_category_is_found(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", SPACE)
    for number in range(1, 41):
        trial = study.sampled(number)
        put(study, trial, [0.1, 0.2, 0.3, 0.7 if trial.values["optimizer.schedule"] == "cosine" else 0.6])
    shares = importance(study, match_budgets(study, study.trials.outcomes())).shares
    assert next(iter(shares)) == "optimizer.schedule" and shares["optimizer.schedule"] > 0.6


def test_halted_trials_do_not_distort_importance(tmp_path: Path) -> None:
    """Accuracy after two epochs is noise, and trials with a large lambda_min were halted: that is not importance."""
    study = make_study(tmp_path / "study", SPACE, halving=HALVING)
    noise = np.random.default_rng(1)
    for number in range(1, 41):
        trial = study.sampled(number)
        start = [float(value) for value in 0.5 + 0.01 * noise.random(2)]
        halted = trial.values["loss.lambda_min"] > 0.25
        put(study, trial, start if halted else [*start, 0.8, 0.8], "pruned" if halted else "finished")
    compared = match_budgets(study, study.trials.outcomes())
    assert importance(study, compared).shares["loss.lambda_min"] < 0.6
    misled = compared._replace(accuracies=tuple(outcome.best for outcome in compared.outcomes))
    assert importance(study, misled).shares["loss.lambda_min"] > 0.9, "what comparing unlike epochs would say"


def test_parallel_coordinates_show_every_trial(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", SPACE)
    searched(study, failed=[7])
    traces = Page(write_page(study, study.trials.outcomes(), None)).figure("parallel")
    assert traces is not None
    lambda_min, rate, threshold, schedule, warmup, accuracy = traces[0]["dimensions"]
    drawn = [study.default(), *(study.sampled(n) for n in range(1, 41) if n != 7)]
    assert sorted(numbers(lambda_min["values"])) == sorted(study.full_values(t)["loss.lambda_min"] for t in drawn)
    rates = sorted(math.log10(study.full_values(t)["optimizer.lr"]) for t in drawn)
    assert sorted(numbers(rate["values"])) == pytest.approx(rates)
    assert rate["ticktext"][0] == "0.0001" and numbers(rate["tickvals"])[0] == pytest.approx(-4)
    assert threshold["ticktext"] == ["1", "3", "5", "10"], "in order, the default's 3 among them"
    assert schedule["ticktext"] == ["exponential", "cosine"]
    assert warmup["ticktext"] == ["0", "10", "100"], "without its condition it is at its default"
    outcomes = {o.trial.name: o for o in study.trials.outcomes()}
    assert numbers(accuracy["values"]) == sorted(outcomes[t.name].best for t in drawn)


def test_two_trials_give_no_importance(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", SPACE, trials=2)
    searched(study)
    page = Page(write_page(study, study.trials.outcomes(), None))
    assert "still running" in page.text
    assert "Not computed: needs at least 10 comparable trials, found 2." in page.text
    assert page.figure("importance") is None and page.figure("parallel") is not None


def test_constant_parameter_has_no_importance(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}})
    searched(study)
    page = Page(write_page(study, study.trials.outcomes(), None))
    assert "Not computed: the space has only one hyperparameter, optimizer.lr" in page.text
    traces = page.figure("scatter")
    assert traces is not None and {t["xaxis"] for t in traces} == {"x"}


def test_page_exists_before_the_first_epoch(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", SPACE)
    assert "still running" in Page(write_page(study, [], None)).text
    study.trials.begin(study.default())
    page = Page(write_page(study, study.trials.outcomes(), None))
    assert "0000-seed0" in page.cells and page.figure("scatter") is None


@pytest.mark.parametrize("missing", ["plotly", "optuna"])
def test_missing_plot_packages_are_reported(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", SPACE)
    for name in [
        m
        for m in sys.modules
        if m.partition(".")[0] == missing or m in ("tune.report.figures", "tune.report.importance")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"search.html not written .*{missing}.*pip install 'adadf_dist\[tune\]'"):
        write_page(study, [], None)
    write_search_page(study, None)
    output = capsys.readouterr().err
    assert output.startswith("warning: search.html not written") and output.count("\n") == 1
    assert not (study.folder / "search.html").exists()


class FakeRunner:
    """A runner that writes folders without training; configuration 3 is the better one."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def search(self, study: Study, output: Callable[[], None]) -> None:
        self.run(study, [study.default(), *(study.sampled(n) for n in range(1, study.options.trials + 1))], output)

    def run(self, study: Study, trials: Sequence[Trial], output: Callable[[], None]) -> None:
        path = study.folder / "search.html"
        self.pages.append(Page(path).text if path.exists() else "")
        for trial in trials:
            accuracy = (0.7 if trial.number == 3 else 0.6) + 0.001 * (trial.seed % 2)
            put(study, trial, [accuracy], test=0.6123 if trial.test else None)
        output()


def test_search_updates_its_page_after_each_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study", SPACE, trials=12)
    runner = FakeRunner()
    assert search(study, runner).winner == 3
    before, while_finals, _ = runner.pages
    assert before == "" and "still running" in while_finals
    text = Page(study.folder / "search.html").text
    assert (
        "Configuration 3 is significantly better than the default (95%, seeds and samples)." in text
        and "61.23%" in text
    )
    assert capsys.readouterr().out.splitlines()[-1].startswith("python -m adadf_dist.train --config ")
