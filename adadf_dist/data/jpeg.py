"""Image decoding, validation and JPEG encoding for stored images."""

from __future__ import annotations

import base64
import io
import os
import re
import struct
import warnings
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_PIXELS = 2**26
"""Largest image that is decoded, in pixels (67 million: 8,192 x 8,192). Larger ones may be decompression bombs."""
MIN_SIDE = 8
"""Minimum side of a stored image, in pixels."""
QUALITY = 95
"""Default JPEG quality for encoding; chroma is always stored at full resolution."""
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted image formats. Pillow supports more, but for some (such as EPS) it runs an external program to decode."""

MAX_JPEG_SIDE = 65_500
"""Maximum width and height, in pixels, that the JPEG library can write."""

_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that makes an image upright, by EXIF orientation; with any other value, the image is not changed."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


@cache
def image_suffixes() -> frozenset[str]:
    """Return all lower-case file name extensions that Pillow knows for the accepted image formats."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)


def is_image_name(path: str) -> bool:
    """Return whether a file name has an image extension."""
    return os.path.splitext(path)[1].lower() in image_suffixes()


class InvalidImageError(ValueError):
    """Raised for an image that cannot be used. The message states only the reason; callers add the file name."""


class Jpeg(NamedTuple):
    """A JPEG-encoded image and its size in pixels."""

    data: bytes
    width: int
    height: int


class Box(NamedTuple):
    """Box in pixel coordinates of an upright image; it may extend beyond the image, and is then clipped."""

    left: int
    top: int
    right: int
    bottom: int


def decode(data: bytes) -> Image.Image:
    """Fully decode an image in any accepted format, keeping its color mode. Raises `InvalidImageError` on failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about large images and odd metadata; both are checked here
        try:
            return load(data)
        except InvalidImageError:
            raise
        except Image.DecompressionBombError:
            raise InvalidImageError(f"more pixels than the limit of {MAX_PIXELS:,}") from None
        except Exception as error:  # decoders raise arbitrary exceptions
            pixels = png_without_metadata(data)
            if pixels is not None:
                return decode(pixels)
            reason = " ".join(
                re.sub(r" *<_io.BytesIO.*>", "", str(error)).split()
            )  # an address would differ every time
            raise InvalidImageError(f"failed to decode ({type(error).__name__}: {reason[:100]})") from None


def load(data: bytes) -> Image.Image:
    """Decode an image, without converting the decoder's exceptions to `InvalidImageError`."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    check_size(*image.size)
    image.load()
    return image


def png_without_metadata(data: bytes) -> bytes | None:
    """Return a PNG without its text and color profile, which Pillow rejects if large; None if it has neither.

    The EXIF chunk, which contains the orientation, is kept. Also returns None for data that is not a PNG.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return None
    chunks = [data[start:end] for kind, start, end in png_chunks(data) if kind not in _PNG_METADATA]
    pixels = b"".join([_PNG_SIGNATURE, *chunks])
    return pixels if len(pixels) < len(data) else None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, start and end of each PNG chunk; the last chunk may be truncated."""
    start = len(_PNG_SIGNATURE)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = min(start + 12 + length, len(data))
        yield kind, start, end
        start = end


def check_size(width: int, height: int) -> None:
    """Raise `InvalidImageError` for an image too small to show a face or too large to decode."""
    if width * height > MAX_PIXELS:
        raise InvalidImageError(f"{width:,} x {height:,} pixels, more than the limit of {MAX_PIXELS:,}")
    if min(width, height) < MIN_SIDE:
        raise InvalidImageError(f"{width} x {height} pixels; each side must have at least {MIN_SIDE}")


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (upright) if it is missing, invalid or cannot be parsed."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # the parser raises various errors for corrupt metadata
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


def make_upright(image: Image.Image) -> Image.Image:
    """Rotate or mirror an image as its EXIF orientation requires.

    `ImageOps.exif_transpose` is not used because it also rewrites the metadata, which fails if other tags are corrupt.
    """
    orientation = read_orientation(image)
    return image if orientation == 1 else image.transpose(_TRANSPOSITIONS[orientation])


def decode_upright(data: bytes) -> Image.Image:
    """Decode an image and return it upright, in grayscale or RGB. Raises `InvalidImageError` if it is invalid."""
    return to_gray_or_rgb(make_upright(decode(data)))


def to_jpeg(data: bytes, side: int | None = None, box: Box | None = None) -> Jpeg:
    """Encode an image, or its part inside `box`, as an upright grayscale or RGB JPEG.

    If its shorter side is longer than `side` pixels, the image is scaled down to that. A JPEG that needs no change is
    returned byte for byte. Raises `InvalidImageError`.
    """
    image = decode(data)
    upright = "exif" not in image.info or read_orientation(image) == 1
    small = side is None or min(image.size) <= side
    if image.format == "JPEG" and image.mode in ("L", "RGB") and upright and small and box is None:
        return Jpeg(data, *image.size)
    image = to_gray_or_rgb(image if upright else make_upright(image))
    if box is not None:
        image = crop(image, box)
    if side is not None and min(image.size) > side:
        scale = side / min(image.size)
        width, height = (max(side, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return encode(image)


def crop(image: Image.Image, box: Box) -> Image.Image:
    """Crop to `box`. Raises `InvalidImageError` if the result is too small to show a face."""
    left, top = max(box.left, 0), max(box.top, 0)
    right, bottom = min(box.right, image.width), min(box.bottom, image.height)
    if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
        raise InvalidImageError(f"face box {tuple(box)} leaves too little of the {image.width} x {image.height} image")
    return image.crop((left, top, right, bottom))


def to_gray_or_rgb(image: Image.Image) -> Image.Image:
    """Convert a grayscale image to 8-bit grayscale, and any other to RGB without transparency.

    Raises `InvalidImageError` for 32-bit pixels, whose range of values is unknown.
    """
    match image.mode:
        case "L" | "RGB":
            return image
        case "1" | "LA" | "La":
            return image.convert("L")
        case "I;16" | "I;16B" | "I;16L" | "I;16N":  # Pillow's own conversion would clip, not scale
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        case "I" | "F":
            raise InvalidImageError(f"mode {image.mode} pixels have no fixed range; use 8 or 16 bits per channel")
        case _:
            return image.convert("RGB")


def encode(image: Image.Image | NDArray[np.uint8], quality: int = QUALITY) -> Jpeg:
    """Encode a grayscale or RGB image, or pixels [H, W] or [H, W, 3], as a JPEG without metadata.

    Raises `InvalidImageError` if the image is too large for a JPEG.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    if max(image.size) > MAX_JPEG_SIDE:
        raise InvalidImageError(
            f"{image.width:,} x {image.height:,} pixels; each side of a JPEG can have at most {MAX_JPEG_SIDE:,}"
        )
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=0, exif=b"", icc_profile=None)
    return Jpeg(stream.getvalue(), *image.size)


def thumbnail_url(data: bytes, side: int) -> str:
    """Return a data URL of the image as a JPEG, with its longer side reduced to at most `side` pixels.

    Raises `InvalidImageError`.
    """
    image = to_gray_or_rgb(decode(data))
    if max(image.size) > side or len(data) > 2**14:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        data = encode(image, 88).data
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
