"""Lloyd's iterations of spherical k-means, on CPUs and on other devices.

Shapes: b rows of this worker, s rows of the sample, k rows of a block, d width, c clusters,
r starts that are refined at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method import compiled
from conr_ray.method.clustering.partition import Partition
from conr_ray.method.collectives import all_reduce_sum, broadcast_first

# On devices other than CPUs, elements of a block of cosines: rows times centres of all starts.
_BLOCK_ELEMENTS = 2**26
# On them, iterations between looks at whether centres still move.
_LOOK_EVERY = 10


def refine(
    rows_bd: Tensor, starts_rcd: Tensor, sample_sd: Tensor, max_iterations: int, *, spread: bool
) -> Tensor:
    """Centres of each start after Lloyd's iterations, until none moves, (r, c, d).

    An empty cluster takes the row of `sample_sd` that fits its own centre worst, of several empty
    ones each another. With `spread`, rows are a worker's share, and sums are reduced over the
    workers.

    CPUs find near rows by bounds (`Partition`). Other devices compare all rows in each iteration,
    start by start as one tensor, and wait for nothing but a look at whether centres still move,
    once in ten iterations: those after the last movement change nothing.
    """
    if compiled.serves(rows_bd.device):
        return torch.stack(
            [
                _refine_by_bounds(rows_bd, start_cd, sample_sd, max_iterations, spread=spread)
                for start_cd in starts_rcd
            ]
        )
    centers_rcd = starts_rcd
    for iteration in range(1, max_iterations + 1):
        sums = cluster_sums(rows_bd, centers_rcd)
        moved_rcd = _filled(all_reduce_sum(sums) if spread else sums, centers_rcd, sample_sd)
        # On unequal hardware the last bit could differ, and with it the end.
        moved_rcd = broadcast_first(moved_rcd) if spread else moved_rcd
        if iteration % _LOOK_EVERY == 0 and torch.equal(moved_rcd, centers_rcd):
            break
        centers_rcd = moved_rcd
    return centers_rcd


def _refine_by_bounds(
    rows_bd: Tensor, centers_cd: Tensor, sample_sd: Tensor, max_iterations: int, *, spread: bool
) -> Tensor:
    partition = Partition(rows_bd, len(centers_cd))
    for _ in range(max_iterations):
        sums = partition.sums(centers_cd)
        if spread:
            sums = all_reduce_sum(sums)
        if sums[:, -1].all():
            moved_cd = _directions(sums, centers_cd)
        else:
            moved_cd = _filled(sums[None], centers_cd[None], sample_sd)[0]
        if spread:
            moved_cd = broadcast_first(moved_cd)
        if torch.equal(moved_cd, centers_cd):
            break
        centers_cd = moved_cd
    return centers_cd


def cluster_sums(rows_bd: Tensor, centers_rcd: Tensor) -> Tensor:
    """For each nearest centre the sum of its rows and their number, (r, c, d + 1) float64.

    A block's sums are a product with the rows' memberships, in float32.
    """
    starts, clusters, width = centers_rcd.shape
    sums = rows_bd.new_zeros(starts * clusters, width + 1, dtype=torch.float64)
    for rows_kd in _blocks(rows_bd, centers_rcd):
        cosines = _cosines(rows_kd, centers_rcd)
        members = torch.zeros_like(cosines).scatter_(2, cosines.argmax(2, keepdim=True), 1)
        members_kc = members.flatten(1)
        sums[:, :-1] += members_kc.T @ rows_kd
        sums[:, -1] += members_kc.sum(0)
    return sums.view(starts, clusters, width + 1)


def _blocks(rows_bd: Tensor, centers_rcd: Tensor) -> tuple[Tensor, ...]:
    """The rows in parts whose cosines with all centres fit in memory."""
    return torch.split(rows_bd, max(1, _BLOCK_ELEMENTS // centers_rcd[..., 0].numel()))


def _cosines(rows_kd: Tensor, centers_rcd: Tensor) -> Tensor:
    """Of each row with the centres of each start, (k, r, c)."""
    return (rows_kd @ centers_rcd.flatten(0, 1).T).view(len(rows_kd), *centers_rcd.shape[:2])


def _directions(sums: Tensor, centers: Tensor) -> Tensor:
    return normalize(sums[..., :-1], dim=-1).to(centers.dtype)


def _filled(sums: Tensor, centers_rcd: Tensor, sample_sd: Tensor) -> Tensor:
    """The directions of the sums, and for empty clusters the rows that fit worst."""
    clusters = centers_rcd.shape[1]
    empty_rc = sums[..., -1] == 0
    blocks = _blocks(sample_sd, centers_rcd)
    fits_sr = torch.cat([_cosines(rows_kd, centers_rcd).amax(2) for rows_kd in blocks])
    worst_rc = fits_sr.argsort(dim=0, stable=True)[:clusters].T
    # The first empty cluster takes the worst row, the second the next.
    places_rc = (empty_rc.cumsum(1) - 1).clamp_min(0)
    rows_rcd = sample_sd[worst_rc.gather(1, places_rc)]
    return torch.where(empty_rc[..., None], rows_rcd, _directions(sums, centers_rcd))
