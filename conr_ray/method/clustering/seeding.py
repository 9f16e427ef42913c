"""Starts of k-means: greedy k-means++.

Shapes: s rows, d width, c clusters, r starts, l candidates of a draw.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def greedy_starts(
    rows_sd: Tensor, num_clusters: int, num_starts: int, generator: torch.Generator
) -> Tensor:
    """Centres of several starts, rows of `rows_sd`, (r, c, d).

    Each draw takes 2 + log c candidates, with probability ~ squared distance to the nearest centre,
    and keeps the one that leaves the smallest sum of them: Arthur & Vassilvitskii 2007, section 6
    (their own code, and scikit-learn's). All random numbers are drawn first, and nothing is read
    from the device. Rows that coincide with centres have no weight; where no others are left, the
    last row is taken.

    Args:
        rows_sd: unit length, at least one.
        num_clusters: c.
        num_starts: r.
        generator: of the CPU.
    """
    num_candidates = 2 + int(math.log(num_clusters))
    # A start's numbers do not depend on how many others there are.
    draws_rcl = torch.rand(
        (num_starts, num_clusters, num_candidates), generator=generator, dtype=torch.float64
    ).to(rows_sd.device)
    last = len(rows_sd) - 1
    index_r1 = (draws_rcl[:, 0, :1] * len(rows_sd)).long()
    # Half the squared distance to the nearest centre; 0 for the centres themselves.
    distance_rs = _distances(rows_sd, index_r1).squeeze(1)
    chosen = [index_r1]
    for draws_rl in draws_rcl[:, 1:].unbind(1):
        sums_rs = distance_rs.cumsum(1, dtype=torch.float64)
        index_rl = torch.searchsorted(sums_rs, draws_rl * sums_rs[:, -1:], right=True)
        index_rl.clamp_max_(last)
        left_rls = torch.minimum(_distances(rows_sd, index_rl), distance_rs[:, None])
        best_r1 = left_rls.sum(2).argmin(1, keepdim=True)
        distance_rs = torch.take_along_dim(left_rls, best_r1[..., None], 1).squeeze(1)
        chosen.append(index_rl.gather(1, best_r1))
    return rows_sd[torch.cat(chosen, 1)]


def _distances(rows_sd: Tensor, index_rl: Tensor) -> Tensor:
    """1 - cosine of the rows at `index_rl` and all rows, (r, l, s), and 0 with themselves."""
    cosines = rows_sd[index_rl.flatten()] @ rows_sd.T
    distances_rls = (1 - cosines).clamp_min_(0).view(*index_rl.shape, len(rows_sd))
    return distances_rls.scatter_(2, index_rl[..., None], 0)
