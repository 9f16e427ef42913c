"""Approximate neighbour lists: a row is compared with the rows of near cells alone.

An inverted file (Jegou, Douze and Schmid, "Product quantization for nearest neighbor search", 2011,
section 4), with a cell's rows as queries at once: near cells are those of its centre.

Shapes: n rows, s of a sample, d width, c cells, e pairs of cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conr_ray.method.clustering.lloyd import refine
from conr_ray.method.collectives import all_gather_rows, broadcast_first, share
from conr_ray.method.neighbors.neighbor_lists import NeighborLists, Side, compare_groups
from conr_ray.method.neighbors.rough_products import full_precision

# Cells are this many times the root of the number of rows.
_CELLS = 2.0
# Of a cell, for its centre.
_ROWS_SAMPLED = 32
_ITERATIONS = 5
# Cosines of rows and centres at a time.
_BLOCK_ELEMENTS = 2**24
# Rows of near cells for each entry of a list, at least.
_CHOICE = 4


def lists_by_cells(
    unit_nd: Tensor, width: int, probes: int, *, spread: bool = False
) -> tuple[NeighborLists, Tensor]:
    """The `width` nearest others of every row by cosine, among the rows of near cells.

    Returns the lists, and all rows sorted by cell.

    Time is O(n^1.5 d probes), memory O(n width) besides the input and a sorted copy of it. Where
    all cells are near, the search is exact. It is symmetric: of two cells, either is compared with
    the other or neither. The result does not depend on the number of workers.

    Args:
        unit_nd: all rows, unit length, float32.
        width: entries of a list.
        probes: cells that are near each cell, itself included. More are where they hold few rows.
        spread: whether all workers of a process group call this, each for its share.
    """
    num_rows = len(unit_nd)
    num_cells = min(num_rows, int(_CELLS * num_rows**0.5))
    cells_n, centers_cd = _cells(unit_nd, num_cells, spread=spread)
    order_n = cells_n.argsort(stable=True)
    sizes_c = torch.bincount(cells_n, minlength=num_cells)
    pairs_e2 = _near(centers_cd, sizes_c, probes, _CHOICE * (width + 1))
    lists = NeighborLists.empty(num_rows, width, unit_nd.device)
    mine = share(num_rows) if spread else slice(0, num_rows)
    side = Side(unit_nd[order_n], order_n, lists)
    compare_groups(side, sizes_c.tolist(), pairs_e2.tolist(), mine)
    keys_ns = all_gather_rows(lists.keys_as[mine], num_rows) if spread else lists.keys_as
    lists.keys_as[order_n] = keys_ns.clone()
    return lists, order_n


def _cells(unit_nd: Tensor, num_cells: int, *, spread: bool) -> tuple[Tensor, Tensor]:
    """Spherical k-means on a sample: the cell of each row, (n,), and centres (c, d)."""
    generator = torch.Generator().manual_seed(0)
    most = min(len(unit_nd), num_cells * _ROWS_SAMPLED)
    sample_sd = unit_nd[torch.randperm(len(unit_nd), generator=generator)[:most]]
    with full_precision(unit_nd.device):
        starts_1cd = sample_sd[None, :num_cells]
        centers_cd = refine(sample_sd, starts_1cd, sample_sd, _ITERATIONS, spread=False)[0]
        parts = torch.split(unit_nd, max(1, _BLOCK_ELEMENTS // num_cells))
        cells_n = torch.cat([(part @ centers_cd.T).argmax(1) for part in parts])
    if spread:
        # Sums on a GPU have no fixed order: the workers' cells could differ.
        cells_n, centers_cd = broadcast_first(cells_n), broadcast_first(centers_cd)
    return cells_n, centers_cd


def _near(centers_cd: Tensor, sizes_c: Tensor, probes: int, rows: int) -> Tensor:
    """Pairs of near cells, (e, 2), each once; a cell and itself come first, then the nearest."""
    order_cc = (centers_cd @ centers_cd.T).fill_diagonal_(torch.inf).argsort(1, descending=True)
    held_cc = sizes_c[order_cc].cumsum(1)
    wanted_c1 = ((held_cc < rows).sum(1, keepdim=True) + 1).clamp_min(probes)
    ranks_cc = torch.empty_like(order_cc)
    places_cc = torch.arange(len(order_cc), device=order_cc.device).expand_as(order_cc)
    ranks_cc.scatter_(1, order_cc, places_cc)
    ranks_cc.masked_fill_(ranks_cc >= wanted_c1, len(order_cc))
    ranks_cc = torch.minimum(ranks_cc, ranks_cc.T)
    pairs_e2 = (ranks_cc < len(order_cc)).triu().nonzero()
    return pairs_e2[ranks_cc[pairs_e2[:, 0], pairs_e2[:, 1]].argsort(stable=True)]
