"""The search for duplicates, compared with brute force and with FER2013's pixels."""

from __future__ import annotations

import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from adadf_dist.data.synthetic.faces import render_sample
from shards.doctor.duplicates import connected_components
from shards.doctor.fingerprint import (
    MAX_HAMMING_DISTANCE,
    MIN_SIMILARITY,
    MIRROR,
    MIRROR_BITS,
    NO_FLIP,
    fingerprint,
    hashes,
    near_pairs,
    similarity,
)
from tests.conftest import SHARED
from tests.helpers.doctor_output import DoctorOutput, same_groups


@pytest.mark.parametrize("flip", [NO_FLIP, MIRROR_BITS])
def test_near_pairs_equal_brute_force(flip: np.uint64) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, 1200, dtype=np.uint64)
    for bits in range(10):  # copies 0 to 9 bits away, of which those up to RADIUS must be found
        for number in range(60):
            flipped = np.bitwise_xor.reduce(np.uint64(1) << rng.choice(64, bits, replace=False).astype(np.uint64))
            codes[600 + 60 * bits + number] = codes[number] ^ flipped ^ flip
    distances = np.bitwise_count(codes[:, None] ^ codes[None] ^ flip)
    naive = {(int(i), int(j)) for i, j in np.argwhere(distances <= MAX_HAMMING_DISTANCE) if i < j}
    found = [tuple(pair) for chunk in near_pairs(codes, flip) for pair in chunk.tolist()]
    assert len(found) == len(set(found)), "each pair once"
    assert set(found) == naive
    assert len(naive) > 400


def test_equal_hashes_are_all_paired() -> None:
    codes = np.full(50, 12345, dtype=np.uint64)
    assert sum(len(chunk) for chunk in near_pairs(codes)) == 50 * 49 // 2
    assert not list(near_pairs(codes[:1]))
    assert not list(near_pairs(codes[:0]))


def test_synthetic_faces_are_no_near_duplicates() -> None:
    """Every pair, not only those with near hashes; mirrored too. The threshold's docstring has the same for 2,000."""
    prints = np.stack(
        [fingerprint(Image.fromarray(render_sample(3, index, 48).image).convert("L")) for index in range(400)]
    ).astype(np.float32)
    for other in (prints, prints * MIRROR):
        alike = prints @ other.T
        np.fill_diagonal(alike, 0)
        assert alike.max() < MIN_SIMILARITY
        assert alike.max() > 0.5, "faces are alike, or the test would say nothing"


def test_mirrored_fingerprint_equals_that_of_the_mirrored_image() -> None:
    gray = Image.fromarray(render_sample(1, 5, 64).image).convert("L")
    straight, mirrored = (fingerprint(image).astype(np.float32) for image in (gray, ImageOps.mirror(gray)))
    assert np.abs(straight * MIRROR - mirrored).max() < 5e-3
    assert np.abs(straight - mirrored).max() > 0.05
    both = np.stack([straight, mirrored]).astype(np.float16)
    pair = np.array([[0, 1]])
    assert similarity(both, pair, mirrored=True)[0] > 0.999
    codes = hashes(both)
    assert np.bitwise_count(codes[0] ^ codes[1] ^ MIRROR_BITS) <= 2


def test_groups_are_joined_transitively() -> None:
    assert connected_components([(5, 6), (1, 2), (9, 5), (2, 3)]) == [[1, 2, 3], [5, 6, 9]]
    assert connected_components([]) == []


def test_fer2013_sample_equals_its_csv(tmp_path: Path) -> None:
    """Exact copies are equal pixel strings."""
    path = SHARED / "data" / "fer2013" / "mini_fer2013.csv.gz"
    if not path.is_file():
        pytest.skip("FER2013 is not available")
    root = tmp_path / "fer"
    root.mkdir()
    shutil.copy(path, root / "fer2013.csv.gz")
    output = DoctorOutput(root, tmp_path)
    with gzip.open(path, "rt") as stream:
        rows = list(csv.DictReader(stream))
    test = {row["pixels"] for row in rows if row["Usage"] == "PublicTest"}
    alike: dict[str, set[str]] = {}
    for number, row in enumerate(rows):
        if row["Usage"] == "Training":
            alike.setdefault(row["pixels"], set()).add(f"fer2013.csv.gz row {number}")
    leaks = sum(len(copies) for pixels, copies in alike.items() if pixels in test)
    [exact] = [finding for finding in output.findings("leaks") if "exact" in finding["message"]]
    assert exact["message"].split()[0] == str(leaks)
    copies = [found for found in alike.values() if len(found) > 1]
    assert copies
    assert same_groups(output.groups("duplicates", "exact", "train"), copies)
