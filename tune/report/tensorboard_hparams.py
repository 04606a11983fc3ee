"""Write trials for TensorBoard's HPARAMS tab (`tensorboard --logdir STUDY/trials`): hyperparameters and results.

Each ended trial gets its own event file, so its row has the trial's name. TensorBoard takes the table's columns from
the first file it finds, so every file lists all columns of the study; torch's `add_hparams` lists only those of its
own trial.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Value
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_FAILURE,
    STATUS_SUCCESS,
    Experiment,
    HParamInfo,
    Interval,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.record_writer import RecordWriter

from adadf_dist.files.atomic import atomic_write
from tune.report.axes import Axis, axes_of, label
from tune.study.study import Study
from tune.study.trial import TRIAL_FILE, TrialResult

FILE = "events.out.tfevents.0.hparams"
METRICS = {"accuracy": "best validation accuracy", "epochs": "trained", "test": "test accuracy of the selected epoch"}


def write_hparams(study: Study, outcomes: Sequence[TrialResult]) -> None:
    """Write the event file of every ended trial, unless it is up to date."""
    axes = axes_of(study)
    for outcome in outcomes:
        if outcome.end:
            folder = study.trials.path_of(outcome.trial)
            content = events(study, axes, outcome, (folder / TRIAL_FILE).stat().st_mtime)
            if not (folder / FILE).exists() or (folder / FILE).read_bytes() != content:
                with atomic_write(folder / FILE) as partial:
                    partial.write_bytes(content)


def events(study: Study, axes: Sequence[Axis], outcome: TrialResult, time: float) -> bytes:
    """Return the content of a trial's event file; deterministic. `time`: when it ended, in seconds since the epoch."""
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    writer.write(Event(wall_time=time, file_version="brain.Event:2").SerializeToString())
    for summary in summaries(study, axes, outcome):
        event = Event(wall_time=time, step=0, summary=summary)
        writer.write(event.SerializeToString(deterministic=True))
    return stream.getvalue()


def summaries(study: Study, axes: Sequence[Axis], outcome: TrialResult) -> Iterator[Summary]:
    infos = [MetricInfo(name=MetricName(tag=tag), description=text) for tag, text in METRICS.items()]
    experiment = Experiment(hparam_infos=[hparam_info(axis) for axis in axes], metric_infos=infos)
    yield plugin_summary(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))
    started = SessionStartInfo(hparams=constants(study, axes, outcome), group_name=outcome.trial.name)
    yield plugin_summary(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=started))
    for tag, value in final_metrics(outcome).items():
        yield Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    ended = SessionEndInfo(status=STATUS_FAILURE if outcome.end == "failed" else STATUS_SUCCESS)
    yield plugin_summary(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=ended))


def plugin_summary(tag: str, content: HParamsPluginData) -> Summary:
    content.version = metadata.PLUGIN_DATA_VERSION
    data = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString(deterministic=True)
    )
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=data))])


def constants(study: Study, axes: Sequence[Axis], outcome: TrialResult) -> dict[str, Value]:
    values = study.full_values(outcome.trial)
    return {axis.key: to_proto_value(values[axis.key], data_type(axis)) for axis in axes}


def final_metrics(outcome: TrialResult) -> Mapping[str, float]:
    """Return the trial's metrics that exist."""
    accuracy = outcome.best if outcome.epochs else None
    found = {"accuracy": accuracy, "epochs": float(outcome.epochs), "test": outcome.test}
    return {tag: value for tag, value in found.items() if value is not None}


def hparam_info(axis: Axis) -> HParamInfo:
    """Describe the hyperparameter and its possible values: TensorBoard hides trials outside of them."""
    kind = data_type(axis)
    info = HParamInfo(name=axis.key, type=kind, differs=len(axis.values) > 1)
    if axis.scale == "steps":
        info.domain_discrete.CopyFrom(ListValue(values=[to_proto_value(value, kind) for value in axis.values]))
    else:
        reach = (*axis.values, axis.default)
        info.domain_interval.CopyFrom(Interval(min_value=min(reach), max_value=max(reach)))
    return info


def data_type(axis: Axis) -> int:
    """Return the type of the axis: bool or number if all values are, else string."""
    if all(isinstance(value, bool) for value in axis.values):
        return int(DATA_TYPE_BOOL)
    numbers = all(isinstance(value, (int, float)) for value in axis.values)
    return int(DATA_TYPE_FLOAT64 if numbers else DATA_TYPE_STRING)


def to_proto_value(value: Any, kind: int) -> Value:
    if kind == DATA_TYPE_BOOL:
        return Value(bool_value=value)
    return Value(number_value=value) if kind == DATA_TYPE_FLOAT64 else Value(string_value=label(value))
