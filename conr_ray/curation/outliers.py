"""Outliers: samples, and whole small groups of samples, that are far from most others.

Shapes: n samples, d width, s samples that stand for all, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from conr_ray.curation.calibration import Normal, precisions, threshold
from conr_ray.curation.cells import Neighbors
from conr_ray.curation.samples import Samples

LEAST_PRECISION = 0.7
"""Of all outliers that are reported together."""

# Samples that stand for all; the share of them that a distance is averaged over.
_SAMPLE, _MASS = 4096, 0.05
# Neighbours that scores are averaged over, and how often.
_NEAR, _ROUNDS = 20, 3
_BLOCK = 2048


@dataclass(frozen=True)
class Outliers:
    """The outliers among n samples.

    Attributes:
        scores_n: of all samples; 0 is the median.
        rows_m: those that are reported, the farthest first.
        precisions_m: estimated share of outliers among those with at least such a score.
        threshold: the least score that is reported.
    """

    scores_n: NDArray[np.float64]
    rows_m: NDArray[np.int64]
    precisions_m: NDArray[np.float64]
    threshold: float

    @property
    def scores_m(self) -> NDArray[np.float64]:
        """Of those that are reported."""
        return self.scores_n[self.rows_m]


def outliers(samples: Samples, neighbors: Neighbors, seed: int = 0) -> Outliers:
    """The samples far from most others, with their neighbours.

    The score is the mean distance to the nearest 5% of all (distance to a measure, Chazal et al.
    2011), estimated from a sample: small groups that are close to one another stay far. It is then
    averaged over mutual neighbours, thrice, so that a sample counts as far if those that are like
    it are. Others do not count: the lists of outliers hold ordinary samples too, which are near to
    many (hubs, Radovanovic et al. 2010). The score's logarithm is compared with the upper half of
    all, which tells how many are expected above any threshold. Distances are between half-whitened
    vectors.
    """
    sound_n = np.ones(samples.num_rows, bool)
    sound_n[list(samples.broken)] = False
    far_n = _distances(samples, np.flatnonzero(sound_n), seed)
    near_nk = np.asarray(neighbors.rows_nk[:, : _NEAR - 1], np.int64)
    usable_nk = (near_nk >= 0) & sound_n[near_nk] & _mutual(near_nk)
    for _ in range(_ROUNDS):
        sums = far_n + np.where(usable_nk, far_n[near_nk], 0).sum(1)
        far_n = sums / (1 + usable_nk.sum(1))
    median = max(float(np.median(far_n[sound_n])), 1e-12)
    scores_n = np.log(np.maximum(far_n, 1e-12) / median)
    scores_n[~sound_n] = 0
    precisions_n = precisions(scores_n, Normal.of(scores_n[sound_n]))
    least = threshold(scores_n, precisions_n, LEAST_PRECISION)
    rows_m = np.flatnonzero((scores_n >= least) & sound_n)
    rows_m = rows_m[np.lexsort((rows_m, -scores_n[rows_m]))]
    return Outliers(scores_n, rows_m, precisions_n[rows_m], least)


def _mutual(near_nk: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each sample is among the neighbours of its neighbours, (n, k)."""
    found_nk = np.empty(near_nk.shape, bool)
    for start in range(0, len(near_nk), _BLOCK):
        part = slice(start, start + _BLOCK)
        rows_b11 = np.arange(start, start + len(near_nk[part]))[:, None, None]
        found_nk[part] = (near_nk[near_nk[part]] == rows_b11).any(2)
    return found_nk


def _distances(samples: Samples, sound: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Mean distance of each sample to the nearest share `_MASS` of a sample of the sound ones."""
    chosen = np.random.default_rng(seed).choice(sound, min(_SAMPLE, len(sound)), replace=False)
    scales_d = torch.from_numpy(np.maximum(samples.variances_d, 1e-9) ** -0.25).float()
    sample_sd = _rows(samples, np.sort(chosen)) * scales_d
    squares_s = sample_sd.square().sum(1)
    count = max(1, round(_MASS * len(sample_sd)))
    found = np.empty(samples.num_rows)
    for start in range(0, samples.num_rows, _BLOCK):
        rows_bd = _rows(samples, np.arange(start, min(start + _BLOCK, samples.num_rows))) * scales_d
        products_bs = squares_s - 2 * (rows_bd @ sample_sd.T)
        nearest = products_bs.topk(count, dim=1, largest=False, sorted=False).values
        squared = nearest + rows_bd.square().sum(1, keepdim=True)
        found[start : start + len(rows_bd)] = squared.clamp(min=0).sqrt().mean(1).double().numpy()
    return found


def _rows(samples: Samples, rows: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(samples.vectors_nd[rows] * samples.lengths_n[rows][:, None])
