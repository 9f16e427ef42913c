"""Merging of the surplus clusters that k-means starts with.

Shapes: d width, a clusters at first, c in the end, r starts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def merge(sums_rad: Tensor, num_clusters: int) -> Tensor:
    """Directions of the clusters after the pairs whose merging costs least are merged, (r, c, d).

    The sum of the cosines of a cluster's rows with its centre is the length of the sum of the rows,
    so merging two clusters costs |u| + |v| - |u + v| (Ward's method, on the sphere). Clusters
    without rows cost nothing. One pair after the other is merged in each start; nothing is read
    from the device.

    Args:
        sums_rad: sum of the rows of each cluster.
        num_clusters: c.
    """
    starts, surplus = sums_rad.shape[0], sums_rad.shape[1]
    sums_rad, start_r = sums_rad.clone(), torch.arange(starts, device=sums_rad.device)
    gone_ra = torch.zeros(starts, surplus, dtype=torch.bool, device=sums_rad.device)
    costs_raa = _costs(sums_rad, sums_rad)
    costs_raa.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    never_ra = torch.full_like(costs_raa[:, 0], torch.inf)
    for _ in range(surplus - num_clusters):
        pair_r = costs_raa.flatten(1).argmin(1)
        kept_r, gone_r = pair_r // surplus, pair_r % surplus
        sums_rad[start_r, kept_r] += sums_rad[start_r, gone_r]
        gone_ra.scatter_(1, gone_r[:, None], True)
        cost_ra = _costs(sums_rad[start_r, kept_r][:, None], sums_rad).squeeze(1)
        cost_ra = cost_ra.masked_fill(gone_ra, torch.inf).scatter_(1, kept_r[:, None], torch.inf)
        costs_raa[start_r, kept_r] = cost_ra
        costs_raa[start_r, :, kept_r] = cost_ra
        costs_raa[start_r, gone_r] = never_ra
        costs_raa[start_r, :, gone_r] = never_ra
    kept_rc = gone_ra.int().argsort(dim=1, stable=True)[:, :num_clusters]
    return normalize(sums_rad[start_r[:, None], kept_rc], dim=-1)


def _costs(left_rad: Tensor, right_rad: Tensor) -> Tensor:
    """What merging each pair costs, (r, a, a)."""
    left_ra, right_ra = (x.square().sum(2).sqrt() for x in (left_rad, right_rad))
    squared_raa = left_ra.square()[:, :, None] + right_ra.square()[:, None]
    squared_raa = squared_raa + 2 * left_rad @ right_rad.transpose(1, 2)
    return left_ra[:, :, None] + right_ra[:, None] - squared_raa.clamp_min(0).sqrt()
