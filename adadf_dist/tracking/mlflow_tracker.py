"""MLflow tracker. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME set the server and the experiment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME

from adadf_dist.config.keys import flatten
from adadf_dist.config.load import to_dict
from adadf_dist.config.schema import Config
from adadf_dist.files.atomic import write_text

EXPERIMENT = "adadf_dist"
"""Default experiment name."""
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Tracker:
    """Logs to one MLflow run per run folder; resuming continues the same MLflow run."""

    def __init__(self, config: Config) -> None:
        folder = Path(config.out)
        self._client = MlflowClient()
        id_file = folder / "mlflow.id"
        if id_file.exists():
            self._id = id_file.read_text(encoding="utf-8")
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(self._experiment(), run_name=folder.name).info.run_id
        write_text(id_file, self._id)
        values = [Param(key, str(value)) for key, value in flatten(to_dict(config))]
        for first in range(0, len(values), 100):  # batch size limit of the server
            self._client.log_batch(self._id, params=values[first : first + 100])

    def _experiment(self) -> str:
        name = MLFLOW_EXPERIMENT_NAME.get() or EXPERIMENT  # type: ignore[no-untyped-call]
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def add(self, section: str, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(f"{section}/{name}", value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Log the numeric values of the result as metrics; the other values are stored only in the run folder."""
        now = int(1000 * time.time())
        numbers = {key: v for key, v in flatten(result) if isinstance(v, (int, float)) and not isinstance(v, bool)}
        metrics = [Metric(f"result/{key.replace('.', '/')}", float(v), now, 0) for key, v in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, state: str) -> None:
        self._client.set_terminated(self._id, STATUS[state])
