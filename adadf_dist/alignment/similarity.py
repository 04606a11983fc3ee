"""Face alignment: a similarity transform that maps five landmarks to the standard template."""

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
"""[5, 2], eyes, nose and mouth corners in 112 x 112 pixels, as in face recognition (ArcFace)."""
TEMPLATE_SIDE = 112
FIVE_OF_68 = ((36, 42), (42, 48), (30, 31), (48, 49), (54, 55))
"""Ranges (first, end) of iBUG's 68 points to average for each of the five points; `end` is exclusive."""


def five_points(points: Sequence[Sequence[float]]) -> Points:
    """Return [5, 2] from five points or AffectNet's 68. Raises `ValueError` for any other number."""
    given = np.asarray(points, dtype=np.float64)
    if given.shape == (68, 2):
        given = np.array([given[first:end].mean(axis=0) for first, end in FIVE_OF_68])
    if given.shape != (5, 2) or not np.isfinite(given).all():
        raise ValueError(f"landmarks of shape {list(given.shape)}; expected 5 or 68 points")
    return given


def template(size: int) -> Points:
    """[5, 2], template positions in an aligned face of `size` pixels."""
    return TEMPLATE * (size / TEMPLATE_SIDE)


def similarity_transform(points: Points, size: int) -> NDArray[np.float64]:
    """[2, 3]: rotation, scale and shift that best map `points` to the template (least squares; Umeyama, 1991).

    Raises `ValueError` if all points coincide.
    """
    wanted = template(size)
    mine, theirs = points.mean(axis=0), wanted.mean(axis=0)
    a, b = points - mine, wanted - theirs
    spread = float((a**2).sum())
    if spread < 1.0:
        raise ValueError("all landmarks coincide")
    # with complex numbers, the best rotation and scale is one quotient
    turn = complex(np.vdot(a[:, 0] + 1j * a[:, 1], b[:, 0] + 1j * b[:, 1])) / spread
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([linear, theirs - linear @ mine])


def align(image: Image.Image, points: Points, size: int = 100) -> Image.Image:
    """Warp the face to the template in size x size pixels; the area outside the image is black.

    Raises `ValueError` if the points coincide or lie so far outside that the image contains no face.
    """
    x, y = points.mean(axis=0)
    if not (0 <= x < image.width and 0 <= y < image.height):
        raise ValueError(f"landmarks lie outside the image, around ({x:.0f}, {y:.0f}) of {image.size}")
    forward = similarity_transform(points, size)
    scale = math.hypot(forward[0, 0], forward[1, 0])
    factor = max(1, math.floor(1 / scale)) if scale < 1 else 1
    if factor > 1:  # a bilinear warp alone would skip pixels
        image = image.reduce(factor)
        forward = forward @ np.diag([factor, factor, 1.0])
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
    data = tuple(inverse.ravel().tolist())
    return image.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def center_crop(image: Image.Image, size: int = 100) -> Image.Image:
    """Return the largest central square, for an image without a detected face."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def select_face(faces: Sequence[Face], box: Sequence[float] | None = None) -> Face | None:
    """Select the target face: the largest overlap with an annotated box, or the largest area times score.

    None if no face is found or none overlaps the box: then the label belongs to another face.
    """
    if box is not None:
        faces = [face for face in faces if iou(face.box, box) > 0]
        return max(faces, key=lambda face: iou(face.box, box), default=None)
    return next(iter(sort_by_size(faces)), None)


def sort_by_size(faces: Sequence[Face]) -> list[Face]:
    """Sort faces by area times score, largest first."""
    return sorted(faces, key=lambda face: -area(face.box) * face.score)


def area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union."""
    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return common / max(area(a) + area(b) - common, 1e-9)
