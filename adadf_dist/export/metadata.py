"""Metadata of exported files, as string keys and values, which all formats support.

adadf_dist          version that wrote the file
classes             JSON list of class names in the order of the logits
preprocessing       JSON object with all fields of `Preprocessing`
model               JSON object with the run's `model` settings, except the origin of the initial weights
supervision         the run's `loss.supervision`; one_hot: the baseline, whose attention head is unused
checkpoint_sha256   SHA-256 of the checkpoint file
epoch               number of training epochs
input, output       human-readable: names, shapes, color order, scale
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import adadf_dist
from adadf_dist.checkpoint.trained_model import TrainedModel
from adadf_dist.config.load import ConfigLayer, build_config, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.errors import UserError
from adadf_dist.export.target_network import INPUT, OUTPUT

REQUIRED_KEYS = ("adadf_dist", "classes", "preprocessing", "model", "supervision", "checkpoint_sha256", "epoch")
PROVENANCE_KEYS = ("pretrained", "freeze", "cached_augmentations")
"""Keys of the `model` settings to exclude: they concern training only, and may contain local paths."""


class ExportMetadata(NamedTuple):
    """Metadata stored with the weights."""

    preprocessing: Preprocessing
    model: Mapping[str, object]
    supervision: str
    checkpoint_sha256: str
    epoch: int
    version: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.preprocessing.classes

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata as strings, with the keys listed in the module docstring."""
        size, values = self.preprocessing.image_size, self.preprocessing.to_dict()
        mean, std = ([round(value, 6) for value in values[name]] for name in ("mean", "std"))
        return {
            "adadf_dist": self.version,
            "classes": json.dumps(self.classes, ensure_ascii=False),
            "preprocessing": json.dumps(values, ensure_ascii=False),
            "model": json.dumps(dict(self.model)),
            "supervision": self.supervision,
            "checkpoint_sha256": self.checkpoint_sha256,
            "epoch": str(self.epoch),
            "input": f"{INPUT}: float32 [n, 3, {size}, {size}], RGB, (pixel / 255 - {mean}) / {std} by channel",
            "output": f"{OUTPUT}: float32 [n, {len(self.classes)}]; softmax over the classes gives probabilities",
        }

    @staticmethod
    def from_metadata(values: Mapping[str, str], path: Path) -> ExportMetadata:
        """Parse the metadata. Raises `UserError` for a file that `adadf_dist.export` did not write."""
        missing = [name for name in REQUIRED_KEYS if name not in values]
        if missing:
            raise UserError(f"{path}: metadata field {missing[0]} is missing; not written by adadf_dist.export")
        try:
            preprocessing = Preprocessing.from_dict(json.loads(values["preprocessing"]))
            model, epoch = json.loads(values["model"]), int(values["epoch"])
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: corrupt metadata ({error}); export again") from None
        if not isinstance(model, dict) or list(preprocessing.classes) != json.loads(values["classes"]):
            raise UserError(f"{path}: inconsistent metadata; export again")
        rest = values["supervision"], values["checkpoint_sha256"], epoch, values["adadf_dist"]
        return ExportMetadata(preprocessing, model, *rest)

    def config(self, path: Path) -> Config:
        """Return a configuration that rebuilds the network. Raises `UserError` if this version does not support it."""
        values = {
            "model": self.model,
            "loss": {"supervision": self.supervision},
            "data": {"image_size": self.preprocessing.image_size},
        }
        return build_config([ConfigLayer(str(path), values)])


def make_metadata(trained: TrainedModel) -> ExportMetadata:
    section = to_dict(trained.config)["model"]
    assert isinstance(section, dict)
    model = {key: value for key, value in section.items() if key not in PROVENANCE_KEYS}
    with trained.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    supervision = trained.config.loss.supervision
    return ExportMetadata(trained.preprocessing, model, supervision, digest, trained.epoch, adadf_dist.__version__)
