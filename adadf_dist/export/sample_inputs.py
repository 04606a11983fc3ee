"""Test images for verifying an exported network: random noise and faces."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adadf_dist.checkpoint.trained_model import TrainedModel
from adadf_dist.data.dataset import Dataset, open_dataset
from adadf_dist.data.identity import Source, other_data
from adadf_dist.data.jpeg import InvalidImageError
from adadf_dist.data.loaders.base import DeviceTransform, decode_image, resize_image
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.data.remote.client import is_remote, local_path
from adadf_dist.data.synthetic.faces import render_sample
from adadf_dist.errors import UserError

CPU = torch.device("cpu")


class SampleInputs(NamedTuple):
    """Preprocessed test images, [n, 3, H, W] each."""

    random: Tensor
    faces: Tensor
    source: str
    """Description of where the faces come from, for messages."""


def make_sample_inputs(trained: TrainedModel, dataset: Dataset | None, count: int) -> SampleInputs:
    """Return `count` images of each kind; faces are from the run's dataset if available, otherwise synthetic."""
    size = trained.preprocessing.image_size
    random = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        if dataset is None:
            raise UserError("no dataset")
        faces, source = stored_faces(dataset, count)
    except (UserError, OSError, InvalidImageError):
        faces = [Image.fromarray(render_sample(0, number).image) for number in range(count)]
        source = "synthetic faces (run dataset not available)"
    return SampleInputs(random, prepare(faces, trained.preprocessing)[:count], source)


def find_dataset(trained: TrainedModel, shards: str) -> Dataset | None:
    """Open the dataset that a run was trained on; None if it is not available locally or has other classes.

    `shards`: current location of the dataset; if empty, the location recorded in the run. Raises `UserError` if
    `shards` is set but cannot be opened.
    """
    location = shards or trained.config.data.shards
    try:
        dataset = open_dataset(local_path(location)) if location and not is_remote(location) else None
    except (UserError, OSError):
        if shards:
            raise
        return None
    return dataset if dataset is not None and dataset.classes == trained.classes else None


def difference_of(trained: TrainedModel, dataset: Dataset | None) -> str:
    """Describe how a dataset differs from the run's training data; return "" if it does not or if this is unknown."""
    if dataset is None or trained.data is None:
        return ""
    found = Source(str(dataset.folder.absolute()), dataset.manifest.digests())
    return other_data(trained.data.source, found, found.digests)


def stored_faces(dataset: Dataset, count: int) -> tuple[list[Image.Image], str]:
    """Return the first images of a dataset's last split (test if available) and a description of them.

    Raises `UserError`, `OSError`, `InvalidImageError`.
    """
    name = list(dataset.splits)[-1]
    split = dataset.split(name)
    numbers = [number % len(split) for number in range(count)]
    return [decode_image(split.read(number)) for number in numbers], f"faces of {dataset.name}, {name}"


def prepare(faces: list[Image.Image], preprocessing: Preprocessing) -> Tensor:
    """Return faces preprocessed as in evaluation, [n, 3, H, W]. With ten-crop, each crop is a separate image."""
    pixels = np.stack([resize_image(face, preprocessing.resized) for face in faces])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    ready = DeviceTransform(preprocessing, CPU)(images, torch.zeros(len(faces), 4, dtype=torch.int64))
    return ready.flatten(0, 1) if ready.ndim == 5 else ready
