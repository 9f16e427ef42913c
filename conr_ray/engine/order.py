"""In which order an epoch sees the samples.

Shapes: n samples, c clusters, m draws of an epoch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conr_ray.method import keyed_random
from conr_ray.method.keyed_random import fold

# Less than 1, so that rounding never draws a sample more often than there are batches.
_JUST_BELOW = 1 - 1e-9


def epoch_order(
    key: int,
    junk_n: Tensor,
    labels_n: Tensor | None,
    num_steps: int,
    batch: int,
    evenness: float,
) -> Tensor:
    """Samples of an epoch, int64 (m,) on the CPU: all in random order, or those of `even_order`.

    Args:
        key: of the epoch.
        junk_n: samples that are left out, bool, on the CPU.
        labels_n: clusters, which `evenness` above 0 reads.
        num_steps: batches.
        batch: samples of a batch.
        evenness: of the clusters.
    """
    if not evenness:
        order_n = keyed_random.permutation(key, len(junk_n))
        return order_n[~junk_n[order_n]]
    assert labels_n is not None, "evenness is that of clusters"
    rows_m = (~junk_n).nonzero().flatten()
    return rows_m[even_order(key, labels_n.cpu()[rows_m], num_steps, batch, evenness)]


def even_order(key: int, labels_n: Tensor, num_steps: int, batch: int, evenness: float) -> Tensor:
    """Samples of the batches of an epoch, clusters more even than they are, int64 (m,) on the CPU.

    A cluster of s samples is drawn in proportion to s ** (1 - evenness), and its samples equally
    often, up to one draw of rounding. No batch has a sample twice: so a cluster that is too small
    for its part gives each sample to every batch, and the others share the rest. All batches have
    about the same parts of all clusters.

    Args:
        key: of the epoch.
        labels_n: clusters, int64 from 0 on, on the CPU.
        num_steps: batches.
        batch: samples of a batch.
        evenness: 0 draws samples equally often, 1 clusters.
    """
    counts_c = torch.bincount(labels_n).double()
    copies_n = _copies(counts_c, num_steps, batch, evenness)[labels_n]
    shuffled_n = keyed_random.permutation(fold(key, "shuffle"), len(labels_n))
    by_cluster_n = shuffled_n[torch.sort(labels_n[shuffled_n], stable=True).indices]
    ends_n = copies_n[by_cluster_n].cumsum(0)
    begin = keyed_random.uniform(fold(key, "begin"), torch.zeros(1, dtype=torch.int64), 1)
    spots_m = torch.arange(num_steps * batch) + begin.double().flatten()
    # Spread over what the draws add up to, which rounding and full clusters leave a little less.
    spots_m = spots_m * (ends_n[-1] / (num_steps * batch))
    places_m = torch.searchsorted(ends_n, spots_m).clamp_max(len(labels_n) - 1)
    # A sample's draws lie side by side: dealt out in turn, they come to different batches.
    dealt = by_cluster_n[places_m].view(batch, num_steps).T
    mixed = keyed_random.uniform(fold(key, "mix"), torch.arange(num_steps), batch).argsort(dim=1)
    return dealt.gather(1, mixed).flatten()


def _copies(counts_c: Tensor, num_steps: int, batch: int, evenness: float) -> Tensor:
    """How often an epoch draws each sample of the clusters, (c,) float64."""
    shares_c = torch.where(counts_c > 0, counts_c ** (1 - evenness), 0.0)
    most_c = counts_c * num_steps * _JUST_BELOW
    drawn_c, full_c = torch.zeros_like(counts_c), counts_c == 0
    while not full_c.all():
        left = num_steps * batch - float(most_c[full_c].sum())
        open_c = shares_c.where(~full_c, 0.0)
        drawn_c = torch.where(full_c, most_c, left * open_c / open_c.sum())
        over_c = ~full_c & (drawn_c > most_c)
        if not over_c.any():
            break
        full_c = full_c | over_c
        drawn_c = torch.where(full_c, most_c, drawn_c)
    return drawn_c / counts_c.clamp_min(1)
