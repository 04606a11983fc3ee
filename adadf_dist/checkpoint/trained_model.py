"""Load a trained network from a run folder or a checkpoint, with everything needed to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from adadf_dist.checkpoint.manager import CHECKPOINT_PATTERN
from adadf_dist.checkpoint.storage import read_checkpoint
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config
from adadf_dist.data.identity import TrainedOn
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.engine.base import init_model, load_model
from adadf_dist.engine.inference import InferenceModel
from adadf_dist.errors import UserError
from adadf_dist.method.model import DualBranch

CheckpointChoice = Literal["selected", "last"]


class TrainedModel(NamedTuple):
    """The trained network of a checkpoint, with its metadata."""

    model: DualBranch
    """Network in evaluation mode, on the CPU. If the run used EMA, it has the averaged weights."""
    preprocessing: Preprocessing
    """Preprocessing from stored images to network input, and the class names in the order of the logits."""
    config: Config
    """Configuration of the run, with `auto` resolved."""
    class_distributions: Tensor
    """[C, C] float64, class distributions D (eq 5) at the end of the epoch; row c is the distribution of class c."""
    path: Path
    """Checkpoint file that the network was loaded from."""
    epoch: int
    """Number of trained epochs."""
    records: tuple[Mapping[str, Any], ...] = ()
    """One record per trained epoch, as in metrics.jsonl."""
    data: TrainedOn | None = None
    """Identity of the training data; None if the checkpoint has imported weights or an older version wrote it."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.preprocessing.classes


def load_trained_model(path: Path | str, which: CheckpointChoice = "selected") -> TrainedModel:
    """Load a trained network from a checkpoint file or a run folder.

    Raises `UserError` if there is no checkpoint or it is not valid.

    `which`: checkpoint to choose if `path` is a run folder.
    """
    file = find_checkpoint(Path(path), which)
    content = read_checkpoint(file)
    config = build_config([ConfigLayer(str(file), content["config"])])
    preprocessing = Preprocessing.from_dict(content["preprocessing"])
    model = init_model(config, len(preprocessing.classes))
    load_model(model, content["engine"].get("average", content["engine"]["model"]))
    distributions = content["class_distributions"]["distributions"]
    progress = content["progress"]
    return TrainedModel(
        model=model.eval(),
        preprocessing=preprocessing,
        config=config,
        class_distributions=distributions,
        path=file,
        epoch=progress["epoch"],
        records=tuple(progress["epochs"]),
        data=TrainedOn.from_state(content["data"]) if "data" in content else None,
    )


def find_checkpoint(path: Path, which: CheckpointChoice) -> Path:
    """Return the checkpoint file for `path`, a run folder or a checkpoint file. Raises `UserError` if there is none."""
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"{path}: no such run folder or checkpoint")
    folder = path / "checkpoints"
    saved = sorted(file for file in folder.glob("checkpoint-*.pt") if CHECKPOINT_PATTERN.fullmatch(file.name))
    found = saved[-1:] if which == "last" else [file for file in (folder / "selected.pt",) if file.is_file()]
    if found:
        return found[0]
    if saved:
        raise UserError(f"{path}: no epoch has finished yet; wait until one has, or pass {saved[-1]}")
    raise UserError(
        f"{path}: no checkpoint found; either this is not a run folder of adadf_dist.train, or no checkpoint has been "
        "written yet"
    )


class TrainedPredictor(InferenceModel):
    """Trained network on a device, ready for inference. `precision` defaults to that of the training run."""

    def __init__(
        self, trained: TrainedModel, device: torch.device, precision: Literal["fp32", "bf16"] | None = None
    ) -> None:
        super().__init__(device, (precision or trained.config.runtime.precision) == "bf16")
        self.model: DualBranch = trained.model.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]

    @property
    def eval_model(self) -> DualBranch:
        return self.model
