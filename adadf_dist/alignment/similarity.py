"""Align faces using the similarity transform that maps five landmarks to a standard template."""

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
"""[5, 2], standard positions of eyes, nose and mouth corners in a 112 x 112 image, as used by ArcFace."""
TEMPLATE_SIDE = 112
FIVE_OF_68 = ((36, 42), (42, 48), (30, 31), (48, 49), (54, 55))
"""For each of the five landmarks, the range of iBUG's 68 points to average, as (first, end) with exclusive end."""


def five_points(points: Sequence[Sequence[float]]) -> Points:
    """Return five landmarks [5, 2], given 5 or AffectNet's 68 points. Raises `ValueError` for any other number."""
    given = np.asarray(points, dtype=np.float64)
    if given.shape == (68, 2):
        given = np.array([given[first:end].mean(axis=0) for first, end in FIVE_OF_68])
    if given.shape != (5, 2) or not np.isfinite(given).all():
        raise ValueError(f"landmarks have shape {list(given.shape)}; expected 5 or 68 points with finite coordinates")
    return given


def template(size: int) -> Points:
    """Return the template positions [5, 2] for an aligned face of `size` x `size` pixels."""
    return TEMPLATE * (size / TEMPLATE_SIDE)


def similarity_transform(points: Points, size: int) -> NDArray[np.float64]:
    """Return the [2, 3] matrix that best maps `points` to the template by rotation, scaling and translation.

    It is the least-squares solution (Umeyama, 1991).

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
    """Warp the face to the template, in an image of `size` x `size` pixels; areas outside the original are black.

    Raises `ValueError` if all points coincide, or if their mean lies outside the image.
    """
    x, y = points.mean(axis=0)
    if not (0 <= x < image.width and 0 <= y < image.height):
        raise ValueError(
            f"landmarks lie outside the image: centered at ({x:.0f}, {y:.0f}), but the image size is {image.size}"
        )
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
    """Return the largest central square of an image without a detected face, resized to `size` x `size` pixels."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def select_face(faces: Sequence[Face], box: Sequence[float] | None = None) -> Face | None:
    """Return the face with the largest overlap with an annotated box or, without a box, the largest area times score.

    Returns None if there are no faces, or if none overlaps the box: the label then belongs to an undetected face.
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
    """Return the intersection over union of two boxes."""
    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return common / max(area(a) + area(b) - common, 1e-9)
