"""Spread and scores of embeddings, of healthy ones and of some that nearly coincide."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.method.clustering.metrics import (
    agreement,
    centre_silhouette,
    joint_counts,
    shared_information,
)
from conr_ray.method.clustering.spread import effective_rank, mean_cosine
from conr_ray.metric_names import RANGES

SPREADS = [0, 1e-8, 1e-7, 3e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-1, 10]


def _rows(count: int, width: int, spread: float = 10) -> Tensor:
    return normalize(torch.ones(count, width) + spread * torch.randn(count, width))


@pytest.mark.parametrize(("count", "width"), [(30, 5), (5, 30), (2, 2)])
def test_spread_is_that_of_the_definitions(count: int, width: int) -> None:
    rows = _rows(count, width)
    cosines = [float(a.double() @ b.double()) for a, b in itertools.permutations(rows, 2)]
    assert mean_cosine(rows) == pytest.approx(sum(cosines) / len(cosines), abs=1e-7)
    values = torch.linalg.svdvals(rows.double()).tolist()
    shares = [value / sum(values) for value in values]
    entropy = -sum(share * math.log(share) for share in shares)
    assert effective_rank(rows) == pytest.approx(math.exp(entropy))


def test_spread_of_rows_that_coincide_oppose_or_are_orthogonal() -> None:
    same = torch.tensor([[0.6, 0.8]]).repeat(7, 1)
    assert (effective_rank(same), mean_cosine(same)) == pytest.approx((1, 1))
    assert (effective_rank(same[:1]), mean_cosine(same[:1])) == pytest.approx((1, 1))
    opposed = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert (effective_rank(opposed), mean_cosine(opposed)) == pytest.approx((1, -1))
    assert (effective_rank(torch.eye(6)), mean_cosine(torch.eye(6))) == pytest.approx((6, 0))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("num_clusters", [2, 10])
def test_scores_of_embeddings_that_nearly_coincide_are_in_range(
    spread: float, num_clusters: int
) -> None:
    rows = _rows(200, 16, spread)
    found = spherical_kmeans(rows, len(rows), num_clusters, seed=1, restarts=2)
    again = spherical_kmeans(rows, len(rows), num_clusters, seed=2, restarts=1)
    labels = torch.arange(len(rows)) % num_clusters
    counts = joint_counts(found.labels_b, again.labels_b, num_clusters)
    scores = {
        "silhouette": centre_silhouette(rows, found.labels_b, found.centers_cd),
        "restart_agreement": shared_information(counts),
        "effective_rank": effective_rank(rows),
        "mean_cosine": mean_cosine(rows),
        **agreement(labels.numpy(), found.labels_b.numpy()),
    }
    for name, value in scores.items():
        least, most = RANGES[name]
        assert least - 1e-6 <= value <= most + 1e-6, name


def test_fewer_distinct_rows_than_clusters_are_clustered() -> None:
    rows = normalize(torch.randn(3, 8))[torch.arange(60) % 3]
    found = spherical_kmeans(rows, len(rows), 10, seed=1)
    cosines = (rows * found.centers_cd[found.labels_b]).sum(1)
    assert torch.allclose(cosines, torch.ones(60))
    assert centre_silhouette(rows, found.labels_b, found.centers_cd) <= 1
