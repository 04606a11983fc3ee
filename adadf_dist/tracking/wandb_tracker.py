"""Weights & Biases tracker. Set project, entity, server and offline mode with W&B's own environment variables."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from adadf_dist.config.load import to_dict
from adadf_dist.config.schema import Config
from adadf_dist.files.atomic import write_text

PROJECT = "adadf_dist"
"""Default project name."""
LOGIN_S = 30.0


class Tracker:
    """Logs to one W&B run per run folder; resuming continues the same W&B run."""

    def __init__(self, config: Config) -> None:
        folder = Path(config.out)
        id_file = folder / "wandb.id"
        if not id_file.exists():
            write_text(id_file, secrets.token_hex(4))
        self._run = wandb.init(
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            project=wandb.setup().settings.project or PROJECT,
            name=folder.name,
            dir=folder,
            config=to_dict(config),
            allow_val_change=True,
            settings=wandb.Settings(console="off", init_timeout=LOGIN_S),
        )
        for section in ("train", "epoch"):  # W&B's own step cannot decrease, but that of a resumed run can
            self._run.define_metric(f"{section}/*", step_metric=f"{section}/step")

    def add(self, section: str, values: Mapping[str, float], step: int) -> None:
        named = {f"{section}/{name}": value for name, value in values.items()}
        self._run.log({**named, f"{section}/step": step})

    def log_result(self, result: Mapping[str, Any]) -> None:
        self._run.summary.update({"result": dict(result)})

    def close(self, state: str) -> None:
        self._run.finish(exit_code=int(state == "failed"))
