"""Filtering of samples near cluster boundaries (paper section 3.3).

Shapes: n samples, b of them this worker's, d width, c clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conr_ray.method.collectives import all_reduce_sum


def boundary_ratio(keys_nd: Tensor, labels_n: Tensor, centers_cd: Tensor) -> Tensor:
    """Distance to the own centre over the distance to the nearest other one, (n,) in [0, inf).

    About 0 at a centre, 1 on a boundary, above 1 if another centre is nearer. Keys have unit
    length, centres are those of `boundary_centers`; distances are Euclidean. A key that lies on
    another centre gives inf, or 1 if it lies on its own as well.
    """
    return distance_ratio(*center_distances(keys_nd, labels_n, centers_cd))


def center_distances(
    keys_nd: Tensor, labels_n: Tensor, centers_cd: Tensor
) -> tuple[Tensor, Tensor]:
    """Euclidean distances of keys from their own centre and from the nearest other one, (n,)."""
    distances_nc = torch.cdist(keys_nd, centers_cd, compute_mode="donot_use_mm_for_euclid_dist")
    own_n1 = labels_n[:, None]
    own_n = distances_nc.gather(1, own_n1).squeeze(1)
    return own_n, distances_nc.scatter(1, own_n1, torch.inf).amin(1)


def distance_ratio(own_n: Tensor, other_n: Tensor) -> Tensor:
    """The boundary ratio of `center_distances`, (n,)."""
    return torch.where((own_n == 0) & (other_n == 0), 1.0, own_n / other_n)


def center_lengths(embeddings_bd: Tensor, labels_b: Tensor, centers_cd: Tensor) -> Tensor:
    """Lengths of the means of all workers' unit-length embeddings by cluster, (c,) in [-1, 1].

    k-means leaves the mean of a cluster in the direction of its unit-length centre, so its length
    is the mean cosine of the embeddings with it. An empty cluster gives 1.
    """
    cosines_b = (embeddings_bd * centers_cd[labels_b]).sum(1).double()
    sums_2c = cosines_b.new_zeros(2, len(centers_cd))
    sums_2c.index_add_(1, labels_b, torch.stack([cosines_b, torch.ones_like(cosines_b)]))
    total_c, count_c = all_reduce_sum(sums_2c)
    return torch.where(count_c > 0, total_c / count_c, 1).to(centers_cd.dtype)


def boundary_centers(kind: str, centers_cd: Tensor, lengths_c: Tensor) -> Tensor:
    """What `boundary_ratio` measures distances from: `unit` centres, or the clusters' `mean`.

    Those of the released code are means.
    """
    return centers_cd if kind == "unit" else lengths_c[:, None] * centers_cd


def kept_mask(ratios_n: Tensor, fraction: float, labels_n: Tensor | None = None) -> Tensor:
    """True for the round(fraction * n) smallest ratios; ties go to the lower row.

    With `labels_n`, int64 from 0 on, that holds for the rows of each cluster instead, and each
    keeps at least one. Unlike the released code's strict comparison with a quantile, fraction 1
    keeps every row.
    """
    order_n = torch.sort(ratios_n, stable=True).indices
    if labels_n is None:
        best_m = order_n[: round(fraction * len(ratios_n))]
        return torch.zeros_like(ratios_n, dtype=torch.bool).scatter_(0, best_m, True)
    labels_n = labels_n[order_n]
    grouped_n = torch.sort(labels_n, stable=True).indices
    counts_c = torch.bincount(labels_n)
    places_n = torch.arange(len(ratios_n), device=ratios_n.device)
    places_n = places_n - (counts_c.cumsum(0) - counts_c)[labels_n[grouped_n]]
    # torch rounds halves to even, as `round` does.
    kept_c = (fraction * counts_c.double()).round().clamp_min(1)
    kept_n = places_n < kept_c[labels_n[grouped_n]]
    return torch.empty_like(kept_n).scatter_(0, order_n[grouped_n], kept_n)
