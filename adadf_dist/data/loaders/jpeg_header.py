"""Checks whether a JPEG is safe to pass to DALI.

An image that fails to decode ends a DALI pipeline with a recoverable error, but an unparsable header may crash the
process (in DALI 2.4, a thread continues to work on a call that has already raised an exception). Images with unusual
headers therefore bypass DALI.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adadf_dist.data.augment.compiled import compiled
from adadf_dist.data.jpeg import MAX_PIXELS, MIN_SIDE

START, END, SCAN, HUFFMAN = 0xD8, 0xD9, 0xDA, 0xC4
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
LUMA_FACTORS, CHROMA_FACTOR = (0x11, 0x21, 0x12, 0x22, 0x41), 0x11
"""Sampling factors of the common subsamplings: 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1."""
LAST_FRAME, RESTART, FIRST, LAST = 0xCF, 0xD0, 0xC0, 0xFE


@compiled
def is_well_formed_jpeg(data: NDArray[np.uint8]) -> bool:
    """Return whether all markers up to the first scan are well formed and describe a common type of JPEG.

    This is one 8-bit frame of one or three components, with a common chroma subsampling and an allowed size.
    """
    if len(data) < 4 or data[0] != 0xFF or data[1] != START:
        return False
    position, framed = 2, False
    while position + 4 <= len(data):
        marker = data[position + 1]
        end = position + 2 + read_uint16(data, position + 2)
        if data[position] != 0xFF or not FIRST <= marker <= LAST or RESTART <= marker <= END or end > len(data):
            return False
        if end < position + 4:
            return False
        if marker in (BASELINE, EXTENDED, PROGRESSIVE):
            if framed or not is_well_formed_frame(data[position:end]):
                return False
            framed = True
        elif marker <= LAST_FRAME and marker != HUFFMAN:
            return False
        if marker == SCAN:
            return framed
        position = end
    return False


@compiled
def is_well_formed_frame(frame: NDArray[np.uint8]) -> bool:
    """Return whether a frame header is well formed and describes a common type of JPEG."""
    if len(frame) < 13:
        return False
    height, width, components = read_uint16(frame, 5), read_uint16(frame, 7), frame[9]
    if frame[4] != 8 or components not in (1, 3) or len(frame) != 10 + 3 * components:
        return False
    if min(height, width) < MIN_SIDE or height * width > MAX_PIXELS:
        return False
    if frame[11] not in LUMA_FACTORS:
        return False
    return components == 1 or bool(frame[14] == CHROMA_FACTOR and frame[17] == CHROMA_FACTOR)


@compiled
def read_uint16(data: NDArray[np.uint8], position: int) -> Any:
    return np.int64(data[position]) * 256 + data[position + 1]
