"""What an exported file says of itself: names and text, as all kinds of files can carry them.

adadf_dist          version that wrote the file
classes             JSON list of names in the order of the logits
preprocessing       JSON object, all of `Preprocessing`
model               JSON object, the run's section `model` but for where its first weights came from
supervision         the run's `loss.supervision`; one_hot: the baseline, whose attention head rests
checkpoint_sha256   of the checkpoint's bytes
epoch               epochs that it was trained
input, output       for people: names, shapes, colours, scale
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
PROVENANCE_KEYS = ("pretrained", "freeze")
"""Keys of the section `model` that say how training began: they rebuild nothing, and may hold a path of the user's."""


class ExportMetadata(NamedTuple):
    """All that goes along with the weights."""

    preprocessing: Preprocessing
    model: Mapping[str, object]
    supervision: str
    checkpoint_sha256: str
    epoch: int
    version: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the logits."""
        return self.preprocessing.classes

    def to_metadata(self) -> dict[str, str]:
        """As the head of this file lists it."""
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
        """Raises `UserError` for a file that `adadf_dist.export` did not write."""
        missing = [name for name in REQUIRED_KEYS if name not in values]
        if missing:
            raise UserError(f"{path}: its metadata lacks {missing[0]}, so it is no file that adadf_dist.export wrote")
        try:
            preprocessing = Preprocessing.from_dict(json.loads(values["preprocessing"]))
            model, epoch = json.loads(values["model"]), int(values["epoch"])
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: its metadata is damaged ({error}); export it again") from None
        if not isinstance(model, dict) or list(preprocessing.classes) != json.loads(values["classes"]):
            raise UserError(f"{path}: its metadata contradicts itself; export it again")
        rest = values["supervision"], values["checkpoint_sha256"], epoch, values["adadf_dist"]
        return ExportMetadata(preprocessing, model, *rest)

    def config(self, path: Path) -> Config:
        """The configuration that rebuilds the network. Raises `UserError` for one that this version does not know."""
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
