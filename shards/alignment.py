"""Aligns faces to a standard template while a dataset is built from image files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from PIL import Image

from adadf_dist.data.build.source import Source
from adadf_dist.data.build.writer import Sample
from adadf_dist.data.jpeg import InvalidImageError, decode_upright, encode
from adadf_dist.errors import UserError
from shards.image_files import ImageFileSource, ImageSourceOptions, SourceListing, make_image_source

if TYPE_CHECKING:
    from adadf_dist.alignment.mtcnn import Detector


STORED_NO_FACE = {"skip": "quarantine", "center-crop": "centre"}
"""Maps each value of `--on-no-face` to its name in dataset.json."""


@dataclass(frozen=True)
class AlignedSource(ImageFileSource):
    """A `Source` of image files that aligns faces to the five-point template."""

    align_by: str
    """`detect` to detect landmarks, or `landmarks` to use the dataset's own."""
    size: int
    """Side of each stored square face, in pixels."""
    no_face: str
    """What to do if no face is found: `skip` the image, or `center-crop` it and list it in notes.csv."""

    def load(self, number: int) -> Sample:
        from adadf_dist.alignment.similarity import align, center_crop

        entry, annotations = self.listing.images[number], self.listing.annotations(number)
        image = decode_upright(self.read(number))
        try:
            if self.align_by == "landmarks":
                found = read_landmarks(annotations)
            else:
                found = detect_landmarks(image, annotations)
            face, remark = align(image, found.pop("points"), self.size), ""
        except NoFaceFoundError as error:
            if self.no_face == "skip":
                raise InvalidImageError(str(error)) from None
            face, found, remark = center_crop(image, self.size), {}, f"{error}: used the center of the image"
        except ValueError as error:
            raise InvalidImageError(str(error)) from None
        details = {**annotations, **found}
        return Sample(encode(face), entry.label, entry.votes, None, self.describe_item(number), details, remark)


class NoFaceFoundError(Exception):
    """Raised if no face is detected in the image, or none within the dataset's annotated box."""


def read_landmarks(annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dataset's own landmarks as `points`.

    Raises `InvalidImageError` if there are none, and `ValueError` if they are not usable.
    """
    from adadf_dist.alignment.similarity import five_points

    if "landmarks" not in annotations:
        raise InvalidImageError("the dataset has no landmarks for this image; use --align detect")
    return {"points": five_points(annotations["landmarks"])}


def detect_landmarks(image: Image.Image, annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Return the landmarks of the target face as `points`, plus metadata for KEY.json.

    If there is an annotated box, the target face is the one in it. Raises `NoFaceFoundError` if there is no target
    face.
    """
    from adadf_dist.alignment.similarity import select_face

    faces = open_detector().detect([image])[0]
    face = select_face(faces, annotations.get("box"))
    if face is None:
        raise NoFaceFoundError("no face found in the annotated box" if faces else "no face found")
    return {
        "points": face.landmarks,
        "aligned_by": [[round(float(x), 2) for x in point] for point in face.landmarks],
        "score": round(face.score, 4),
        "faces": len(faces),
    }


@cache
def open_detector() -> Detector:
    """Return this process's detector, which uses one CPU thread.

    The worker processes already use all cores, and a GPU would change the stored bytes.
    """
    import torch

    from adadf_dist.alignment.mtcnn import Detector

    torch.set_num_threads(1)
    return Detector("cpu")


def add_align_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--align",
        choices=("none", "detect", "landmarks"),
        default="none",
        help="align eyes, nose and mouth to the standard five-point template: `detect` finds landmarks with MTCNN "
        "(needs the extra `align`; always on the CPU, because a GPU would change the stored bytes), `landmarks` uses "
        "the dataset's own (default: %(default)s)",
    )
    parser.add_argument(
        "--aligned-size",
        type=int,
        default=100,
        metavar="N",
        help="side of an aligned face in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--on-no-face",
        choices=tuple(STORED_NO_FACE),
        default="skip",
        help="if no face is found: `skip` counts the image as invalid (see --max-bad-images), `center-crop` stores its "
        "center and lists it in notes.csv (default: %(default)s)",
    )


def make_source(listing: SourceListing, options: ImageSourceOptions, args: argparse.Namespace) -> Source:
    """Create a source from a listing; if `--align` requests it, the source aligns faces.

    Raises `UserError` if the options or the listed images are invalid.
    """
    if args.align == "none":
        return make_image_source(listing, options)
    if not 16 <= args.aligned_size <= 1024:
        raise UserError(f"--aligned-size {args.aligned_size}: must be from 16 to 1024")
    if args.max_side is not None:
        raise UserError("--max-side: not allowed with --align; use --aligned-size")
    if args.align == "detect":
        open_detector()  # fail now, not after minutes of reading, if the weights are not installed
    source = make_image_source(listing, options)
    recorded = {key: value for key, value in source.provenance.options.items() if key not in ("image_size", "margin")}
    recorded |= {"align": args.align, "aligned_size": args.aligned_size, "no_face": STORED_NO_FACE[args.on_no_face]}
    if args.align == "detect":  # another release may place landmarks differently: do not mix shards of both
        recorded |= {name: version(name) for name in ("mtcnn", "torch")}
    fields = vars(source) | {
        "image_bytes": args.aligned_size**2 * len(source.splits),
        "provenance": replace(source.provenance, options=recorded),
    }
    return AlignedSource(**fields, align_by=args.align, size=args.aligned_size, no_face=args.on_no_face)
