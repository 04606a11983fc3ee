"""Images to check an exported network with: random ones, and faces."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adadf_dist.data.format import Dataset, open_dataset
from adadf_dist.data.jpeg import BadImage
from adadf_dist.data.loader import Finish, decode_stored, resize_face
from adadf_dist.data.preprocess import Preprocessing
from adadf_dist.data.synthetic import draw_face
from adadf_dist.errors import UserError
from adadf_dist.trained import Trained

CPU = torch.device("cpu")


class Probes(NamedTuple):
    """Images [n, 3, H, W] as the network takes them."""

    random: Tensor
    faces: Tensor
    whose: str
    """Where the faces are from."""


def find_probes(trained: Trained, count: int) -> Probes:
    """`count` of each kind: faces of the run's own dataset where it is at hand, drawn ones otherwise."""
    size = trained.preprocessing.image_size
    random = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        faces, whose = stored_faces(find_dataset(trained), count)
    except (UserError, OSError, BadImage):
        faces = [Image.fromarray(draw_face(0, number).image) for number in range(count)]
        whose = "drawn faces, for the run's own are not at hand"
    return Probes(random, prepare(faces, trained.preprocessing)[:count], whose)


def find_dataset(trained: Trained) -> Dataset:
    """The dataset that a run was trained on. Raises `UserError` where it is not at hand, or has other classes now."""
    shards = trained.config.data.shards
    if not shards:
        raise UserError("data.shards is empty")
    dataset = open_dataset(shards)
    if dataset.classes != trained.classes:
        raise UserError(f"{shards}: has other classes than the checkpoint")
    return dataset


def stored_faces(dataset: Dataset, count: int) -> tuple[list[Image.Image], str]:
    """The first faces of a dataset's last split, test where there is one. Raises `UserError`, `OSError`, `BadImage`."""
    name = list(dataset.splits)[-1]
    split = dataset.split(name)
    numbers = [number % len(split) for number in range(count)]
    return [decode_stored(split.read(number)) for number in numbers], f"faces of {dataset.name}, {name}"


def prepare(faces: list[Image.Image], preprocessing: Preprocessing) -> Tensor:
    """As evaluation prepares them, each of ten crops a row: [rows, 3, H, W]."""
    pixels = np.stack([resize_face(face, preprocessing.resized) for face in faces])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    ready = Finish(preprocessing, CPU)(images, torch.zeros(len(faces), 4, dtype=torch.int64))
    return ready.flatten(0, 1) if ready.ndim == 5 else ready
