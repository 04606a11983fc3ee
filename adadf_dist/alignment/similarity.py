"""Aligned faces: a similarity transform that puts five points where the standard template has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adadf_dist.alignment.mtcnn import Face

Points = NDArray[np.float64]

TEMPLATE: Points = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""[5, 2], eyes, nose and corners of the mouth in 112 x 112 pixels, as face recognition has them (ArcFace)."""
TEMPLATE_SIDE = 112
FIVE_OF_68 = ((36, 42), (42, 48), (30, 31), (48, 49), (54, 55))
"""Of the 68 points of iBUG: the first and last-plus-one whose mean is each of ours."""


def five_points(points: Sequence[Sequence[float]]) -> Points:
    """[5, 2] of five points or of the 68 that AffectNet has. Raises `ValueError` for any other number."""
    given = np.asarray(points, dtype=np.float64)
    if given.shape == (68, 2):
        given = np.array([given[first:end].mean(axis=0) for first, end in FIVE_OF_68])
    if given.shape != (5, 2) or not np.isfinite(given).all():
        raise ValueError(f"landmarks of shape {list(given.shape)}; 5 or 68 points are needed")
    return given


def template(size: int) -> Points:
    """[5, 2], where the points of an aligned face of `size` pixels are."""
    return TEMPLATE * (size / TEMPLATE_SIDE)


def similarity_transform(points: Points, size: int) -> NDArray[np.float64]:
    """[2, 3]: rotation, scale and shift that bring `points` closest to the template (least squares; Umeyama, 1991).

    Raises `ValueError` when the points fall together.
    """
    wanted = template(size)
    mine, theirs = points.mean(axis=0), wanted.mean(axis=0)
    a, b = points - mine, wanted - theirs
    spread = float((a**2).sum())
    if spread < 1.0:
        raise ValueError("landmarks fall together in one place")
    # as complex numbers the best turn and scale is one quotient
    turn = complex(np.vdot(a[:, 0] + 1j * a[:, 1], b[:, 0] + 1j * b[:, 1])) / spread
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([linear, theirs - linear @ mine])


def align(image: Image.Image, points: Points, size: int = 100) -> Image.Image:
    """The face at the template's place in size x size pixels; what lies outside the picture is black.

    Raises `ValueError` when the points fall together, or lie so far outside that there is no face in the picture.
    """
    x, y = points.mean(axis=0)
    if not (0 <= x < image.width and 0 <= y < image.height):
        raise ValueError(f"landmarks lie outside the picture, around ({x:.0f}, {y:.0f}) of {image.size}")
    forward = similarity_transform(points, size)
    scale = math.hypot(forward[0, 0], forward[1, 0])
    factor = max(1, math.floor(1 / scale)) if scale < 1 else 1
    if factor > 1:  # a bilinear warp alone would skip pixels
        image = image.reduce(factor)
        forward = forward @ np.diag([factor, factor, 1.0])
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
    data = tuple(inverse.ravel().tolist())
    return image.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def centre_crop(image: Image.Image, size: int = 100) -> Image.Image:
    """The largest square in the middle, for a picture in which no face was found."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def select_face(faces: Sequence[Face], box: Sequence[float] | None = None) -> Face | None:
    """The face meant: the one that overlaps an annotated box most, or the one of largest area times score.

    None when there is no face, or none on the box: a face elsewhere is somebody else's, and the label is not theirs.
    """
    if box is not None:
        faces = [face for face in faces if iou(face.box, box) > 0]
        return max(faces, key=lambda face: iou(face.box, box), default=None)
    return next(iter(sort_by_size(faces)), None)


def sort_by_size(faces: Sequence[Face]) -> list[Face]:
    """The faces by area times score, largest first."""
    return sorted(faces, key=lambda face: -area(face.box) * face.score)


def area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union."""
    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return common / max(area(a) + area(b) - common, 1e-9)
