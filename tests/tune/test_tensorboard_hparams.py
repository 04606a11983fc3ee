"""TensorBoard's HPARAMS tab of a search, read by TensorBoard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups, metadata

from tests.helpers.studies import HALVING, SPACE, make_study, put, searched
from tune.report.tensorboard_hparams import write_hparams
from tune.study.study import Study


def sessions(study: Study) -> tuple[Any, dict[str, Any]]:
    """The experiment and its session groups by name, as assembled by TensorBoard's server."""
    multiplexer = EventMultiplexer(tensor_size_guidance={"": 100})
    multiplexer.AddRunsFromDirectory(str(study.trials.path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(study.trials.path))
    context = backend_context.Context(TBContext(data_provider=provider))
    asked = api_pb2.ListSessionGroupsRequest(slice_size=1000, allowed_statuses=list(api_pb2.Status.values()))
    groups = list_session_groups.Handler(RequestContext(), context, "", asked).run().session_groups
    experiment = get_experiment.Handler(
        RequestContext(), context, "", api_pb2.GetExperimentRequest(include_metrics=True)
    ).run()
    return experiment, {group.name: group for group in groups}


def test_tensorboard_shows_each_trial_once(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", SPACE, trials=8, halving=HALVING)
    searched(study, halted=[2], failed=[7])
    study.trials.finish(study.sampled(8), "")
    write_hparams(study, study.trials.outcomes())
    experiment, groups = sessions(study)
    assert set(groups) == {f"{number:04d}-seed0" for number in range(8)}, "the eighth has not ended"
    assert {info.name for info in experiment.hparam_infos} == set(SPACE)
    assert [info.name.tag for info in experiment.metric_infos] == ["accuracy", "epochs", "test"]
    for number in range(8):
        name = f"{number:04d}-seed0"
        trial = study.sampled(number) if number else study.default()
        shown = {key: value.string_value or value.number_value for key, value in groups[name].hparams.items()}
        assert shown == pytest.approx(study.full_values(trial))
        (session,) = groups[name].sessions
        assert session.name == name
        assert session.status == (api_pb2.STATUS_FAILURE if number == 7 else api_pb2.STATUS_SUCCESS)
    metrics = {m.name.tag: m.value for m in groups["0002-seed0"].metric_values}
    (halted,) = [o for o in study.trials.outcomes() if o.trial.number == 2]
    assert metrics == {"accuracy": pytest.approx(max(halted.accuracies), rel=1e-6), "epochs": 2}
    assert {m.name.tag for m in groups["0007-seed0"].metric_values} == {"epochs"}


def test_resume_writes_no_trial_twice_and_adds_the_test(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", SPACE, trials=2)
    searched(study)
    write_hparams(study, study.trials.outcomes())
    before = {path: path.stat().st_mtime_ns for path in study.trials.path.rglob("*tfevents*")}
    write_hparams(study, study.trials.outcomes())
    assert {path: path.stat().st_mtime_ns for path in study.trials.path.rglob("*tfevents*")} == before
    assert len(before) == 3

    put(study, study.final_trials({0: {}})[0], [0.4, 0.5])
    write_hparams(study, study.trials.outcomes())
    assert "test" not in {m.name.tag for m in sessions(study)[1]["0000-seed1"].metric_values}
    put(study, replace(study.final_trials({0: {}})[0], test=True), [0.4, 0.5], test=0.515)
    write_hparams(study, study.trials.outcomes())
    folder = study.trials.path_of(study.final_trials({0: {}})[0])
    assert len(list(folder.glob("*tfevents*"))) == 1
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.value for event in events.Scalars("test")] == [pytest.approx(0.515)]
    assert [event.value for event in events.Scalars("accuracy")] == [0.5]
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    assert metadata.parse_session_start_info_plugin_data(content).group_name == "0000-seed1"
