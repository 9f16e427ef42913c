"""Filtering of samples near cluster boundaries (paper section 3.3).

Shapes: n samples, d width, c clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor


def boundary_ratio(keys_nd: Tensor, labels_n: Tensor, centers_cd: Tensor) -> Tensor:
    """Distance to the own centre over the distance to the nearest other one, (n,) in [0, inf).

    About 0 at a centre, 1 on a boundary, above 1 if another centre is nearer. Keys and centres have
    unit length; distances are Euclidean. A key that lies on another centre gives inf, or 1 if it
    lies on its own as well.
    """
    distances_nc = torch.cdist(keys_nd, centers_cd, compute_mode="donot_use_mm_for_euclid_dist")
    own_n1 = labels_n[:, None]
    own_n = distances_nc.gather(1, own_n1).squeeze(1)
    others_n = distances_nc.scatter(1, own_n1, torch.inf).amin(1)
    return torch.where((own_n == 0) & (others_n == 0), 1.0, own_n / others_n)


def kept_mask(ratios_n: Tensor, fraction: float) -> Tensor:
    """True for the round(fraction * n) smallest ratios; ties go to the lower row.

    Unlike the released code's strict comparison with a quantile, fraction 1 keeps every row.
    """
    count = round(fraction * len(ratios_n))
    best_m = torch.sort(ratios_n, stable=True).indices[:count]
    return torch.zeros_like(ratios_n, dtype=torch.bool).scatter_(0, best_m, True)
