"""A person's corrections, spread to samples with similar contexts.

Shapes: n samples, k neighbours, c clusters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from torch import Tensor

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
