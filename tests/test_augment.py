"""What augmentation draws, and what applying it does, against Pillow, torchvision and plain arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from adadf_dist.config import AugmentConfig
from adadf_dist.data import augment
from adadf_dist.data.apply import apply_stage
from adadf_dist.data.augment import FILL, Color, Contrast, Draws, Sharpness, Stage, Table, Warp, draw, normal_form

SIZE = 64


def picture(seed: int = 0, size: int = SIZE) -> Image.Image:
    """Smooth, so that interpolation has something to agree on."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def array(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def inside(values: NDArray[np.int64], margin: int = 16) -> NDArray[np.int64]:
    return values[margin:-margin, margin:-margin]


TABLES: list[tuple[Table, Callable[[Image.Image], Image.Image], int]] = [
    (augment.invert(), ImageOps.invert, 0),
    (augment.posterize(2), lambda i: ImageOps.posterize(i, 2), 0),
    (augment.posterize(8), lambda i: i, 0),
    (augment.solarize(128), lambda i: ImageOps.solarize(i, 128), 0),
    (augment.solarize(256), lambda i: i, 0),
    (augment.brightness(0.6), lambda i: ImageEnhance.Brightness(i).enhance(0.6), 1),
    (augment.brightness(1.5), lambda i: ImageEnhance.Brightness(i).enhance(1.5), 1),
]
"""Ours, Pillow's, and the levels they may differ by: Pillow truncates where we round."""


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_tables_against_pillow(number: int) -> None:
    ours, theirs, tolerance = TABLES[number]
    image = picture()
    assert np.abs(array(apply_stage(image, ours)) - array(theirs(image))).max() <= tolerance


def test_solarize_add_by_hand() -> None:
    values = augment.solarize_add(55).values
    assert values[[0, 100, 127, 128, 200, 255]].tolist() == [55, 155, 182, 128, 200, 255]


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 1.5, 1.9])
def test_enhancements_against_pillow(factor: float) -> None:
    image = picture(1)
    for stage, enhancer, tolerance in (
        (Color(factor), ImageEnhance.Color, 2),
        (Contrast(factor), ImageEnhance.Contrast, 1),
        (Sharpness(factor), ImageEnhance.Sharpness, 1),
    ):
        difference = np.abs(array(apply_stage(image, stage)) - array(enhancer(image).enhance(factor)))
        assert difference.max() <= tolerance, type(stage)


def test_saturation_by_arithmetic() -> None:
    image = picture(2)
    pixels = np.asarray(image).astype(float)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    wanted = np.clip(luma[..., None] + 0.4 * (pixels - luma[..., None]), 0, 255)
    assert np.abs(array(apply_stage(image, Color(0.4))) - wanted).max() <= 1


def torch_shift(image: Image.Image, right: float, down: float) -> Image.Image:
    pixels = [round(right * SIZE), round(down * SIZE)]
    return functional.affine(image, 0, pixels, 1.0, [0, 0], v2.InterpolationMode.BILINEAR, list(FILL))


def test_warps_against_torchvision() -> None:
    """Its shift moves the picture, where ours moves the view."""
    image = picture(3)
    pairs = [
        (augment.rotation(15), functional.rotate(image, 15, v2.InterpolationMode.BILINEAR, fill=list(FILL))),
        (augment.rotation(-30), functional.rotate(image, -30, v2.InterpolationMode.BILINEAR, fill=list(FILL))),
        (augment.translate_x(0.25), torch_shift(image, -0.25, 0)),
        (augment.translate_y(-0.125), torch_shift(image, 0, 0.125)),
    ]
    for warp, wanted in pairs:
        assert np.abs(inside(array(apply_stage(image, warp))) - inside(array(wanted))).max() <= 2


@pytest.mark.parametrize("factor", [0.15, -0.3])
def test_shear_by_a_naive_loop(factor: float) -> None:
    image = picture(4, 32)
    ours = array(apply_stage(image, augment.shear_x(factor)))
    pixels = array(image)
    checked = 0
    for row in range(32):
        for column in range(32):
            x = (column + 0.5) + factor * (row + 0.5) - 0.5  # where the output looks, in pixels
            left = math.floor(x)
            if not 0 <= left < 31:
                continue
            wanted = pixels[row, left] * (left + 1 - x) + pixels[row, left + 1] * (x - left)
            assert np.abs(ours[row, column] - wanted).max() <= 1.01
            checked += 1
    assert checked > 500


def test_outside_is_filled() -> None:
    shifted = array(apply_stage(picture(), augment.translate_x(0.5)))
    assert (shifted[:, SIZE // 2 + 1 :] == FILL).all()


def test_neighbouring_warps_join_to_one() -> None:
    image = picture(5)
    first, then = augment.rotation(10), augment.shear_y(0.1)
    (joined,) = normal_form([first, then])
    one_by_one = apply_stage(apply_stage(image, first), then)
    assert np.abs(inside(array(apply_stage(image, joined))) - inside(array(one_by_one))).max() <= 6
    assert len(normal_form([first, augment.invert(), then])) == 3


def test_neighbouring_tables_join_exactly() -> None:
    image = picture(6)
    stages: list[Stage] = [augment.solarize(100), augment.posterize(3), augment.brightness(0.7)]
    (joined,) = normal_form(stages)
    one_by_one = image
    for stage in stages:
        one_by_one = apply_stage(one_by_one, stage)
    assert np.array_equal(array(apply_stage(image, joined)), array(one_by_one))


def same(a: augment.Augmentation, b: augment.Augmentation) -> bool:
    return repr(a) == repr(b)


def test_drawing_is_pure() -> None:
    config = AugmentConfig()
    forward = [draw(config, 100, 0, 3, sample) for sample in range(50)]
    backward = [draw(config, 100, 0, 3, sample) for sample in reversed(range(50))]
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    again = [draw(config, 100, 0, 4, sample) for sample in range(50)]
    seeded = [draw(config, 100, 1, 3, sample) for sample in range(50)]
    assert sum(same(a, b) for a, b in zip(forward, again, strict=True)) < 10
    assert sum(same(a, b) for a, b in zip(forward, seeded, strict=True)) < 10


def test_no_number_of_operations_runs_a_stream_dry() -> None:
    config = AugmentConfig(operations=100, erase=1.0)
    assert len(draw(config, 64, 0, 0, 0).stages) > 10
    assert draw(config, 64, 0, 0, 0).erase == draw(AugmentConfig(operations=0, erase=1.0), 64, 0, 0, 0).erase


def test_streams_of_different_faces_do_not_meet() -> None:
    firsts = {Draws(0, epoch, sample).uniform() for epoch in range(20) for sample in range(200)}
    assert len(firsts) == 4000


@pytest.mark.parametrize("policy", ["published", "standard"])
def test_operations_are_drawn_evenly(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-squared over 6,000 draws; the 0.1 % limits of 14 and 13 degrees of freedom are 36.1 and 34.5."""
    operations = augment.PUBLISHED if policy == "published" else augment.STANDARD
    drawn: Counter[int] = Counter()

    def spy(number: int) -> Callable[[float, Draws], Stage]:
        def operate(level: float, draws: Draws) -> Stage:
            drawn[number] += 1
            return augment.invert()

        return operate

    monkeypatch.setattr(augment, policy.upper(), tuple(spy(i) for i in range(len(operations))))
    config = AugmentConfig(policy=policy, operations=3)  # type: ignore[arg-type]
    for sample in range(2000):
        draw(config, 64, 0, 0, sample)
    total = sum(drawn.values())
    expected = 6000 * (0.5 if policy == "published" else 1.0)
    assert abs(total - expected) < 4 * math.sqrt(6000 * 0.25) + 1
    even = total / len(operations)
    assert sum((drawn[i] - even) ** 2 / even for i in range(len(operations))) < 36.2
    assert len(operations) == {"published": 15, "standard": 14}[policy]


def test_published_levels_at_magnitude_five() -> None:
    """The recipe's constants, written out again: 15 degrees, 2 bits, 128, 55, 1.0, 0.15, 0.225."""
    draws = Draws(0, 0, 0)
    stages = [operation(5.0, draws) for operation in augment.PUBLISHED]
    angle = 15.0

    def near(stage: Stage, wanted: list[list[float]]) -> bool:
        assert isinstance(stage, Warp)
        return bool(np.allclose(np.abs(stage.matrix[:, :2]), wanted))

    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    assert near(stages[3], [[cos, sin], [sin, cos]])
    tables = {4: (255, 192), 5: (128, 127), 6: (100, 155)}
    for number, (value, becomes) in tables.items():
        stage = stages[number]
        assert isinstance(stage, Table)
        assert stage.values[value] == becomes
    for number, kind in ((7, Color), (8, Contrast), (10, Sharpness)):
        stage = stages[number]
        assert isinstance(stage, kind)
        assert stage.factor == pytest.approx(1)
    assert near(stages[11], [[1, 0.15], [0, 1]])
    assert near(stages[12], [[1, 0], [0.15, 1]])
    for number, place in ((13, (0, 2)), (14, (1, 2))):
        stage = stages[number]
        assert isinstance(stage, Warp)
        assert abs(stage.matrix[place]) == pytest.approx(0.225)


def test_levels_wander_about_the_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[float] = []
    monkeypatch.setattr(augment, "PUBLISHED", (lambda m, d: levels.append(m) or augment.invert(),))
    for sample in range(3000):
        draw(AugmentConfig(operations=1), 64, 0, 0, sample)
    assert np.mean(levels) == pytest.approx(5, abs=0.06)
    assert np.std(levels) == pytest.approx(0.5, abs=0.04)


def test_standard_strengths_are_torchvisions() -> None:
    """Its own table of magnitudes, bin 9 of 31, on an image of 100 pixels."""
    theirs = v2.RandAugment(num_ops=1, magnitude=9)._AUGMENTATION_SPACE  # type: ignore[attr-defined]
    strength = 9 / 30
    for name, ours in {"ShearX": 0.3 * strength, "Rotate": 30 * strength, "Brightness": 0.9 * strength}.items():
        magnitudes = theirs[name][0](31, 100, 100)
        assert float(magnitudes[9]) == pytest.approx(ours, abs=1e-6)
    assert float(theirs["TranslateX"][0](31, 100, 100)[9]) == pytest.approx(100 * 150 / 331 * strength, abs=1e-4)
    for number in range(31):
        assert int(theirs["Posterize"][0](31, 100, 100)[number]) == 8 - round(4 * number / 30)
    assert len(theirs) == len(augment.STANDARD)


def test_flip_and_erase_rates() -> None:
    drawn = [draw(AugmentConfig(), 100, 0, 0, sample) for sample in range(3000)]
    assert np.mean([a.flip for a in drawn]) == pytest.approx(0.5, abs=0.04)
    boxes = [a.erase for a in drawn if a.erase != augment.NO_BOX]
    assert len(boxes) / 3000 == pytest.approx(0.5, abs=0.04)
    areas = np.array([(b.bottom - b.top) * (b.right - b.left) / 1e4 for b in boxes])
    assert areas.min() > 0.015
    assert areas.max() < 0.26
    assert areas.mean() == pytest.approx(0.13, abs=0.02)
    assert all(0 <= b.top < b.bottom <= 100 and 0 <= b.left < b.right <= 100 for b in boxes)


def test_nothing_happens_when_nothing_may() -> None:
    config = AugmentConfig(policy="none", flip=0.0, erase=0.0)
    assert all(draw(config, 64, 0, 0, sample) == augment.NO_AUGMENTATION for sample in range(100))


def test_auto_contrast_and_equalize_against_torchvision() -> None:
    dark = Image.fromarray((np.asarray(picture(7)) // 3 + 40).astype(np.uint8))
    tensor = torch.from_numpy(np.asarray(dark).copy()).permute(2, 0, 1)
    pairs = [
        (augment.AutoContrast(), functional.autocontrast(tensor), 1),
        (augment.Equalize(), functional.equalize(tensor), 1),
    ]
    for stage, wanted, tolerance in pairs:
        assert np.abs(array(apply_stage(dark, stage)) - wanted.permute(1, 2, 0).numpy()).max() <= tolerance
