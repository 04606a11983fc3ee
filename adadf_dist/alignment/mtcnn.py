"""Detect faces and their five landmarks in photos, using a torch implementation of MTCNN (Zhang et al., 2016).

The weights of its three networks are read from the installed `mtcnn` package (MIT license), whose own code needs
TensorFlow. facenet-pytorch also provides them, but requires outdated versions of torch, NumPy and Pillow.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms

from adadf_dist.errors import UserError

INSTALL = "pip install 'adadf_dist[align]'"
CELL, STRIDE = 12, 2
"""Side of the first network's input window, and the stride of its output, both in pixels."""
SHRINK = 0.709
"""Scale factor from one level of the image pyramid to the next, which halves the area."""
THRESHOLDS = (0.6, 0.7, 0.8)
"""Minimum face score after each of the three networks."""
MAX_DETECT_SIDE = 1024
"""Larger images are downscaled before detection until their longer side has this many pixels."""


class Face(NamedTuple):
    """A detected face, in pixel coordinates of the image."""

    box: tuple[float, float, float, float]
    """Bounding box as left, top, right and bottom."""
    score: float
    landmarks: NDArray[np.float64]
    """[5, 2], x and y of the left eye, right eye, nose, left and right mouth corner, as seen by the viewer."""


class StageSpec(NamedTuple):
    """Architecture of one of MTCNN's three networks."""

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    pools: tuple[int, ...]
    """Kernel size of the stride-2 max pooling after each convolution; 0 for none."""
    dense: int
    """Width of the fully connected layer before the heads; 0 for a fully convolutional network."""
    heads: tuple[int, ...]


PNET = StageSpec((10, 16, 32), (3, 3, 3), (2, 0, 0), 0, (4, 2))
RNET = StageSpec((28, 48, 64), (3, 3, 2), (3, 3, 0), 128, (4, 2))
ONET = StageSpec((32, 64, 64, 128), (3, 3, 3, 2), (3, 3, 2, 0), 256, (4, 10, 2))


class MtcnnStage(nn.Module):
    """One of MTCNN's three networks, with convolutions followed by output heads.

    The heads return box offsets, landmarks (last network only), and the logits of `no face` and `face`.
    """

    def __init__(self, layers: StageSpec, side: int) -> None:
        super().__init__()
        steps: OrderedDict[str, nn.Module] = OrderedDict()
        before = 3
        for number, (width, kernel, pool) in enumerate(zip(*layers[:3], strict=True), start=1):
            steps[f"conv{number}"] = nn.Conv2d(before, width, kernel)
            steps[f"prelu{number}"] = nn.PReLU(width)
            if pool:
                steps[f"pool{number}"] = nn.MaxPool2d(pool, stride=2, ceil_mode=True)
            before = width
        self.features = nn.Sequential(steps)
        self.dense: nn.Sequential | None = None
        if layers.dense:
            flat = self.features(torch.zeros(1, 3, side, side)).numel()
            self.dense = nn.Sequential(nn.Linear(flat, layers.dense), nn.PReLU(layers.dense))
            self.heads = nn.ModuleList(nn.Linear(layers.dense, width) for width in layers.heads)
        else:
            self.heads = nn.ModuleList(nn.Conv2d(before, width, 1) for width in layers.heads)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one tensor per head, [n, width] or [n, width, h, w], for images [n, 3, H, W] scaled to [-1, 1]."""
        hidden = self.features(images)
        if self.dense is not None:
            hidden = self.dense(hidden.permute(0, 3, 2, 1).flatten(1))  # the weights expect columns before rows
        return [head(hidden) for head in self.heads]


def load_network(name: str, layers: StageSpec, side: int) -> MtcnnStage:
    """Build a network with weights from the `mtcnn` package. Raises `UserError` if that is not installed."""
    try:
        import joblib

        path = next(file for file in distribution("mtcnn").files or [] if file.name == f"{name}.lz4")
        values = joblib.load(path.locate())
    except (ImportError, PackageNotFoundError, StopIteration, ValueError):
        raise UserError(f"face detection needs the weights from the mtcnn package; install it with {INSTALL}") from None
    network = MtcnnStage(layers, side)
    for parameter, value in zip(network.parameters(), map(torch.from_numpy, values), strict=True):
        if value.ndim == 4:
            value = value.permute(3, 2, 0, 1)  # rows, columns, in, out
        elif value.ndim == 2:
            value = value.T
        with torch.no_grad():
            parameter.copy_(value.reshape(parameter.shape))
    return network.eval()


class Detector:
    """MTCNN face detector. Raises `UserError` if the package that contains its weights is not installed."""

    def __init__(self, device: torch.device | str = "cpu", smallest: int = 20) -> None:
        """Load the networks onto `device`. `smallest` is the side in pixels of the smallest face to detect."""
        self.device = torch.device(device)
        self.smallest = smallest
        self.propose = load_network("pnet", PNET, 12).to(self.device)
        self.refine = load_network("rnet", RNET, 24).to(self.device)
        self.output = load_network("onet", ONET, 48).to(self.device)

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[list[Face]]:
        """Return the faces in each image, highest score first. Images must be upright, but may differ in size."""
        if not images:
            return []
        pixels, ratios = [], []
        for image in images:
            ratio = min(1.0, MAX_DETECT_SIDE / max(image.size))
            width, height = (max(1, round(side * ratio)) for side in image.size)
            small = image if ratio == 1 else image.resize((width, height))
            array = torch.from_numpy(np.array(small.convert("RGB"))).to(self.device)
            pixels.append((array.permute(2, 0, 1).float() - 127.5) / 128)
            ratios.append(ratio)
        proposals = [self.find_candidates(image) for image in pixels]
        owners = torch.cat([torch.full((len(b),), n, device=self.device) for n, b in enumerate(proposals)])
        boxes = torch.cat(proposals)
        faces: list[list[Face]] = [[] for _ in images]
        if not len(boxes):
            return faces
        offsets, logits = self.refine(crop_patches(pixels, owners, boxes, 24))
        boxes, owners, scores, _ = select(boxes, owners, offsets, logits, THRESHOLDS[1])
        if not len(boxes):
            return faces
        boxes = square_boxes(boxes)
        offsets, points, logits = self.output(crop_patches(pixels, owners, boxes, 48))
        sides = (boxes[:, 2:] - boxes[:, :2]).unsqueeze(1)
        landmarks = boxes[:, None, :2] + torch.stack([points[:, :5], points[:, 5:]], dim=2) * sides
        boxes, owners, scores, kept = select(boxes, owners, offsets, logits, THRESHOLDS[2])
        for row, owner in enumerate(owners.tolist()):
            ratio = ratios[owner]
            box = tuple((boxes[row] / ratio).tolist())
            found = (landmarks[kept[row]] / ratio).double().cpu().numpy()
            faces[owner].append(Face(box, float(scores[row]), found))
        return [sorted(found, key=lambda face: -face.score) for found in faces]

    def find_candidates(self, image: Tensor) -> Tensor:
        """Return square candidate boxes [n, 4], found at all scales of an image [3, H, W]."""
        boxes, scores = [torch.zeros(0, 4, device=self.device)], [torch.zeros(0, device=self.device)]
        for scale in self.scales(min(image.shape[1:])):
            size = [max(CELL, math.ceil(side * scale)) for side in image.shape[1:]]
            offsets, logits = self.propose(F.interpolate(image[None], size, mode="area"))
            found = logits.softmax(dim=1)[0, 1]
            rows, columns = torch.nonzero(found > THRESHOLDS[0], as_tuple=True)
            corner = torch.stack([columns, rows], dim=1) * STRIDE + 1.0
            cells = torch.cat([corner, corner - 1 + CELL], dim=1)
            cells = (cells + offsets[0, :, rows, columns].T * (CELL - 1)) / scale
            kept = nms(cells, found[rows, columns], 0.5)
            boxes.append(cells[kept])
            scores.append(found[rows, columns][kept])
        every, score = torch.cat(boxes), torch.cat(scores)
        return square_boxes(every[nms(every, score, 0.7)])

    def scales(self, shorter: int) -> Iterator[float]:
        scale = CELL / self.smallest
        while shorter * scale >= CELL:
            yield scale
            scale *= SHRINK


def select(
    boxes: Tensor, owners: Tensor, offsets: Tensor, logits: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply offsets to the boxes, then drop boxes with low scores and boxes that overlap a better one.

    Returns the boxes, image indexes (owners) and scores of the remaining rows, and their indexes in the input.
    """
    scores = logits.softmax(dim=1)[:, 1]
    moved = boxes + offsets * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    rows = torch.nonzero(scores > threshold).flatten()
    rows = rows[batched_nms(moved[rows], scores[rows], owners[rows], 0.7)]
    return moved[rows], owners[rows], scores[rows], rows


def square_boxes(boxes: Tensor) -> Tensor:
    """Expand each box to a square as large as its longer side, with the same center."""
    centers, side = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True)
    return torch.cat([centers - side / 2, centers + side / 2], dim=1)


def crop_patches(images: Sequence[Tensor], owners: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Return a crop of each box, resized to [n, 3, side, side]; areas outside the image are zero (mid-gray).

    `owners` contains the index of each box's image.
    """
    patches = []
    for owner, box in zip(owners.tolist(), boxes.round().int().tolist(), strict=True):
        image = images[owner]
        left, top, right, bottom = box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1)
        height, width = image.shape[1:]
        inner = image[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        around = (max(-left, 0), max(right - max(width, left), 0), max(-top, 0), max(bottom - max(height, top), 0))
        patches.append(F.interpolate(F.pad(inner, around)[None], (side, side), mode="area"))
    return torch.cat(patches)
