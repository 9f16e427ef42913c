"""A person's corrections, spread to samples with similar contexts.

Shapes: n samples, k neighbours, c clusters, g groups of samples that belong together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from conr_ray.method.neighbors.links import Links

# Share of a sample's cluster that its neighbours decide, each time.
_SHARE, _TIMES = 0.9, 30


def corrected_clusters(
    neighbors_nk: Tensor, clusters_n: Tensor, fixed_n: Tensor, num_clusters: int
) -> Tensor:
    """The clusters of samples of which a person has put some where they are, int64 (n,).

    Each sample begins with a vote for its cluster; again and again it takes over the mean of its
    neighbours' votes, and of its own first one. Neighbours are those of either of two samples. The
    samples that a person has put somewhere keep their vote: so they pull their neighbours along,
    and what a person has not touched follows its neighbours (label spreading, Zhou et al., NIPS
    2003, on the contextual graph, with random-walk weights).

    Args:
        neighbors_nk: int64, without the sample itself.
        clusters_n: int64, from 0 to `num_clusters` - 1; -1 begins without a vote.
        fixed_n: bool, which are put there by a person; none that begins without a vote.
        num_clusters: c.
    """
    # Imported late, here and below: SciPy takes long to import, and few runs have corrections.
    import scipy.sparse

    count, width = neighbors_nk.shape
    rows = np.repeat(np.arange(count), width)
    ones = np.ones(count * width, np.float32)
    graph = scipy.sparse.csr_matrix(
        (ones, (rows, neighbors_nk.numpy(force=True).ravel())), (count, count)
    )
    graph = graph + graph.T
    graph = scipy.sparse.diags((1 / np.asarray(graph.sum(1)).ravel()).astype(np.float32)) @ graph
    clusters = clusters_n.numpy(force=True)
    first_nc: npt.NDArray[np.float32] = np.zeros((count, num_clusters), np.float32)
    voting = np.flatnonzero(clusters >= 0)
    first_nc[voting, clusters[voting]] = 1
    fixed = np.flatnonzero(fixed_n.numpy(force=True))
    votes_nc = first_nc
    for _ in range(_TIMES):
        votes_nc = _SHARE * (graph @ votes_nc) + (1 - _SHARE) * first_nc
        votes_nc[fixed] = first_nc[fixed]
    return torch.from_numpy(votes_nc.argmax(1)).to(clusters_n.device)


def heeded_clusters(
    clusters_n: Tensor, neighbors_nk: Tensor, links: Links, num_clusters: int
) -> Tensor:
    """Clusters that were found without a person's word, brought in line with it, int64 (n,).

    Each group becomes a cluster of its own: that which has most of it, so that all groups together
    stay where they are for as many samples as can be (an assignment). From there it is
    `corrected_clusters`: what the person's word is of stays, the rest follows its neighbours.

    Args:
        clusters_n: int64, from 0 to `num_clusters` - 1.
        neighbors_nk: int64, without the sample itself.
        links: of at most `num_clusters` groups.
        num_clusters: c.
    """
    from scipy.optimize import linear_sum_assignment

    clusters, groups = clusters_n.numpy(force=True), links.groups_n.numpy(force=True)
    said = groups >= 0
    counts_gc = np.zeros((links.num_groups, num_clusters), np.int64)
    np.add.at(counts_gc, (groups[said], clusters[said]), 1)
    homes_g = linear_sum_assignment(counts_gc, maximize=True)[1]
    begun = clusters.copy()
    begun[said] = homes_g[groups[said]]
    begun[links.junk_n.numpy(force=True)] = -1
    begun_n = torch.from_numpy(begun).to(clusters_n.device)
    return corrected_clusters(neighbors_nk, begun_n, links.fixed_n, num_clusters)
