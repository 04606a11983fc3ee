"""Augmentation draws and operations against Pillow, torchvision and plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from adadf_dist.config.schema import AugmentConfig
from adadf_dist.data.augment import apply_pillow, operations
from adadf_dist.data.augment import policy as augment
from adadf_dist.data.augment.apply_pillow import apply_stages
from adadf_dist.data.augment.operations import PAPER_OPS, TORCHVISION_OPS, Operation, OpKind
from adadf_dist.data.augment.policy import FILL, AugmentationBatch, OpChainBuilder, identity, sample_augmentations
from adadf_dist.data.augment.rng import SampleRng
from tests.helpers import naive_augment

SIZE = 64


def picture(seed: int = 0, size: int = SIZE) -> Image.Image:
    """A smooth image, so that interpolations agree."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def array(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def inside(values: NDArray[np.int64], margin: int = 16) -> NDArray[np.int64]:
    return values[margin:-margin, margin:-margin]


def one(value: float) -> NDArray[np.float64]:
    return np.array([value], dtype=np.float64)


def listed(*stages: tuple[OpKind, object]) -> AugmentationBatch:
    """One sample with these stages, built by `OpChainBuilder`."""
    lists = OpChainBuilder(identity(1, len(stages)))
    draws = SampleRng(0, 0, [0])
    for kind, value in stages:
        made = np.asarray([0.0 if value is None else value])
        lists.add(Operation(kind, lambda levels, made=made: made), np.array([0]), one(0), draws)
    return lists.batch


def applied(image: Image.Image, *stages: tuple[OpKind, object]) -> Image.Image:
    """Stages one by one, each in a list of its own."""
    for stage in stages:
        image = apply_stages(image, listed(stage), 0)
    return image


TABLES: list[tuple[NDArray[np.uint8], Callable[[Image.Image], Image.Image], int]] = [
    (operations.invert(one(0))[0], ImageOps.invert, 0),
    (operations.posterize(one(2))[0], lambda i: ImageOps.posterize(i, 2), 0),
    (operations.posterize(one(8))[0], lambda i: i, 0),
    (operations.solarize(one(128))[0], lambda i: ImageOps.solarize(i, 128), 0),
    (operations.solarize(one(256))[0], lambda i: i, 0),
    (operations.brightness(one(0.6))[0], lambda i: ImageEnhance.Brightness(i).enhance(0.6), 1),
    (operations.brightness(one(1.5))[0], lambda i: ImageEnhance.Brightness(i).enhance(1.5), 1),
]
"""Ours, Pillow's, and the levels they may differ by: Pillow truncates where we round."""


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_lookup_tables_equal_pillow(number: int) -> None:
    ours, theirs, tolerance = TABLES[number]
    image = picture()
    assert np.abs(array(apply_pillow.apply_lut(image, ours)) - array(theirs(image))).max() <= tolerance


def test_solarize_add_by_hand() -> None:
    values = operations.solarize_add(one(55))[0]
    assert values[[0, 100, 127, 128, 200, 255]].tolist() == [55, 155, 182, 128, 200, 255]


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 1.5, 1.9])
def test_enhancements_equal_pillow(factor: float) -> None:
    image = picture(1)
    for kind, enhancer, tolerance in (
        (OpKind.COLOR, ImageEnhance.Color, 2),
        (OpKind.CONTRAST, ImageEnhance.Contrast, 1),
        (OpKind.SHARPNESS, ImageEnhance.Sharpness, 1),
    ):
        difference = np.abs(array(applied(image, (kind, factor))) - array(enhancer(image).enhance(factor)))
        assert difference.max() <= tolerance, kind


def test_saturation_by_hand() -> None:
    image = picture(2)
    pixels = np.asarray(image).astype(float)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    wanted = np.clip(luma[..., None] + 0.4 * (pixels - luma[..., None]), 0, 255)
    assert np.abs(array(applied(image, (OpKind.COLOR, 0.4))) - wanted).max() <= 1


def torch_shift(image: Image.Image, right: float, down: float) -> Image.Image:
    pixels = [round(right * SIZE), round(down * SIZE)]
    return functional.affine(image, 0, pixels, 1.0, [0, 0], v2.InterpolationMode.BILINEAR, list(FILL))


def torch_turn(image: Image.Image, degrees: float) -> Image.Image:
    return functional.rotate(image, degrees, v2.InterpolationMode.BILINEAR, fill=list(FILL))


def test_warps_equal_torchvision() -> None:
    """Torchvision's shift moves the image, ours moves the view."""
    image = picture(3)
    pairs = [
        (operations.rotation(one(15))[0], torch_turn(image, 15)),
        (operations.rotation(one(-30))[0], torch_turn(image, -30)),
        (operations.translate_x(one(0.25))[0], torch_shift(image, -0.25, 0)),
        (operations.translate_y(one(-0.125))[0], torch_shift(image, 0, 0.125)),
    ]
    for warp, wanted in pairs:
        assert np.abs(inside(array(apply_pillow.warp(image, warp))) - inside(array(wanted))).max() <= 2


@pytest.mark.parametrize("factor", [0.15, -0.3])
def test_shear_equals_a_naive_loop(factor: float) -> None:
    image = picture(4, 32)
    ours = array(apply_pillow.warp(image, operations.shear_x(one(factor))[0]))
    pixels = array(image)
    checked = 0
    for row in range(32):
        for column in range(32):
            x = (column + 0.5) + factor * (row + 0.5) - 0.5  # source positions of the output, in pixels
            left = math.floor(x)
            if not 0 <= left < 31:
                continue
            wanted = pixels[row, left] * (left + 1 - x) + pixels[row, left + 1] * (x - left)
            assert np.abs(ours[row, column] - wanted).max() <= 1.01
            checked += 1
    assert checked > 500


def test_pixels_outside_are_filled() -> None:
    shifted = array(apply_pillow.warp(picture(), operations.translate_x(one(0.5))[0]))
    assert (shifted[:, SIZE // 2 + 1 :] == FILL).all()


def test_adjacent_warps_are_merged() -> None:
    image = picture(5)
    first = (OpKind.WARP, operations.rotation(one(10))[0])
    then = (OpKind.WARP, operations.shear_y(one(0.1))[0])
    joined = listed(first, then)
    assert joined.kinds.tolist() == [[OpKind.WARP, OpKind.NOTHING]]
    one_by_one = applied(image, first, then)
    assert np.abs(inside(array(apply_stages(image, joined, 0))) - inside(array(one_by_one))).max() <= 6
    parted = listed(first, (OpKind.TABLE, operations.invert(one(0))[0]), then)
    assert parted.kinds.tolist() == [[OpKind.WARP, OpKind.TABLE, OpKind.WARP]]


def test_adjacent_tables_and_saturations_merge_exactly() -> None:
    image = picture(6)
    tables = operations.solarize(one(100)), operations.posterize(one(3)), operations.brightness(one(0.7))
    stages = [(OpKind.TABLE, table[0]) for table in tables]
    joined = listed(*stages)
    assert np.count_nonzero(joined.kinds) == 1
    assert np.array_equal(array(apply_stages(image, joined, 0)), array(applied(image, *stages)))
    assert listed((OpKind.COLOR, 0.5), (OpKind.COLOR, 0.4)).factors[0, 0] == pytest.approx(0.2)


def test_random_numbers_equal_numpys_generator() -> None:
    samples = np.array([0, 7, 2**39])
    seed, epoch = 2**62 + 3, 11
    ours = SampleRng(seed, epoch, samples)
    drawn = np.stack([ours.uniform(np.arange(3)) for _ in range(50)], axis=1)
    for row, sample in enumerate(samples.tolist()):
        key = np.array([seed, (epoch << 40) | sample], dtype=np.uint64)
        assert drawn[row].tolist() == np.random.Generator(np.random.Philox(key=key)).random(50).tolist()


def test_each_sample_keeps_its_own_stream() -> None:
    alone, together = SampleRng(0, 0, [5]), SampleRng(0, 0, [4, 5])
    for rows in ([0], [0, 1], [0], [1]):
        drawn = together.uniform(np.array(rows))
    assert drawn[0] == [alone.uniform(np.array([0])) for _ in range(2)][1][0]


@pytest.mark.parametrize("policy", ["paper", "torchvision", "none"])
@pytest.mark.parametrize(("number", "magnitude"), [(3, 5.0), (5, 9.5), (1, 0.0)])
def test_batched_draws_equal_single_draws(policy: str, number: int, magnitude: float) -> None:
    """The naive twin draws each number of each sample with numpy's own generators."""
    config = AugmentConfig(policy=policy, num_ops=number, magnitude=magnitude, erase_prob=0.8)  # type: ignore[arg-type]
    samples = np.random.default_rng(1).integers(0, 10**6, 300)
    drawn = sample_augmentations(config, 100, 3, 2, samples)
    stages = 0
    for row, sample in enumerate(samples.tolist()):
        wanted = naive_augment.draw(config, 100, 3, 2, sample)
        assert (bool(drawn.flips[row]), tuple(drawn.boxes[row])) == (wanted.flip, wanted.erase)
        kinds = [OpKind(kind).name for kind in drawn.kinds[row] if kind]
        assert kinds == [stage.kind for stage in wanted.stages]
        for place, stage in enumerate(wanted.stages):
            arrays = {"WARP": drawn.matrices, "TABLE": drawn.tables}.get(stage.kind, drawn.factors)
            if stage.value is not None:
                np.testing.assert_allclose(arrays[row, place], stage.value, rtol=0, atol=1e-12)
        stages += len(kinds)
    assert stages >= {"paper": 120 * number, "torchvision": 200 * number, "none": 0}[policy]


def same(a: AugmentationBatch, b: AugmentationBatch) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_draws_are_pure() -> None:
    config = AugmentConfig()
    whole = sample_augmentations(config, 100, 0, 3, range(50))
    backward = sample_augmentations(config, 100, 0, 3, range(49, -1, -1))
    assert same(whole, AugmentationBatch(*(values[::-1] for values in backward)))
    alone = [sample_augmentations(config, 100, 0, 3, [sample]) for sample in range(50)]
    assert same(whole, AugmentationBatch(*map(np.concatenate, zip(*alone, strict=True))))
    for other in (
        sample_augmentations(config, 100, 0, 4, range(50)),
        sample_augmentations(config, 100, 1, 3, range(50)),
    ):
        equal = [[np.array_equal(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(whole, other, strict=True)]
        assert np.all(equal, axis=0).sum() < 10


def test_streams_suffice_for_any_number_of_operations() -> None:
    drawn = sample_augmentations(AugmentConfig(num_ops=100, erase_prob=1.0), 64, 0, 0, [0])
    assert np.count_nonzero(drawn.kinds) > 10
    assert np.array_equal(
        drawn.boxes, sample_augmentations(AugmentConfig(num_ops=0, erase_prob=1.0), 64, 0, 0, [0]).boxes
    )


def test_streams_of_different_samples_do_not_overlap() -> None:
    firsts = {n for epoch in range(20) for n in SampleRng(0, epoch, range(200)).uniform(np.arange(200)).tolist()}
    assert len(firsts) == 4000


@pytest.mark.parametrize("policy", ["paper", "torchvision"])
def test_operations_are_drawn_uniformly(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-squared over 6,000 draws; the 0.1 % limits of 14 and 13 degrees of freedom are 36.1 and 34.5."""
    kinds = PAPER_OPS if policy == "paper" else TORCHVISION_OPS
    drawn = np.zeros(len(kinds))

    def spy(number: int) -> Operation:
        def make(levels: NDArray[np.float64]) -> NDArray[np.uint8]:
            drawn[number] += len(levels)
            return operations.invert(levels)

        return Operation(OpKind.TABLE, make)

    monkeypatch.setattr(
        augment, "PAPER_OPS" if policy == "paper" else "TORCHVISION_OPS", tuple(spy(i) for i in range(len(kinds)))
    )
    sample_augmentations(AugmentConfig(policy=policy, num_ops=3), 64, 0, 0, range(2000))  # type: ignore[arg-type]
    total = drawn.sum()
    expected = 6000 * (0.5 if policy == "paper" else 1.0)
    assert abs(total - expected) < 4 * math.sqrt(6000 * 0.25) + 1
    even = total / len(kinds)
    assert ((drawn - even) ** 2 / even).sum() < 36.2
    assert len(kinds) == {"paper": 15, "torchvision": 14}[policy]


def test_published_levels_at_magnitude_five() -> None:
    """The published constants: 15 degrees, 2 bits, 128, 55, 1.0, 0.15, 0.225."""
    made = [operation.params_from_level(one(5.0))[0] for operation in PAPER_OPS]
    cos, sin = math.cos(math.radians(15)), math.sin(math.radians(15))
    linear = {3: [[cos, sin], [sin, cos]], 11: [[1, 0.15], [0, 1]], 12: [[1, 0], [0.15, 1]]}
    for number, wanted in linear.items():
        assert PAPER_OPS[number].kind == OpKind.WARP
        assert np.allclose(np.abs(made[number][:, :2]), wanted)
    tables = {4: (255, 192), 5: (128, 127), 6: (100, 155)}
    for number, (value, becomes) in tables.items():
        assert PAPER_OPS[number].kind == OpKind.TABLE
        assert made[number][value] == becomes
    for number, kind in ((7, OpKind.COLOR), (8, OpKind.CONTRAST), (10, OpKind.SHARPNESS)):
        assert PAPER_OPS[number].kind == kind
        assert made[number] == pytest.approx(1)
    for number, place in ((13, (0, 2)), (14, (1, 2))):
        assert abs(made[number][place]) == pytest.approx(0.225)
    assert [o.signed for o in PAPER_OPS] == [number in (3, 11, 12, 13, 14) for number in range(15)]


def test_levels_vary_around_the_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[float] = []

    def make(drawn: NDArray[np.float64]) -> NDArray[np.uint8]:
        levels.extend(drawn.tolist())
        return operations.invert(drawn)

    monkeypatch.setattr(augment, "PAPER_OPS", (Operation(OpKind.TABLE, make),))
    sample_augmentations(AugmentConfig(num_ops=1), 64, 0, 0, range(6000))
    assert np.mean(levels) == pytest.approx(5, abs=0.06)
    assert np.std(levels) == pytest.approx(0.5, abs=0.04)


def test_standard_magnitudes_equal_torchvision() -> None:
    """Torchvision's table of magnitudes, bin 9 of 31, on an image of 100 pixels."""
    theirs = v2.RandAugment(num_ops=1, magnitude=9)._AUGMENTATION_SPACE  # type: ignore[attr-defined]
    made = [operation.params_from_level(one(9 / 30))[0] for operation in TORCHVISION_OPS]
    for name, ours in {"ShearX": made[1][0, 1], "Color": made[7] - 1}.items():
        assert float(theirs[name][0](31, 100, 100)[9]) == pytest.approx(float(ours), abs=1e-6)
    turned = math.degrees(math.asin(made[5][1, 0]))
    assert float(theirs["Rotate"][0](31, 100, 100)[9]) == pytest.approx(turned, abs=1e-5)
    assert float(theirs["TranslateX"][0](31, 100, 100)[9]) == pytest.approx(100 * made[3][0, 2], abs=1e-4)
    for number in range(31):
        (table,) = TORCHVISION_OPS[10].params_from_level(one(number / 30))
        bits = int(theirs["Posterize"][0](31, 100, 100)[number])
        assert np.array_equal(table, np.arange(256) & ~(2 ** (8 - bits) - 1))
    assert len(theirs) == len(TORCHVISION_OPS)


def test_flip_and_erase_rates() -> None:
    drawn = sample_augmentations(AugmentConfig(), 100, 0, 0, range(3000))
    assert drawn.flips.mean() == pytest.approx(0.5, abs=0.04)
    boxes = drawn.boxes[drawn.boxes.any(axis=1)]
    assert len(boxes) / 3000 == pytest.approx(0.5, abs=0.04)
    top, left, bottom, right = boxes.T
    areas = (bottom - top) * (right - left) / 1e4
    assert areas.min() > 0.015
    assert areas.max() < 0.26
    assert areas.mean() == pytest.approx(0.13, abs=0.02)
    assert ((top >= 0) & (top < bottom) & (bottom <= 100) & (left >= 0) & (left < right) & (right <= 100)).all()


def test_disabled_augmentation_is_the_identity() -> None:
    config = AugmentConfig(policy="none", flip_prob=0.0, erase_prob=0.0)
    assert same(sample_augmentations(config, 64, 0, 0, range(100)), identity(100))
    assert same(sample_augmentations(AugmentConfig(), 64, 0, -1, range(100)), identity(100))


def test_auto_contrast_and_equalize_equal_torchvision() -> None:
    dark = Image.fromarray((np.asarray(picture(7)) // 3 + 40).astype(np.uint8))
    tensor = torch.from_numpy(np.asarray(dark).copy()).permute(2, 0, 1)
    pairs = [(OpKind.AUTO_CONTRAST, functional.autocontrast(tensor)), (OpKind.EQUALIZE, functional.equalize(tensor))]
    for kind, wanted in pairs:
        ours = array(applied(dark, (kind, None)))
        assert np.abs(ours - wanted.permute(1, 2, 0).numpy()).max() <= 1
