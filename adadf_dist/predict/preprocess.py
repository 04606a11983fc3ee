"""Load an input image, or each face found in it, resized for preprocessing. Runs in worker threads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from adadf_dist.alignment import mtcnn
from adadf_dist.alignment.mtcnn import Detector
from adadf_dist.alignment.similarity import align, sort_by_size
from adadf_dist.data.jpeg import Box, InvalidImageError, encode
from adadf_dist.data.loaders.base import decode_image, resize_image
from adadf_dist.errors import single_line
from adadf_dist.predict.inputs import ImageInput

LARGE = 512
"""Side length in pixels; an image whose shorter side is longer is probably a photo, not a cropped face."""


class PreparedImage(NamedTuple):
    """Pixels for one prediction, or the error that prevents it."""

    source: ImageInput
    pixels: NDArray[np.uint8] | None
    """[S, S, 3], RGB pixels resized for preprocessing; None if there is an error."""
    error: str = ""
    """Reason why there are no pixels; empty if there are."""
    found: int | None = None
    """Number of faces that the detector found in the image; None without alignment."""
    number: int | None = None
    """1 for the largest face of the image, 2 for the next; None without alignment or if no face was found."""
    box: Box | None = None
    """Box of the face in the upright image, in pixels; may extend beyond the image."""
    is_large: bool = False
    """Whether the image looks like a photo that was not cropped."""


class Aligner:
    """Finds faces in photos and aligns them to the template, like the dataset builder with `--align detect`."""

    def __init__(self, device: torch.device, size: int, all_faces: bool = False) -> None:
        """Load the face detector; `size` is the side of an aligned face in pixels.

        Raises `UserError` if the detector's weights are missing.
        """
        self._detector = Detector(device)
        self._size = size
        self._all_faces = all_faces

    def find(self, photo: Image.Image) -> tuple[list[mtcnn.Face], int]:
        """Return the largest face, or all faces from largest to smallest, and the number of faces found."""
        faces = sort_by_size(self._detector.detect([photo])[0])
        return faces if self._all_faces else faces[:1], len(faces)

    def align(self, photo: Image.Image, face: mtcnn.Face) -> Image.Image:
        """Return a face aligned to the template. Raises `InvalidImageError` if it cannot be aligned."""
        try:
            aligned = align(photo, face.landmarks, self._size)
        except ValueError as error:
            raise InvalidImageError(str(error)) from None
        return decode_image(encode(aligned).data)  # re-encode as JPEG like the builder


def load_faces(source: ImageInput, size: int, aligner: Aligner | None) -> list[PreparedImage]:
    """Read an image and, with an aligner, find its faces. Returns at least one item; errors are stored, not raised."""
    try:
        image = source.load()
        if aligner is None:
            return [PreparedImage(source, resize_image(image.convert("RGB"), size), is_large=min(image.size) > LARGE)]
        faces, found = aligner.find(image)
    except OSError as error:
        return [PreparedImage(source, None, error.strerror or single_line(error))]
    except InvalidImageError as error:
        return [PreparedImage(source, None, str(error))]
    except ValueError as error:  # a path with a null byte
        return [PreparedImage(source, None, single_line(error))]
    if not faces:
        return [PreparedImage(source, None, "no face found", found=0)]
    prepared = []
    for number, face in enumerate(faces, start=1):
        pixels, message = None, ""
        try:
            pixels = resize_image(aligner.align(image, face), size)
        except InvalidImageError as error:
            message = str(error)
        prepared.append(PreparedImage(source, pixels, message, found, number, Box(*map(round, face.box))))
    return prepared
