"""Mean and standard deviation of samples that come in blocks."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from conr_ray.data.sources.base import Int64Array, UInt8Array

_Numbers = tuple[float, ...]


class Statistics(Protocol):
    """Sums over added blocks; the result does not depend on how rows are split into blocks."""

    def add(self, block: NDArray[Any]) -> None:
        """Add a block (b, ...)."""

    def mean_and_std(self) -> tuple[_Numbers, _Numbers]:
        """Mean and standard deviation over all blocks."""


def statistics_of(shape: tuple[int, ...]) -> Statistics:
    """The statistics of samples of an array of `shape`: images (n, c, h, w) or vectors (n, d)."""
    return FeatureStatistics() if len(shape) == 2 else ChannelStatistics()


class ChannelStatistics:
    """Mean and deviation of each channel, of values scaled to 0..1. Sums are exact integers."""

    def __init__(self) -> None:
        self._count = 0
        self._values: Int64Array | None = None
        self._squares: Int64Array | None = None

    def add(self, block: UInt8Array) -> None:
        """Add images (b, c, h, w)."""
        flat = block.reshape(*block.shape[:2], -1)
        # 255 squared just fits into 16 bits, and 65,536 of them into 32, which are added faster.
        wide = np.uint32 if flat.shape[2] <= 2**16 else np.int64
        values = flat.sum(2, dtype=wide).sum(0, dtype=np.int64)
        squares = np.square(flat, dtype=np.uint16).sum(2, dtype=wide).sum(0, dtype=np.int64)
        self._count += block.size // block.shape[1]
        self._values = values if self._values is None else self._values + values
        self._squares = squares if self._squares is None else self._squares + squares

    def mean_and_std(self) -> tuple[_Numbers, _Numbers]:
        """Both (c,)."""
        assert self._values is not None and self._squares is not None, "no images"
        mean, std, n = [], [], self._count
        # Python's integers do not overflow where n * squares exceeds 64 bits.
        for values, squares in zip(self._values.tolist(), self._squares.tolist(), strict=True):
            mean.append(values / (n * 255))
            std.append(math.sqrt(n * squares - values * values) / (n * 255))
        return tuple(mean), tuple(std)


class FeatureStatistics:
    """Mean of each feature, and one standard deviation pooled over all features."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: NDArray[np.float64] | None = None
        self._squares = 0.0

    def add(self, block: NDArray[np.float32]) -> None:
        """Add vectors (b, d)."""
        count, mean = len(block), block.mean(0, dtype=np.float64)
        self._squares += float(np.square(block - mean).sum())
        if self._mean is None:
            self._count, self._mean = count, mean
            return
        total, shift = self._count + count, mean - self._mean
        self._squares += float(np.square(shift).sum()) * self._count * count / total
        self._mean = self._mean + shift * count / total
        self._count = total

    def mean_and_std(self) -> tuple[_Numbers, _Numbers]:
        """(d,) and (1,)."""
        assert self._mean is not None, "no vectors"
        scale = math.sqrt(self._squares / (self._count * len(self._mean)))
        return tuple(self._mean.tolist()), (scale,)
