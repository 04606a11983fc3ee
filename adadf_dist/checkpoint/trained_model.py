"""A trained network, opened again: from a run folder or a checkpoint, with all that its use needs."""

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
    """What a checkpoint says of the network that evaluation, selection and export see."""

    model: DualBranch
    """In evaluation mode, on the CPU; the average of the weights where the run kept one."""
    preprocessing: Preprocessing
    """From a stored face to the network's input; the class names in the order of the logits."""
    config: Config
    """The run's, its `auto` settled."""
    class_distributions: Tensor
    """[C, C] float64, D of eq 5 as the epoch left it; row c is class c's."""
    path: Path
    """The checkpoint."""
    epoch: int
    """Epochs that it has been trained."""
    records: tuple[Mapping[str, Any], ...] = ()
    """What was measured of each of these epochs, as in metrics.jsonl."""
    data: TrainedOn | None = None
    """None where an older version, or an import, recorded none."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.preprocessing.classes


def load_trained_model(path: Path | str, which: CheckpointChoice = "selected") -> TrainedModel:
    """The network of a checkpoint file, or of a run folder's selected or last checkpoint. Raises `UserError`."""
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
    """The checkpoint that a path means. Raises `UserError` where there is none, saying what there is."""
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
        raise UserError(f"{path}: no epoch is finished yet, so none is selected; wait for it, or name {saved[-1]}")
    raise UserError(f"{path}: holds no checkpoint, so is no run folder of adadf_dist.train, or has only begun")


class TrainedPredictor(InferenceModel):
    """A trained network at work on a device, in the precision that its run evaluated in unless told otherwise."""

    def __init__(
        self, trained: TrainedModel, device: torch.device, precision: Literal["fp32", "bf16"] | None = None
    ) -> None:
        super().__init__(device, (precision or trained.config.runtime.precision) == "bf16")
        self.model: DualBranch = trained.model.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]

    @property
    def eval_model(self) -> DualBranch:
        return self.model
