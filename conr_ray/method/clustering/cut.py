"""Clusters of unequal sizes: the normalised cut of the graph of contextual neighbours.

k-means finds clusters of about equal extent, and so divides what is frequent and joins what is
rare. The normalised cut counts what a cluster shares with the others over its own size.

Shapes: b rows of this worker, n rows of all, s rows of the sample, p rows of pairs, k neighbours,
d width, h heads, c clusters.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method.clustering.kmeans import Clustering, spherical_kmeans
from conr_ray.method.clustering.merge_tree import Ints, MergeTree, links_between
from conr_ray.method.clustering.pair_losses import cut_loss, joint_probabilities
from conr_ray.method.collectives import (
    all_gather_rows,
    broadcast_first,
    evenly_spaced,
    rank,
    share,
)
from conr_ray.method.keyed_random import fold
from conr_ray.method.neighbors.reranking import contextual_neighbors
from conr_ray.method.neighbors.rough_products import full_precision

# Contexts and neighbours in the whole sample, as for heads on frozen features: see docs/log.md.
_CONTEXT, _AVERAGED, _NEIGHBORS = 50, 5, 20
# A context takes at most this share of the rows, so that small data sets keep theirs apart.
_MOST_OF_ROWS = 1 / 10
# Prototypes are learned by SGD, with these numbers of rows of a step, and steps.
_BATCH, _STEPS, _WARM_STEPS = 256, 800, 200
_RATE, _WARM_RATE, _MOMENTUM, _WARM_UP = 10.0, 0.3, 0.9, 1 / 20
# Of the cosines, at the start and from a share of the steps on.
_SOFT, _SHARP, _COOLED = 0.1, 0.04, 0.7
# Targets follow the prototypes; the heads' mean losses follow their losses.
_FOLLOWS, _NEWEST = 0.1, 0.02
_SMALLEST = 1e-6
# Which head begins with k-means, and by what share of the least possible loss it may be worse.
_PLAIN, _HARDLY = 1, 0.02
# Of the divisions that are merged into starts: small clusters of each cluster, and at most, and
# rows of each.
_SMALL_PER_CLUSTER, _MOST_SMALL, _ROWS_PER_SMALL = 10, 1000, 4


def cut_clusters(
    local_bd: Tensor,
    num_rows: int,
    num_clusters: int,
    *,
    seed: int,
    restarts: int = 10,
    most_rows: int = 8192,
    warm_cd: Tensor | None = None,
) -> Clustering:
    """Cluster unit-length rows by the normalised cut of the graph of their contextual neighbours.

    Each of several heads has a prototype for every cluster, and gives a row probabilities by its
    cosines with them, without what all rows share, their mean direction. SGD on random pairs of
    neighbours lowers `cut_loss`, while the temperature falls. Half of the heads begin with the
    clusters of `MergeTree`, each of another division of the rows into small clusters, one with
    those of k-means, the others anywhere. The head with the least loss counts, but that of k-means
    if it is hardly worse: losses then tell nothing, and equal sizes are as likely as others.
    A row belongs to its nearest centre, as in k-means: centres are the prototypes, all with as much
    of the mean direction as brings them to where the rows are, so that the nearest stays the same.

    All of this looks at most at `most_rows` rows, evenly spaced; the others go to their nearest
    centre. Time is that of finding neighbours among them, quadratic in their number, and of the
    steps.

    Args:
        local_bd: this worker's share of the n rows (`collectives.share`), unit length.
        num_rows: n, rows of all workers.
        num_clusters: c.
        seed: the only source of randomness.
        restarts: heads.
        most_rows: of the sample.
        warm_cd: centres to continue from, in fewer steps, instead of fresh starts.

    Raises:
        ValueError: more clusters than rows.
    """
    if num_clusters > num_rows:
        raise ValueError(f"num_clusters={num_clusters} exceeds the {num_rows} rows")
    with full_precision(local_bd.device):
        _, rows_sd = evenly_spaced(local_bd, num_rows, max(most_rows, 4 * num_clusters))
        mean_d = normalize(rows_sd.mean(0), dim=0)
        across_sd = _across(rows_sd, mean_d)
        generator = torch.Generator().manual_seed(seed)
        weights_sk, near_sk = _neighbors(across_sd)
        if warm_cd is None:
            # The row itself comes first.
            graph = near_sk[:, 1:].cpu().numpy(), weights_sk[:, 1:].cpu().numpy()
            starts_hcd = _starts(across_sd, *graph, num_clusters, restarts, seed, generator)
        else:
            starts_hcd = warm_cd[None]
        centers_cd = torch.zeros_like(starts_hcd[0])
        # The others would learn the same, in the same time and on the same cores.
        if rank() == 0:
            starts_hcd, warm = _across(starts_hcd, mean_d), warm_cd is not None
            found_cd = _learned(across_sd, near_sk, starts_hcd, generator, warm=warm)
            prototypes_cd = _across(found_cd, mean_d)
            # The mean of a cluster has this much of its prototype and of the common direction.
            own, common = (rows_sd @ prototypes_cd.T).amax(1).mean(), (rows_sd @ mean_d).mean()
            centers_cd = normalize(own.clamp_min(_SMALLEST) * prototypes_cd + common * mean_d)
        centers_cd = broadcast_first(centers_cd)
        return Clustering(centers_cd, (local_bd @ centers_cd.T).argmax(1))


def _across(rows: Tensor, mean_d: Tensor) -> Tensor:
    """What of the rows is across the direction of their mean, at unit length."""
    return normalize(rows - (rows @ mean_d)[..., None] * mean_d, dim=-1)


def _neighbors(rows_sd: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (s, k) and contextual neighbours (s, k), int64, of all rows, themselves first.

    The workers share the search.
    """
    count = len(rows_sd)
    k1 = max(2, min(_CONTEXT, int(count * _MOST_OF_ROWS)))
    found = contextual_neighbors(
        rows_sd[share(count)],
        k1=min(k1, count),
        k2=min(_AVERAGED, k1, count),
        k=min(_NEIGHBORS, count),
        num_rows=count,
    )
    weights_sk, near_sk = (all_gather_rows(one_bk, count) for one_bk in found)
    return weights_sk, near_sk.long()


def _starts(
    rows_sd: Tensor,
    near: Ints,
    weights: npt.NDArray[np.floating],
    num_clusters: int,
    restarts: int,
    seed: int,
    generator: torch.Generator,
) -> Tensor:
    """Prototypes that heads begin with, (h, c, d), as `_merged` takes neighbours.

    Every other one is of a merge tree where that tells so many clusters apart, `_PLAIN` of k-means.
    """
    count = len(rows_sd)
    shape = restarts, num_clusters, rows_sd.shape[1]
    starts_hcd = torch.randn(shape, generator=generator).to(rows_sd)
    for head in range(0, restarts, 2):
        merged_cd = _merged(rows_sd, near, weights, num_clusters, fold(seed, "small", head))
        if merged_cd is not None:
            starts_hcd[head] = merged_cd
    if restarts > _PLAIN:
        plain = spherical_kmeans(rows_sd[share(count)], count, num_clusters, seed=seed)
        starts_hcd[_PLAIN] = plain.centers_cd
    return starts_hcd


def _merged(
    rows_sd: Tensor, near: Ints, weights: npt.ArrayLike, num_clusters: int, seed: int
) -> Tensor | None:
    """Means of the clusters of a merge tree, (c, d); None if so many are not told apart.

    Neighbours and their weights are without the rows themselves. Called by all workers.
    """
    count = len(rows_sd)
    wanted = min(_SMALL_PER_CLUSTER * num_clusters, _MOST_SMALL, count // _ROWS_PER_SMALL)
    num_small = min(count, max(wanted, num_clusters))
    found = spherical_kmeans(rows_sd[share(count)], count, num_small, seed=seed, restarts=1)
    labels_s = all_gather_rows(found.labels_b, count).cpu().numpy()
    small_s = np.unique(labels_s, return_inverse=True)[1]
    clusters_a = MergeTree.of(links_between(small_s, near, weights), num_clusters).clusters
    if num_clusters not in clusters_a:
        return None
    merged_s = torch.from_numpy(clusters_a[num_clusters][small_s]).to(rows_sd.device)
    sums_cd = rows_sd.new_zeros(num_clusters, rows_sd.shape[1])
    return normalize(sums_cd.index_add_(0, merged_s, rows_sd))


def _learned(
    rows_sd: Tensor,
    near_sk: Tensor,
    starts_hcd: Tensor,
    generator: torch.Generator,
    *,
    warm: bool,
) -> Tensor:
    """The prototypes of the head with the least loss after SGD, (c, d); on one worker."""
    steps, rate = (_WARM_STEPS, _WARM_RATE) if warm else (_STEPS, _RATE)
    count, batch = len(rows_sd), min(_BATCH, len(rows_sd))
    prototypes_hcd = starts_hcd.clone().requires_grad_()
    targets_hcd = prototypes_hcd.detach().clone()
    losses_h = rows_sd.new_zeros(len(starts_hcd))
    optimizer = torch.optim.SGD([prototypes_hcd], lr=rate, momentum=_MOMENTUM)
    for step in range(steps):
        done = step / steps
        cooled = 1.0 if warm else min(1.0, done / _COOLED)
        temperature = _SOFT * (_SHARP / _SOFT) ** cooled
        optimizer.param_groups[0]["lr"] = (
            rate * min(1.0, (step + 1) / (_WARM_UP * steps)) * (1 + math.cos(math.pi * done)) / 2
        )
        drawn = torch.randint(count, (batch,), generator=generator)
        which = torch.randint(near_sk.shape[1], (batch,), generator=generator)
        first_b = drawn.to(rows_sd.device)
        second_b = near_sk[first_b, which.to(rows_sd.device)]
        pairs_pd = rows_sd[torch.cat([first_b, second_b])]
        with torch.enable_grad():
            queries_phc = _probabilities(pairs_pd, prototypes_hcd, temperature)
            with torch.no_grad():
                keys_phc = _probabilities(pairs_pd, targets_hcd, temperature)
            # Each sample of a pair with the target of the other.
            others_phc = keys_phc.roll(batch, 0)
            loss_h = cut_loss(joint_probabilities(queries_phc, others_phc, spread=False))
            optimizer.zero_grad()
            torch.autograd.backward(loss_h.sum())
        optimizer.step()
        with torch.no_grad():
            targets_hcd.lerp_(prototypes_hcd, _FOLLOWS)
            losses_h.lerp_(loss_h.detach(), _NEWEST)
    if len(losses_h) > _PLAIN:
        losses_h[_PLAIN] -= _HARDLY * prototypes_hcd.shape[1]
    return targets_hcd[losses_h.argmin()]


def _probabilities(rows_bd: Tensor, prototypes_hcd: Tensor, temperature: float) -> Tensor:
    heads, clusters, width = prototypes_hcd.shape
    cosines = rows_bd @ normalize(prototypes_hcd, dim=2).reshape(-1, width).T
    return (cosines.view(-1, heads, clusters) / temperature).softmax(2)
