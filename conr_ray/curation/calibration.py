"""Thresholds without labels, and the precision to expect above them.

Scores of what is to be found are compared with those of ordinary samples or pairs, whose upper tail
is taken to fall exponentially, or normally if they are averages. As many of them as it lets expect
above a threshold are false there (target-decoy estimate of the false discovery rate, Elias and Gygi
2007; tail over a threshold, Pickands 1975; empirical null, Efron 2004).

Shapes: n scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

# No estimate says that all are true.
_SUREST = 0.9999

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Tail:
    """Upper tail of ordinary scores: `share` of them is above `start`, fewer by `rate` further up.

    Attributes:
        start: a score.
        share: 0 to 1.
        rate: of the exponential fall, per unit of score.
    """

    start: float
    share: float
    rate: float

    @classmethod
    def between(cls, scores_n: Floats, low: float, high: float) -> Tail:
        """From two quantiles, so that the scores above `high` may be anything.

        If the quantiles are equal, nothing is expected above them.
        """
        start, end = np.quantile(scores_n, [low, high])
        spread = float(end - start)
        rate = np.log((1 - low) / (1 - high)) / spread if spread > 0 else np.inf
        return cls(float(start), 1 - low, float(rate))

    @classmethod
    def above(cls, scores_n: Floats, start: float, least_rate: float) -> Tail:
        """From the scores above `start` and their median; with few of them at least as heavy.

        Args:
            scores_n: of ordinary pairs; a few may be anything.
            start: a score that some reach.
            least_rate: the rate where there are too few to tell.
        """
        over = scores_n[scores_n > start] - start
        share = (len(over) + 1) / (len(scores_n) + 1)
        rate = np.log(2) / max(float(np.median(over)), 1e-9) if len(over) >= 10 else least_rate
        return cls(start, float(share), float(rate))

    def beyond(self, scores_n: Floats) -> NDArray[np.float64]:
        """Share of ordinary scores above each of some scores."""
        over = np.maximum(np.asarray(scores_n, np.float64) - self.start, 0)
        # An infinite rate times nothing.
        with np.errstate(invalid="ignore"):
            return self.share * np.nan_to_num(np.exp(-self.rate * over), nan=1.0)


@dataclass(frozen=True)
class Normal:
    """Ordinary scores that are averages: normal above their median `start`.

    Attributes:
        start: a score.
        deviation: 0 or more.
    """

    start: float
    deviation: float

    @classmethod
    def of(cls, scores_n: Floats) -> Normal:
        """From the median and the upper tenth's begin, so that the scores above may be anything."""
        start, end = np.quantile(scores_n, [0.5, 0.9])
        return cls(float(start), float(end - start) / float(norm.isf(0.1)))

    def beyond(self, scores_n: Floats) -> NDArray[np.float64]:
        """Share of ordinary scores above each of some scores."""
        over = np.asarray(scores_n, np.float64) - self.start
        found: NDArray[np.float64] = norm.sf(over / max(self.deviation, 1e-12))
        return found


def precisions(
    scores_n: Floats, tail: Tail | Normal, count: int | None = None
) -> NDArray[np.float64]:
    """For each score, the share of true ones to expect among the scores at least as high.

    It does not fall with the score. Below the tail's start it is 0.

    Args:
        scores_n: of all that was looked at, the ordinary ones included.
        tail: of the ordinary ones.
        count: how many were looked at, if more than have scores here.
    """
    count = len(scores_n) if count is None else count
    order = np.argsort(-scores_n, kind="stable")
    falling = scores_n[order]
    # As many are at least as high, equal ones included.
    observed = np.searchsorted(-falling, -falling, side="right")
    expected = count * tail.beyond(falling)
    found = np.clip(1 - expected / np.maximum(observed, 1), 0, _SUREST)
    found[falling < tail.start] = 0
    # The best that any lower threshold reaches, from the lowest score up.
    found = np.maximum.accumulate(found[::-1])[::-1]
    result = np.empty(len(scores_n))
    result[order] = found
    return result


def threshold(scores_n: Floats, precisions_n: Floats, least: float) -> float:
    """The lowest score whose precision is at least `least`; infinite if there is none."""
    sound = scores_n[precisions_n >= least]
    return float(sound.min()) if len(sound) else float("inf")
