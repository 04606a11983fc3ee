"""From a picture to a face as the network's preprocessing begins with it, in a worker thread."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from adadf_dist.align import align, choose
from adadf_dist.data.jpeg import BadImage, encode
from adadf_dist.data.loader import decode_stored, resize_face
from adadf_dist.detect import Detector
from adadf_dist.errors import one_line
from adadf_dist.predict.inputs import Picture

LARGE = 512
"""A picture whose shorter side has more pixels than this is rather a photograph than a face cut out."""


class Face(NamedTuple):
    """What there is to look at, or why there is nothing."""

    name: str
    pixels: NDArray[np.uint8] | None
    """[S, S, 3] RGB at the size that preprocessing resizes to."""
    error: str
    """Empty where there are pixels."""
    found: int | None
    """Faces that the detector found in the picture; None where it was not asked."""
    large: bool
    """Whether it looks like a photograph that nobody cut a face out of."""


class Aligner:
    """Finds the face in a photograph and puts it to the template, as the builder's `--align detect` does."""

    def __init__(self, device: torch.device, size: int) -> None:
        """`size`: side of an aligned face in pixels. Raises `UserError` where the detector's weights are missing."""
        self._detector = Detector(device)
        self._size = size

    def __call__(self, photo: Image.Image) -> tuple[Image.Image, int]:
        """The largest and surest face and how many there are. Raises `BadImage`."""
        faces = self._detector.detect([photo])[0]
        face = choose(faces)
        if face is None:
            raise NoFaceError
        try:
            aligned = align(photo, face.landmarks, self._size)
        except ValueError as error:
            raise BadImage(str(error)) from None
        return decode_stored(encode(aligned).data), len(faces)  # through a JPEG, as the builder stores it


class NoFaceError(Exception):
    """The detector found nothing."""


def see(picture: Picture, size: int, aligner: Aligner | None) -> Face:
    """Read a picture, and find its face where that is asked for; what is wrong with it is told, never raised."""
    found, large = None, False
    try:
        image = picture.load()
        if aligner is not None:
            image, found = aligner(image)
        else:
            large = min(image.size) > LARGE
        return Face(picture.name, resize_face(image.convert("RGB"), size), "", found, large)
    except NoFaceError:
        return Face(picture.name, None, "no face found", 0, False)
    except BadImage as error:
        return Face(picture.name, None, str(error), found, False)
    except OSError as error:
        return Face(picture.name, None, error.strerror or one_line(error), found, False)
    except ValueError as error:  # of a path that is none: a zero byte in it
        return Face(picture.name, None, one_line(error), found, False)
