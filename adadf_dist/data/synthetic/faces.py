"""Synthetic faces whose true label distribution is known.

The expression is a vector of action-unit intensities (the muscle movements of FACS, Ekman & Friesen 1978).
`perceived_distribution` maps that vector to a distribution over seven emotions, ten simulated annotators vote according
to it, and the majority is the label. Everything else in the image (identity, skin, pose, light, glasses, hair, blur,
noise) is sampled independently of it.

    python -m adadf_dist.data.synthetic.faces --out sheet.png --image-size 96 --seed 0
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import make_parser
from adadf_dist.data.synthetic.pixels import camera_effects, smoothstep
from adadf_dist.data.synthetic.renderer import FaceRenderer
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import add_overwrite_option, atomic_file, check_output_path

EMOTIONS: tuple[str, ...] = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger")
"""Class names in label order."""
ANNOTATORS = 10
"""Number of votes per face."""
AMBIGUITY = 0.3
"""Default fraction of faces that blend two emotions; the Bayes-optimal accuracy is then near 90%."""

PROTOTYPES: dict[str, tuple[int, ...]] = {
    "neutral": (),
    "happy": (6, 12),
    "sad": (1, 4, 15),
    "surprise": (1, 2, 5, 26),
    "fear": (1, 2, 4, 5, 7, 20, 26),
    "disgust": (9, 10, 15, 16),
    "anger": (4, 5, 7, 23),
}
"""Action units of each emotion: 1 inner and 2 outer brow raised, 4 brow lowered, 5 upper lid raised, 6 cheek raised,
7 lids tightened, 9 nose wrinkled, 10 upper lip raised, 12 lip corners raised, 15 lip corners lowered, 16 lower lip
lowered, 20 lips stretched, 23 lips tightened, 26 jaw dropped."""
ACTION_UNITS: tuple[int, ...] = tuple(sorted(set().union(*PROTOTYPES.values())))

CONFUSIONS: dict[str, dict[str, float]] = {
    "neutral": {"sad": 0.03, "anger": 0.01},
    "happy": {"neutral": 0.02, "surprise": 0.01},
    "sad": {"neutral": 0.04, "fear": 0.01, "disgust": 0.01},
    "surprise": {"fear": 0.05, "happy": 0.01},
    "fear": {"surprise": 0.06, "sad": 0.01},
    "disgust": {"anger": 0.05, "sad": 0.01},
    "anger": {"disgust": 0.04, "neutral": 0.02},
}
"""Fraction of annotators who confuse one clearly shown emotion with another: an assumption, not a measurement."""

# fmt: off
APPEARANCE: dict[str, tuple[float, float]] = {
    "face_width": (0.68, 0.8), "face_length": (0.94, 1.06), "jaw": (1.8, 2.6), "cheeks": (0, 1), "ear": (0.8, 1.2),
    "eye_distance": (0.29, 0.345), "eye_width": (0.155, 0.19), "eye_height": (0.85, 1.15), "eye_slant": (-0.02, 0.03),
    "nose_width": (0.085, 0.13), "nose_length": (0.3, 0.38), "mouth_width": (0.22, 0.28), "lip": (0.045, 0.085),
    "brow_thickness": (0.028, 0.058), "brow_height": (0.2, 0.245), "age": (0, 1),
    "skin": (0, 1), "redness": (0, 1), "iris": (0, 1), "makeup": (0, 1), "beard": (0, 1),
    "hair_length": (0, 1), "hair_volume": (1.05, 1.22), "hair_line": (-0.74, -0.5), "hair_part": (-0.3, 0.3),
    "hair_wave": (0, 1), "hair_color": (0, 1), "glasses": (0, 1), "frame": (0, 1),
    "roll": (-0.22, 0.22), "yaw": (-0.24, 0.24), "pitch": (-0.14, 0.14), "scale": (0.94, 1.12),
    "shift_x": (-0.06, 0.06), "shift_y": (-0.06, 0.06), "gaze_x": (-1, 1), "gaze_y": (-1, 1),
    "light_x": (-0.9, 0.9), "light_y": (-0.8, 0.2), "light_strength": (0.3, 0.9), "light_warmth": (-1, 1),
    "exposure": (0.82, 1.05), "backdrop": (0, 1), "clothes": (0, 1), "blur": (0, 1), "noise": (0, 1),
}
# fmt: on
"""Bounds of the appearance values, sampled uniformly and independently. Lengths are in half head heights, angles in
radians; positive is clockwise, to the viewer's right, or down."""

_FULL = np.array([[float(unit in PROTOTYPES[name]) for unit in ACTION_UNITS] for name in EMOTIONS])
_ACTIVATION = np.linalg.pinv(_FULL[1:])  # the six prototypes are linearly independent
_CONFUSION = np.array([[CONFUSIONS[true].get(name, 0.0) for name in EMOTIONS] for true in EMOTIONS])
_CONFUSION += np.diag(1 - _CONFUSION.sum(axis=1))
_LOW, _HIGH = np.transpose(list(APPEARANCE.values()))


class Face(NamedTuple):
    """A rendered face and its ground truth."""

    image: NDArray[np.uint8]
    """[size, size, 3] RGB."""
    label: int
    """Emotion with the most votes; ties go to the first one voted for."""
    votes: NDArray[np.int64]
    """[7], number of votes for each emotion; sums to `ANNOTATORS`."""
    distribution: NDArray[np.float64]
    """[7], true probability that an annotator votes for each emotion; sums to 1."""
    units: NDArray[np.float64]
    """[14], intensity of each of `ACTION_UNITS` from 0 to 1, which together define the expression."""
    nuisance: dict[str, float]
    """Sampled values of the properties in `APPEARANCE`."""


def render_sample(seed: int, index: int, size: int = 64, ambiguity: float = AMBIGUITY) -> Face:
    """Render face number `index` of the random sequence `seed`. The result depends only on the arguments.

    A fraction `ambiguity` of the faces blends two emotions. Another `size` (pixels) gives the same face and votes.
    Raises `UserError`. On another processor, rounding in exponentials may change a pixel by one level.
    """
    if not 16 <= size <= 1024:
        raise UserError(f"size {size}: must be from 16 to 1,024 pixels")
    if not 0 <= ambiguity <= 1:
        raise UserError(f"ambiguity {ambiguity}: must be a fraction from 0 to 1")
    if seed < 0 or index < 0:
        raise UserError(f"seed {seed}, face {index}: neither number may be negative")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    appearance = dict(zip(APPEARANCE, rng.uniform(_LOW, _HIGH).tolist(), strict=True))
    units = _sample_units(rng, ambiguity)
    distribution = perceived_distribution(units)
    ballots = rng.choice(len(EMOTIONS), size=ANNOTATORS, p=distribution)
    votes = np.bincount(ballots, minlength=len(EMOTIONS))
    label = next(int(ballot) for ballot in ballots if votes[ballot] == votes.max())
    renderer = FaceRenderer(dict(zip(ACTION_UNITS, units.tolist(), strict=True)), appearance, size)
    image = camera_effects(renderer.image, appearance, rng)
    return Face(image, label, votes, distribution, units, appearance)


def perceived_distribution(units: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the fraction of people who see each emotion, [7], given the intensities of `ACTION_UNITS`, [14].

    Least squares finds the activation of each prototype. An expression that is too weak to notice counts as neutral,
    the emotions divide the rest by activation, and `CONFUSIONS` applies to each fraction.
    """
    activation = np.clip(units @ _ACTIVATION, 0, None)
    strength = activation.sum()
    noticed = smoothstep((strength - 0.05) / 0.8)
    fractions = np.array([1 - noticed, *(noticed * activation / max(strength, 1e-9))])
    distribution: NDArray[np.float64] = fractions @ _CONFUSION
    return distribution


def bayes_accuracy(distributions: ArrayLike, labels: ArrayLike) -> float:
    """Return the Bayes-optimal accuracy, which no classifier exceeds except by chance.

    It is the fraction of `labels` [N] that equal the argmax of the true `distributions` [N, C].
    """
    return float(np.mean(np.argmax(np.asarray(distributions), axis=1) == np.asarray(labels)))


def _sample_units(rng: np.random.Generator, ambiguity: float) -> NDArray[np.float64]:
    """Return action-unit intensities of one emotion at 65% to 100% or of a blend of two, each varied by about 10%."""
    first, second = rng.choice(len(EMOTIONS), size=2, replace=False)
    weight, strength = rng.uniform([0.5, 0.65], [0.62, 1.0])
    weight = weight if rng.random() < ambiguity else 1.0
    muscles = rng.lognormal(0.0, 0.1, len(ACTION_UNITS))
    units: NDArray[np.float64] = np.clip(
        strength * muscles * (weight * _FULL[first] + (1 - weight) * _FULL[second]), 0, 1
    )
    return units


def contact_sheet(seed: int = 0, size: int = 96, columns: int = 10) -> Image.Image:
    """Render `columns` clear faces per emotion, one row each, then two rows of blends with their true distributions."""
    rows: list[list[Face]] = [[] for _ in EMOTIONS]
    index = 0
    while min(map(len, rows)) < columns:
        face = render_sample(seed, index, size, ambiguity=0.0)
        rows[int(face.distribution.argmax())].append(face)
        index += 1
    blends = [render_sample(seed, index + number, size, ambiguity=1.0) for number in range(2 * columns)]
    rows = [row[:columns] for row in rows] + [blends[:columns], blends[columns:]]
    names, caption, wide = 60, 40, max(size, 68) + 4  # pixels: left margin, three lines of text, column width
    tops = [(size + 4) * number + caption * max(0, number - len(EMOTIONS)) for number in range(len(rows))]
    sheet = Image.new("RGB", (names + columns * wide, tops[-1] + size + caption), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for top, row, name in zip(tops, rows, [*EMOTIONS, "blends", "blends"], strict=True):
        pen.text((4, top + size // 2 - 6), name, "black", font)
        for column, face in enumerate(row):
            left = names + column * wide
            sheet.paste(Image.fromarray(face.image), (left, top))
            if name == "blends":
                best = np.argsort(-face.distribution)[:3]
                text = "\n".join(f"{EMOTIONS[emotion]} {face.distribution[emotion]:.2f}" for emotion in best)
                pen.multiline_text((left, top + size), text, "black", font, spacing=1)
    return sheet


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("adadf_dist.data.synthetic.faces", "Render a sheet of synthetic faces.")
    parser.add_argument("--out", type=Path, required=True, help="image file to write")
    parser.add_argument("--image-size", type=int, default=96, help="side of a face in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    add_overwrite_option(parser, "the image")
    options = parser.parse_args(argv)
    with cli_errors("adadf_dist.data.synthetic.faces"):
        if options.out.suffix.lower() not in Image.registered_extensions():
            raise UserError(f"--out {options.out}: unknown image format; use the extension .png")
        check_output_path(options.out, options.overwrite, "--out")
        with atomic_file(options.out) as partial:
            contact_sheet(options.seed, options.image_size).save(partial)


if __name__ == "__main__":
    main()
