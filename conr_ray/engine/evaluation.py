"""Embed, cluster and search the whole data set: pseudo-labels, metrics, tables.

Shapes: n samples, b of them this worker's share, c clusters, d width, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.config import RunConfig
from conr_ray.data.store import DataSet
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.label_free import NUM_SCORED, label_free_scores
from conr_ray.method.clustering.corrections import heeded_clusters
from conr_ray.method.clustering.cut import cut_clusters
from conr_ray.method.clustering.kmeans import Clustering, spherical_kmeans
from conr_ray.method.clustering.metrics import agreement
from conr_ray.method.clustering.numbering import counts_of, followed
from conr_ray.method.clustering.spread import effective_rank, mean_cosine
from conr_ray.method.collectives import (
    all_gather_rows,
    all_reduce_sum,
    broadcast_first,
    evenly_spaced,
    rank,
    share,
)
from conr_ray.method.keyed_random import fold
from conr_ray.method.neighbors.data_neighbors import KINDS, DataNeighbors
from conr_ray.method.neighbors.links import Links
from conr_ray.method.neighbors.reranking import contextual_neighbors
from conr_ray.method.stages.boundary import (
    boundary_centers,
    boundary_ratio,
    center_lengths,
    kept_mask,
)
from conr_ray.metric_names import RANGES

# In the schema of assignments: above all numbers that were used, where the last of them are gone.
FIRST_FREE = b"conr_ray.first_free_number"
# Of a mean of float32 numbers; more is an error.
_ROUNDING = 1e-5
CORRECTING = (50, 10, 20)
"""k1, k2 and k of the graph on which corrections spread: see docs/log.md."""


@dataclass(frozen=True)
class DataClustering:
    """Clusters of the embeddings of the whole data set.

    Attributes:
        embeddings_bd: this worker's, unit length.
        clusters_n: of all samples.
        centers_cd: unit length.
        lengths_c: of the clusters' means (`center_lengths`).
        boundary_centers_cd: what boundary ratios are taken of.
        again: finds clusters of this worker's share of a subset, (b,), of so many rows by a seed.
        kept_per_cluster: whether the boundary filter keeps a share of each cluster.
        numbers_c: by which people know the clusters, int64: from 0 on, or as those of an earlier
            run (`engine.earlier_clusters`), in any order.
        first_free: above all numbers that are or were used.
    """

    embeddings_bd: Tensor
    clusters_n: Tensor
    centers_cd: Tensor
    lengths_c: Tensor
    boundary_centers_cd: Tensor
    again: Callable[[Tensor, int, int], Tensor]
    kept_per_cluster: bool = False
    numbers_c: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    first_free: int = 0

    def __post_init__(self) -> None:
        """Number the clusters from 0 on, unless they have numbers."""
        if not len(self.numbers_c):
            object.__setattr__(self, "numbers_c", torch.arange(len(self.centers_cd)))
        least = int(self.numbers_c.max()) + 1
        object.__setattr__(self, "first_free", max(self.first_free, least))

    @property
    def numbered_n(self) -> Tensor:
        """The numbers of all samples' clusters, (n,)."""
        return self.numbers_c.to(self.clusters_n.device)[self.clusters_n]

    def in_order(self, order_c: Tensor) -> DataClustering:
        """The same clusters, that at `order_c[i]` at place i, numbered from 0 on."""
        order_c = order_c.to(self.clusters_n.device)
        return replace(
            self,
            clusters_n=order_c.argsort()[self.clusters_n],
            centers_cd=self.centers_cd[order_c],
            lengths_c=self.lengths_c[order_c],
            boundary_centers_cd=self.boundary_centers_cd[order_c],
            numbers_c=torch.arange(len(order_c)),
            first_free=0,
        )

    def following(self, before_n: Tensor) -> DataClustering:
        """The same clusters in the order of those before (`numbering.followed`), from 0 on.

        `before_n` is the place of each sample's cluster before; equal on all workers.
        """
        num_clusters = len(self.centers_cd)
        order_c = torch.arange(num_clusters)
        if rank() == 0:
            before, now = (one.cpu().numpy() for one in (before_n, self.clusters_n))
            counts_ac = counts_of(before, now, int(before.max()) + 1, num_clusters)
            order_c = torch.from_numpy(followed(counts_ac))
        order_c = broadcast_first(order_c.to(self.clusters_n.device)).cpu()
        if torch.equal(order_c, torch.arange(num_clusters)):
            return self
        return self.in_order(order_c)

    def with_numbers(self, numbers_c: Tensor, first_free: int = 0) -> DataClustering:
        """The same clusters, in the same places, with these numbers."""
        return replace(self, numbers_c=numbers_c.cpu(), first_free=first_free)

    def kept(self, ratios_m: Tensor, clusters_m: Tensor, fraction: float) -> Tensor:
        """Which of some samples the boundary filter keeps, bool (m,)."""
        return kept_mask(ratios_m, fraction, clusters_m if self.kept_per_cluster else None)

    def heeding(self, links: Links, config: RunConfig, *, centers_follow: bool) -> DataClustering:
        """The clusters brought in line with a person's word by `heeded_clusters`.

        Its neighbours are contextual ones among all samples, whose number `CORRECTING` sets.
        Called by all workers.

        Args:
            links: the person's word.
            config: of the run.
            centers_follow: let centres become the directions of the new clusters' means, without
                junk; otherwise they stay, since the framework learns them.
        """
        num_rows, num_clusters = len(self.clusters_n), len(self.centers_cd)
        near_nk = correcting_neighbors(self.embeddings_bd, num_rows)
        clusters_n = heeded_clusters(self.clusters_n, near_nk, links, num_clusters)
        clusters_n = broadcast_first(clusters_n)
        centers_cd, own = self.centers_cd, share(num_rows)
        if centers_follow:
            counted_b = ~links.junk_n[own].to(clusters_n.device)
            sums_cd = torch.zeros_like(centers_cd, dtype=torch.float64)
            rows_bd = self.embeddings_bd[counted_b].double()
            sums_cd = all_reduce_sum(sums_cd.index_add_(0, clusters_n[own][counted_b], rows_bd))
            full_c1 = sums_cd.norm(dim=1, keepdim=True) > 0
            centers_cd = torch.where(full_c1, normalize(sums_cd).to(centers_cd.dtype), centers_cd)
            centers_cd = broadcast_first(centers_cd)
        return DataClustering.of(config, self.embeddings_bd, clusters_n, centers_cd)

    @classmethod
    def of(
        cls, config: RunConfig, embeddings_bd: Tensor, clusters_n: Tensor, centers_cd: Tensor
    ) -> DataClustering:
        """Given clusters of all samples, and their centres of unit length."""
        lengths_c = center_lengths(embeddings_bd, clusters_n[share(len(clusters_n))], centers_cd)
        around_cd = boundary_centers(config.boundary.centers, centers_cd, lengths_c)
        again = partial(found_again, config, len(centers_cd))
        per_cluster = config.boundary.per == "cluster"
        return cls(embeddings_bd, clusters_n, centers_cd, lengths_c, around_cd, again, per_cluster)

    def spread_sample(self, most: int) -> tuple[Tensor, Tensor]:
        """At most `most` rows of the data set, evenly spaced, (m,), and their embeddings (m, d).

        The same on all workers.
        """
        return evenly_spaced(self.embeddings_bd, len(self.clusters_n), most)

    def metrics(
        self,
        labels: npt.NDArray[np.int64] | None,
        embedder: Embedder,
        key: int,
        *,
        label_free: bool,
    ) -> dict[str, float]:
        """Spread, `agreement` if there are labels, and with `label_free` the `label_free_scores`.

        Equal on all workers, and within `metric_names.RANGES`.

        Raises:
            FloatingPointError: a score is outside its range.
        """
        rows_m, rows_md = self.spread_sample(max(NUM_SCORED, 4 * len(self.centers_cd)))
        scores = self._spread(rows_md)
        if label_free:
            found = self.embeddings_bd, self.clusters_n, self.centers_cd
            scores |= label_free_scores(*found, rows_m, rows_md, embedder, key, self.again)
        if labels is not None:
            scores |= agreement(labels, self.clusters_n.cpu().numpy())
        return within_ranges(scores)

    def _spread(self, rows_md: Tensor) -> dict[str, float]:
        """`metric_names.SPREAD`, the first two of a subset's embeddings."""
        sizes_c = torch.bincount(self.clusters_n, minlength=len(self.centers_cd))
        # On unequal hardware the last bit could differ, and with it what the workers do.
        figures = broadcast_first(
            torch.tensor([effective_rank(rows_md), mean_cosine(rows_md)], dtype=torch.float64).to(
                rows_md.device
            )
        )
        rank, cosine = figures.tolist()
        return {
            "effective_rank": rank,
            "mean_cosine": cosine,
            "smallest_share": int(sizes_c.min()) / len(self.clusters_n),
        }

    def assignments(self, data: DataSet, fraction: float) -> pa.Table:
        """A row for each sample: id, cluster, boundary ratio, kept; and path if it has one.

        Clusters are told by their numbers.
        """
        num_rows = len(self.clusters_n)
        clusters_b = self.clusters_n[share(num_rows)]
        ratios_b = boundary_ratio(self.embeddings_bd, clusters_b, self.boundary_centers_cd)
        ratios_n = all_gather_rows(ratios_b, num_rows)
        columns: dict[str, Any] = {
            "sample_id": data.sample_ids,
            "cluster": self.numbered_n.cpu().numpy(),
            "boundary_ratio": ratios_n.cpu().numpy(),
            "kept": self.kept(ratios_n, self.clusters_n, fraction).cpu().numpy(),
        }
        if data.names is not None:
            columns["path"] = data.names
        table = pa.table(columns)
        if self.first_free > int(self.numbers_c.max()) + 1:
            table = table.replace_schema_metadata({FIRST_FREE: str(self.first_free)})
        return table


def within_ranges(scores: dict[str, float]) -> dict[str, float]:
    """The scores, with what rounding adds beyond their ranges cut off.

    Raises:
        FloatingPointError: one is further outside `metric_names.RANGES`, or nan.
    """
    for name, value in scores.items():
        least, most = RANGES[name]
        if not least - _ROUNDING <= value <= most + _ROUNDING:
            raise FloatingPointError(f"{name}={value:g} is outside [{least:g}, {most:g}]")
    return {
        name: min(max(value, RANGES[name][0]), RANGES[name][1]) for name, value in scores.items()
    }


def neighbors_table(near: DataNeighbors, data: DataSet) -> pa.Table:
    """A row for each sample: its id, and those of its neighbours of each kind, best first."""
    columns: dict[str, Any] = {"sample_id": data.sample_ids}
    for kind in KINDS:
        columns[kind] = list(data.sample_ids[near.all_rows(kind).cpu().numpy()])
    return pa.table(columns)


def cluster_data(
    config: RunConfig,
    embedder: Embedder,
    *,
    num_rows: int,
    num_clusters: int,
    epoch: int,
    warm_cd: Tensor | None,
    learned_cd: Tensor | None = None,
    choose: Callable[[Tensor], int] | None = None,
    one_step: bool = False,
) -> DataClustering:
    """Embed and cluster all `num_rows` samples; every worker embeds its share.

    The result depends only on the networks, and on what `cluster_embeddings` depends on. `choose`
    gives another number of clusters for the embeddings; centres of another number are no start.

    Raises:
        FloatingPointError: an embedding on any worker is not finite; raised on all workers.
    """
    local = share(num_rows)
    embeddings_bd = embedder.plain(torch.arange(local.start, local.stop))
    broken = (~embeddings_bd.isfinite()).any().float()
    if all_reduce_sum(broken):
        raise FloatingPointError("the embeddings are not finite")
    if choose is not None:
        num_clusters = choose(embeddings_bd)
    if warm_cd is not None and len(warm_cd) != num_clusters:
        warm_cd = None
    return cluster_embeddings(
        config,
        embeddings_bd,
        num_rows,
        num_clusters,
        epoch=epoch,
        warm_cd=warm_cd,
        learned_cd=learned_cd,
        one_step=one_step,
    )


def cluster_embeddings(
    config: RunConfig,
    embeddings_bd: Tensor,
    num_rows: int,
    num_clusters: int,
    *,
    epoch: int,
    warm_cd: Tensor | None = None,
    learned_cd: Tensor | None = None,
    one_step: bool = False,
) -> DataClustering:
    """Cluster all `num_rows` embeddings, of which each worker has its share.

    The result depends only on them, the seed, `epoch` (epochs trained) and `warm_cd`, the centres
    to continue from: they and one fresh start take the place of all restarts; with
    `one_step` there is no other start, and centres move once. Where the framework
    has `learned_cd`, its own centres, they decide alone. Clustering uses float32, whatever the
    precision of the networks.
    """
    if learned_cd is not None:
        centers_cd = broadcast_first(learned_cd)
        labels_b = (embeddings_bd @ centers_cd.T).argmax(1)
    else:
        seed = fold(config.seed, "kmeans", epoch)
        found = _found(config, embeddings_bd, num_rows, num_clusters, seed, warm_cd, one_step)
        centers_cd, labels_b = found.centers_cd, found.labels_b
    clusters_n = all_gather_rows(labels_b, num_rows)
    return DataClustering.of(config, embeddings_bd, clusters_n, centers_cd)


def correcting_neighbors(embeddings_bd: Tensor, num_rows: int) -> Tensor:
    """The neighbours of all samples by which a person's corrections spread, (n, k) int64.

    Each worker has its share of the embeddings; the samples themselves are not among them.
    """
    k1, k2, k = CORRECTING
    k1 = min(k1, num_rows)
    _, near_bk = contextual_neighbors(
        embeddings_bd, k1=k1, k2=min(k2, k1), k=min(k + 1, num_rows), num_rows=num_rows
    )
    return all_gather_rows(near_bk[:, 1:], num_rows)


def _found(
    config: RunConfig,
    embeddings_bd: Tensor,
    num_rows: int,
    num_clusters: int,
    seed: int,
    warm_cd: Tensor | None,
    one_step: bool,
) -> Clustering:
    """Clusters of the kind of `config`."""
    clustering = config.clustering
    if clustering.kind == "cut":
        return cut_clusters(
            embeddings_bd,
            num_rows,
            num_clusters,
            seed=seed,
            restarts=clustering.restarts,
            most_rows=clustering.start_rows,
            warm_cd=warm_cd,
        )
    return spherical_kmeans(
        embeddings_bd,
        num_rows,
        num_clusters,
        seed=seed,
        restarts=clustering.restarts if warm_cd is None else int(not one_step),
        max_iterations=1 if one_step else clustering.max_iterations,
        start_rows=clustering.start_rows,
        warm_cd=warm_cd,
    )


def found_again(
    config: RunConfig, num_clusters: int, rows_bd: Tensor, num_rows: int, seed: int
) -> Tensor:
    """Clusters of this worker's share of some rows, (b,), from one start."""
    if config.clustering.kind == "cut":
        return cut_clusters(rows_bd, num_rows, num_clusters, seed=seed, restarts=1).labels_b
    return spherical_kmeans(rows_bd, num_rows, num_clusters, seed=seed, restarts=1).labels_b
