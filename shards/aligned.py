"""Pictures of a source, aligned while they are stored."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from adadf_dist.data.builder import Item, Provenance, Source
from adadf_dist.data.jpeg import BadImage, decode, encode, to_grey_or_rgb
from adadf_dist.data.writer import Sample
from adadf_dist.errors import UserError
from shards.sources.photos import Listing, PhotoOptions, Photos, read_bytes, settle

if TYPE_CHECKING:
    from adadf_dist.detect import Detector


@dataclass(frozen=True)
class Aligned:
    """A `Source` around `Photos` whose pictures are put to the five-point template."""

    photos: Photos
    by: str
    """`detect`, or `landmarks`: those of the dataset."""
    size: int
    """Side of a stored face in pixels."""
    no_face: str
    """`quarantine`, or `centre`: keep the middle of the picture, and say so."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.photos.classes

    @property
    def provenance(self) -> Provenance:
        made = self.photos.provenance
        options = {**made.options, "align": self.by, "aligned_size": self.size, "no_face": self.no_face}
        return replace(made, options=options)

    @property
    def image_bytes(self) -> int:
        return self.size**2 * len(self.photos.splits)

    def items(self) -> Sequence[Item]:
        return self.photos.items()

    def locate(self, number: int) -> str:
        return self.photos.locate(number)

    def load(self, number: int) -> Sample:
        from adadf_dist.align import align, centre_crop

        picture = self.photos.listing.pictures[number]
        facts = self.photos.facts(number)
        image = upright(read_bytes(f"{self.photos.options.root}/{picture.path}")[0])
        try:
            found = landmarks_of(facts) if self.by == "landmarks" else detected(image, facts)
            face, remark = align(image, found["points"], self.size), ""
        except NoFaceError:
            if self.no_face == "quarantine":
                raise BadImage("no face found") from None
            face, found, remark = centre_crop(image, self.size), {}, "no face found: centre of the picture"
        except ValueError as error:
            raise BadImage(str(error)) from None
        details = {**facts, **{key: value for key, value in found.items() if key != "points"}}
        return Sample(encode(face), picture.label, picture.votes, None, picture.path, details, remark)


class NoFaceError(Exception):
    """The detector found nothing."""


def upright(data: bytes) -> Image.Image:
    """The picture, grey or RGB, as it is meant to be seen. Raises `BadImage`."""
    return to_grey_or_rgb(ImageOps.exif_transpose(decode(data)))


def landmarks_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The dataset's own points. Raises `BadImage` or `ValueError`."""
    from adadf_dist.align import five_points

    if "landmarks" not in facts:
        raise BadImage("the dataset has no landmarks for it; use --align detect")
    return {"points": five_points(facts["landmarks"])}


def detected(image: Image.Image, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The points of the face that is meant, and what KEY.json keeps of it. Raises `NoFaceError`."""
    from adadf_dist.align import choose

    faces = open_detector().detect([image])[0]
    if not faces:
        raise NoFaceError
    face = choose(faces, facts.get("box"))
    return {
        "points": face.landmarks,
        "aligned_by": [[round(float(x), 2) for x in point] for point in face.landmarks],
        "score": round(face.score, 4),
        "faces": len(faces),
    }


@cache
def open_detector() -> Detector:
    """One a process, on one thread: there is a process a core."""
    import torch

    from adadf_dist.detect import Detector

    torch.set_num_threads(1)
    return Detector("cuda" if torch.cuda.is_available() else "cpu")


def add_align_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--align",
        choices=("none", "detect", "landmarks"),
        default="none",
        help="put eyes, nose and mouth where the standard five-point template has them: by MTCNN (extra `align`), or "
        "by the dataset's own landmarks (default: %(default)s)",
    )
    parser.add_argument(
        "--aligned-size", type=int, default=100, metavar="N", help="side of an aligned face (default: %(default)s)"
    )
    parser.add_argument(
        "--no-face",
        choices=("quarantine", "centre"),
        default="quarantine",
        help="a picture in which no face is found counts as one that cannot be stored (see --max-bad), or its centre "
        "is kept and listed in remarks.csv (default: %(default)s)",
    )


def open_photos(listing: Listing, options: PhotoOptions, args: argparse.Namespace) -> Source:
    """The listing as a source, aligned when that is asked for. Raises `UserError`."""
    if args.align == "none":
        return settle(listing, options)
    if not 16 <= args.aligned_size <= 1024:
        raise UserError(f"--aligned-size {args.aligned_size}: from 16 to 1024")
    if args.align == "detect":
        open_detector()  # now, not after minutes of reading, if its weights are not installed
    return Aligned(settle(listing, options), args.align, args.aligned_size, args.no_face)
