"""Random numbers for each sample, a pure function of (seed, epoch, sample), generated for many samples at once.

The generator is counter-based (Philox 4x64-10: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011), so
samples share no state, and it does not matter which process decodes them. Each sample's numbers equal those of
`numpy.random.Generator(numpy.random.Philox(key=...))`, without the cost of creating a generator per sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Row indices of samples within one `SampleRng`."""
Numbers = NDArray[np.float64]

MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
ROUNDS = 10
WORDS = 4
"""Number of 64-bit words in a Philox block."""
FIRST_BLOCKS, MORE_BLOCKS = 6, 4
"""Number of blocks generated at the start (enough for most samples), and each time more are needed."""

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


class SampleRng:
    """Random streams of n samples; each has its own position, so some samples may use more numbers than others."""

    def __init__(self, seed: int, epoch: int, samples: Sequence[int] | NDArray[np.int64]) -> None:
        """Start one stream per sample. `epoch` counts from 0; supports up to 2^23 epochs and 2^40 samples."""
        indices = np.asarray(samples, dtype=np.uint64)
        self._keys = (np.uint64(seed), (np.uint64(epoch) << np.uint64(40)) | indices)
        self._numbers = np.empty((len(indices), 0))
        self._position = np.zeros(len(indices), dtype=np.int64)
        self._generate_blocks(FIRST_BLOCKS)

    def uniform(self, rows: Rows, low: float = 0.0, high: float = 1.0) -> Numbers:
        """Return the next number in [`low`, `high`) for each sample in `rows`, which must not repeat a sample."""
        positions = self._position[rows]
        if len(positions) and positions.max() >= self._numbers.shape[1]:
            self._generate_blocks(MORE_BLOCKS)
        self._position[rows] += 1
        return low + (high - low) * self._numbers[rows, positions]

    def integers(self, rows: Rows, limit: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a random integer from 0 to `limit` - 1 for each sample in `rows`."""
        numbers: NDArray[np.int64] = np.minimum((self.uniform(rows) * limit).astype(np.int64), np.asarray(limit) - 1)
        return numbers

    def normal(self, rows: Rows) -> Numbers:
        """Return a standard normal number for each sample in `rows` (Box-Muller transform)."""
        radius = np.sqrt(-2 * np.log(1 - self.uniform(rows)))
        numbers: Numbers = radius * np.cos(2 * np.pi * self.uniform(rows))
        return numbers

    def random_sign(self, rows: Rows, values: Numbers) -> Numbers:
        """Return `values`, each negated with probability 0.5."""
        return np.where(self.uniform(rows) < 0.5, values, -values)

    def _generate_blocks(self, blocks: int) -> None:
        first = self._numbers.shape[1] // WORDS + 1  # numpy increments before it generates a block
        counters = np.arange(first, first + blocks, dtype=np.uint64)
        words = philox(counters, *self._keys)
        # upper 53 bits as a fraction, like numpy
        more = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        self._numbers = np.concatenate([self._numbers, more.reshape(len(more), -1)], axis=1)


def philox(counters: NDArray[np.uint64], key: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return Philox blocks [n, b, 4] for `counters` [b]; row i uses the key (`key`, `keys[i]`)."""
    shape = (len(keys), len(counters))
    x: list[NDArray[np.uint64]] = [np.broadcast_to(counters, shape), *(np.zeros(shape, dtype=np.uint64),) * 3]
    k0, k1 = np.array([key]), keys[:, None]
    for _ in range(ROUNDS):
        high0, low0 = multiply(MULTIPLIERS[0], x[0])
        high1, low1 = multiply(MULTIPLIERS[1], x[2])
        x = [high1 ^ x[1] ^ k0, low1, high0 ^ x[3] ^ k1, low0]
        k0, k1 = k0 + np.uint64(KEY_STEPS[0]), k1 + np.uint64(KEY_STEPS[1])
    return np.stack(x, axis=-1)


def multiply(constant: int, values: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the high and low 64 bits of the 128-bit products, computed from 32-bit halves."""
    upper, lower = np.uint64(constant >> 32), np.uint64(constant & 0xFFFFFFFF)
    v_upper, v_lower = values >> HALF, values & LOW
    carry = upper * v_lower + ((lower * v_lower) >> HALF)
    middle = lower * v_upper + (carry & LOW)
    high = upper * v_upper + (carry >> HALF) + (middle >> HALF)
    return high, np.uint64(constant) * values
