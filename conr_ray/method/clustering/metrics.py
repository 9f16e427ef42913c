"""Clustering metrics, with labels and without."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.integer[Any]]


def clustering_accuracy(labels: npt.ArrayLike, clusters: npt.ArrayLike) -> float:
    """Share of samples that the best one-to-one match of clusters to classes gets right (ACC).

    From 0 to 1, with the match of the Hungarian method (ACC as in Xie et al. 2016). Clusters may be
    empty, and their number may differ from that of the classes: surplus ones stay unmatched, and
    their samples count as wrong.

    Args:
        labels: (n,) class of each sample, any integers.
        clusters: (n,) cluster of each sample, any integers.

    Raises:
        ValueError: the two differ in length, are not one-dimensional, or are empty.
    """
    return match_clusters(labels, clusters).accuracy


@dataclass(frozen=True)
class ClusterMatch:
    """Clusters against classes under the best one-to-one match: counts, matched on the diagonal.

    Shapes: r classes, c clusters in use. Unmatched ones come last.
    """

    classes_r: IntArray
    clusters_c: IntArray
    counts_rc: IntArray

    @property
    def accuracy(self) -> float:
        """Share of samples in matched pairs (ACC)."""
        return float(np.trace(self.counts_rc) / self.counts_rc.sum())


def _counted(labels: npt.ArrayLike, clusters: npt.ArrayLike) -> tuple[IntArray, IntArray, IntArray]:
    """Classes (r,), clusters in use (c,), and how many samples are in each two, (r, c).

    Args and errors are those of `clustering_accuracy`.
    """
    labels_n, clusters_n = np.asarray(labels), np.asarray(clusters)
    if labels_n.ndim != 1 or labels_n.shape != clusters_n.shape or not len(labels_n):
        raise ValueError(
            f"labels {labels_n.shape} and clusters {clusters_n.shape} must be 1-dimensional, not "
            f"empty and of equal length"
        )
    classes, label_ids = np.unique(labels_n, return_inverse=True)
    groups, cluster_ids = np.unique(clusters_n, return_inverse=True)
    counts = np.zeros((len(classes), len(groups)), dtype=np.int64)
    np.add.at(counts, (label_ids, cluster_ids), 1)
    return classes, groups, counts


def match_clusters(labels: npt.ArrayLike, clusters: npt.ArrayLike) -> ClusterMatch:
    """Match clusters to classes so that as many samples as possible are in matched pairs.

    Args and errors are those of `clustering_accuracy`.
    """
    classes, groups, counts = _counted(labels, clusters)
    # Imported late: of a run's workers the first alone matches, and SciPy takes long to import.
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts, maximize=True)
    rows = np.append(rows, np.setdiff1d(np.arange(len(classes)), rows))
    columns = np.append(columns, np.setdiff1d(np.arange(len(groups)), columns))
    return ClusterMatch(classes[rows], groups[columns], counts[np.ix_(rows, columns)])


def balanced_accuracy(labels: npt.ArrayLike, clusters: npt.ArrayLike) -> float:
    """Mean over the classes of the share that the best one-to-one match gets right, in [0, 1].

    The match is the one that maximises this mean, so that a rare class counts as much as a frequent
    one. Args and errors are those of `clustering_accuracy`.
    """
    from scipy.optimize import linear_sum_assignment

    _, _, counts_rc = _counted(labels, clusters)
    shares_rc = counts_rc / counts_rc.sum(1, keepdims=True)
    rows, columns = linear_sum_assignment(shares_rc, maximize=True)
    return float(shares_rc[rows, columns].sum() / len(shares_rc))


def agreement(labels: IntArray, clusters: IntArray) -> dict[str, float]:
    """ACC, NMI (arithmetic mean), ARI and balanced ACC.

    Samples labelled -1 are unlabelled and left out.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = labels >= 0
    labels, clusters = labels[known], clusters[known]
    return {
        "acc": clustering_accuracy(labels, clusters),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "balanced_acc": balanced_accuracy(labels, clusters),
    }


def neighbor_matches(neighbor_labels_nk: Tensor, labels_n: Tensor) -> Tensor:
    """Counts of neighbours with the sample's label, and of those with a known label, (2,) int64.

    The first neighbour, the sample itself, is left out, and so are pairs with a label of -1.
    """
    others = neighbor_labels_nk[:, 1:]
    known = (others >= 0) & (labels_n >= 0)[:, None]
    return torch.stack([((others == labels_n[:, None]) & known).sum(), known.sum()])


def neighbor_purity(neighbor_labels_nk: Tensor, labels_n: Tensor) -> Tensor:
    """Share of `neighbor_matches`: a scalar tensor, nan if no label is known."""
    same, known = neighbor_matches(neighbor_labels_nk, labels_n).unbind()
    return same / known


def centre_silhouette(embeddings_nd: Tensor, clusters_n: Tensor, centers_cd: Tensor) -> float:
    """Simplified silhouette, label-free, in [-1, 1]: mean of (b - a) / max(a, b).

    a and b are cosine distances to the own and to the nearest other centre. Time is O(n c), that of
    the plain silhouette O(n^2). Distances within the rounding of a cosine are 0, and a row with two
    such distances counts 0.
    """
    distances_nc = 1 - embeddings_nd @ centers_cd.T
    rounding = embeddings_nd.shape[1] * torch.finfo(embeddings_nd.dtype).eps
    distances_nc = distances_nc.where(distances_nc > rounding, 0)
    own_n1 = clusters_n[:, None]
    own_n = distances_nc.gather(1, own_n1).squeeze(1)
    other_n = distances_nc.scatter(1, own_n1, torch.inf).amin(1)
    larger_n = torch.maximum(own_n, other_n).clamp_min(rounding)
    return float(((other_n - own_n) / larger_n).mean())


def joint_counts(left: Tensor, right: Tensor, num_clusters: int) -> Tensor:
    """How often each pair of clusters occurs, (c, c) int64; of two tensors of the same shape."""
    pairs = left.flatten() * num_clusters + right.flatten()
    counts = torch.bincount(pairs, minlength=num_clusters**2)
    return counts.view(num_clusters, num_clusters)


def shared_information(counts_cc: Tensor) -> float:
    """Mutual information of two clusterings by their `joint_counts`, over log c, in [0, 1].

    1 if each determines the other and all clusters are equally large, 0 if they are independent or
    one of them has a single cluster.
    """
    joint_cc = counts_cc.double() / counts_cc.sum()
    expected_cc = joint_cc.sum(1, keepdim=True) * joint_cc.sum(0, keepdim=True)
    present_cc = joint_cc > 0
    terms = joint_cc[present_cc] * (joint_cc[present_cc] / expected_cc[present_cc]).log()
    return float(terms.sum()) / math.log(len(counts_cc))


def mean_stability(counts_cc: Tensor) -> float:
    """Share of a cluster's pairs that stay in it, the mean over all clusters, in [0, 1].

    From the `joint_counts` of samples and their neighbours. Unlike `shared_information` it does not
    grow with equal sizes: a rare cluster counts as much as a frequent one. An empty one counts 0.
    """
    counts_cc = counts_cc.double()
    stays_c = counts_cc.diagonal() / counts_cc.sum(1).clamp_min(1)
    return float(stays_c.mean())
