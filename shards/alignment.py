"""Aligns a source's faces while they are stored."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from PIL import Image

from adadf_dist.data.build.source import Provenance, Source, SourceItem
from adadf_dist.data.build.writer import Sample
from adadf_dist.data.jpeg import InvalidImageError, decode_upright, encode
from adadf_dist.errors import UserError
from shards.image_files import ImageFileSource, ImageSourceOptions, SourceListing, make_image_source, read_bytes

if TYPE_CHECKING:
    from adadf_dist.alignment.mtcnn import Detector


@dataclass(frozen=True)
class AlignedSource:
    """A `Source` around `ImageFileSource` whose faces are aligned to the five-point template."""

    photos: ImageFileSource
    by: str
    """`detect`, or `landmarks` to use the dataset's own."""
    size: int
    """Side of a stored face in pixels."""
    no_face: str
    """`quarantine`, or `centre`: keep the center of the image and note it."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.photos.classes

    @property
    def provenance(self) -> Provenance:
        made = self.photos.provenance
        options = {key: value for key, value in made.options.items() if key not in ("image_size", "margin")}
        options |= {"align": self.by, "aligned_size": self.size, "no_face": self.no_face}
        if self.by == "detect":  # another release may place landmarks differently: do not mix shards of both
            options |= {name: version(name) for name in ("mtcnn", "torch")}
        return replace(made, options=options)

    @property
    def image_bytes(self) -> int:
        return self.size**2 * len(self.photos.splits)

    def items(self) -> Sequence[SourceItem]:
        return self.photos.items()

    def describe_item(self, number: int) -> str:
        return self.photos.describe_item(number)

    def label(self, number: int) -> int:
        return self.photos.label(number)

    def fingerprint(self, number: int) -> bytes:
        return self.photos.fingerprint(number)

    def load(self, number: int) -> Sample:
        from adadf_dist.alignment.similarity import align, centre_crop

        picture = self.photos.listing.pictures[number]
        facts = self.photos.facts(number)
        image = decode_upright(read_bytes(f"{self.photos.options.root}/{picture.path}")[0])
        try:
            found = dataset_landmarks(facts) if self.by == "landmarks" else detect_landmarks(image, facts)
            face, remark = align(image, found["points"], self.size), ""
        except NoFaceFoundError as error:
            if self.no_face == "quarantine":
                raise InvalidImageError(str(error)) from None
            face, found, remark = centre_crop(image, self.size), {}, f"{error}: used the center of the image"
        except ValueError as error:
            raise InvalidImageError(str(error)) from None
        details = {**facts, **{key: value for key, value in found.items() if key != "points"}}
        return Sample(encode(face), picture.label, picture.votes, None, self.describe_item(number), details, remark)


class NoFaceFoundError(Exception):
    """No face was detected, or none where the dataset locates it."""


def dataset_landmarks(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dataset's own landmarks. Raises `InvalidImageError` or `ValueError`."""
    from adadf_dist.alignment.similarity import five_points

    if "landmarks" not in facts:
        raise InvalidImageError("the dataset has no landmarks for this image; use --align detect")
    return {"points": five_points(facts["landmarks"])}


def detect_landmarks(image: Image.Image, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Detect the target face's landmarks and return the metadata for KEY.json. Raises `NoFaceFoundError`."""
    from adadf_dist.alignment.similarity import select_face

    faces = open_detector().detect([image])[0]
    face = select_face(faces, facts.get("box"))
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
    """One detector per process, on one CPU thread: processes already use all cores; a GPU would change the bytes."""
    import torch

    from adadf_dist.alignment.mtcnn import Detector

    torch.set_num_threads(1)
    return Detector("cpu")


def add_align_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--align",
        choices=("none", "detect", "landmarks"),
        default="none",
        help="align eyes, nose and mouth to the standard five-point template: landmarks from MTCNN (extra `align`), or "
        "the dataset's own (default: %(default)s)",
    )
    parser.add_argument(
        "--aligned-size",
        type=int,
        default=100,
        metavar="N",
        help="side of an aligned face (default: %(default)s)",
    )
    parser.add_argument(
        "--no-face",
        choices=("quarantine", "centre"),
        default="quarantine",
        help="an image without a detected face counts as invalid (see --max-bad), or its center "
        "is kept and listed in remarks.csv (default: %(default)s)",
    )


def make_source(listing: SourceListing, options: ImageSourceOptions, args: argparse.Namespace) -> Source:
    """Create a source from the listing, aligned if requested. Raises `UserError`."""
    if args.align == "none":
        return make_image_source(listing, options)
    if not 16 <= args.aligned_size <= 1024:
        raise UserError(f"--aligned-size {args.aligned_size}: must be from 16 to 1024")
    if args.image_size is not None:
        raise UserError("--image-size: not allowed with --align; use --aligned-size")
    if args.align == "detect":
        open_detector()  # fail now, not after minutes of reading, if the weights are not installed
    return AlignedSource(make_image_source(listing, options), args.align, args.aligned_size, args.no_face)
