from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.method.collectives import share
from conr_ray.method.schedules import kept_fraction
from conr_ray.method.stages.boundary import (
    boundary_centers,
    boundary_ratio,
    center_lengths,
    kept_mask,
)
from tests.gloo_workers import run_workers
from tests.method.naive_reranking import unit_rows


def _naive_ratio(key: Tensor, label: int, centers: Tensor) -> float:
    own = math.dist(key.tolist(), centers[label].tolist())
    others = [math.dist(key.tolist(), c.tolist()) for j, c in enumerate(centers) if j != label]
    return own / min(others)


@pytest.mark.parametrize("clusters", [2, 3, 7])
def test_ratio_is_own_distance_over_nearest_other(clusters: int) -> None:
    keys, centers = unit_rows(torch.randn(30, 5)), unit_rows(torch.randn(clusters, 5))
    labels = torch.randint(clusters, (30,))
    pairs = zip(keys, labels.tolist(), strict=True)
    expected = torch.tensor([_naive_ratio(key, label, centers) for key, label in pairs])
    torch.testing.assert_close(boundary_ratio(keys, labels, centers), expected)


def test_ratio_near_a_centre_keeps_its_digits() -> None:
    # Expanding |a - b|^2 = 2 - 2 a.b in float32 would lose a distance of 1e-4.
    centers = torch.eye(3)
    key = unit_rows(torch.tensor([[1.0, 1e-4, 0.0]]))
    ratio = boundary_ratio(key, torch.tensor([0]), centers)
    assert float(ratio) == pytest.approx(1e-4 / math.sqrt(2), rel=1e-3)


def test_ratio_of_keys_that_lie_on_centres() -> None:
    centers = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # On the own centre; on another one; on the own one, which coincides with another.
    ratios = boundary_ratio(keys, torch.tensor([0, 1, 1]), centers)
    assert ratios.tolist() == [0.0, math.inf, 1.0]


def _centers_of_share(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    local = rows[share(len(rows))]
    found = spherical_kmeans(local, len(rows), 4, seed=0)
    return found.labels_b, found.centers_cd, center_lengths(local, found.labels_b, found.centers_cd)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_mean_centres_are_the_means_of_the_clusters(workers: int) -> None:
    rows = unit_rows(torch.randn(40, 6))
    parts = run_workers(_centers_of_share, workers, rows)
    labels, (_, centers, lengths) = torch.cat([part[0] for part in parts]), parts[0]
    means = boundary_centers("mean", centers, lengths)
    for cluster in range(4):
        members = [
            row for row, label in zip(rows, labels.tolist(), strict=True) if label == cluster
        ]
        torch.testing.assert_close(means[cluster], sum(members) / len(members))
    assert float(lengths.max()) < 0.9
    assert all(torch.equal(part[2], lengths) for part in parts)
    assert boundary_centers("unit", centers, lengths) is centers


def test_the_length_of_an_empty_cluster_is_one() -> None:
    centers = torch.eye(3)
    assert center_lengths(centers[:2], torch.tensor([0, 1]), centers).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("fraction", "count"), [(1.0, 10), (0.8, 8), (0.84, 8), (0.86, 9), (0.1, 1), (0.04, 0)]
)
def test_kept_are_the_smallest_ratios_by_the_rounded_fraction(fraction: float, count: int) -> None:
    ratios = torch.randperm(10).float()
    kept = kept_mask(ratios, fraction)
    assert kept.dtype == torch.bool
    assert kept.tolist() == [ratio < count for ratio in ratios.tolist()]


def test_ties_are_kept_by_lower_row() -> None:
    ratios = torch.tensor([2.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    assert kept_mask(ratios, 0.5).tolist() == [False, True, True, True, False, False]
    assert kept_mask(torch.ones(40), 0.25).tolist() == [True] * 10 + [False] * 30


def test_fraction_one_keeps_even_infinite_ratios() -> None:
    assert kept_mask(torch.tensor([0.5, math.inf, 0.1, math.inf]), 1.0).all()


def test_fraction_rises_linearly_from_initial_to_one_and_stays() -> None:
    fractions = [kept_fraction(epoch, 800, 50, 0.8) for epoch in range(800, 860)]
    assert fractions[0] == 0.8
    assert fractions[25] == pytest.approx(0.9)
    steps = {round(b - a, 12) for a, b in pairwise(fractions[:51])}
    assert steps == {0.004}
    assert fractions[50:] == [1.0] * 10


def test_without_relax_epochs_everything_is_kept_at_once() -> None:
    assert kept_fraction(10, 10, 0, 0.5) == 1.0
    assert kept_fraction(11, 10, 1, 0.5) == 1.0
    assert kept_fraction(10, 10, 1, 0.5) == 0.5


@pytest.mark.parametrize("fraction", [1.0, 0.8, 0.5, 0.1])
def test_each_cluster_keeps_the_share_of_its_own_smallest_ratios(fraction: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # Number 2 has none, number 4 a single one.
    labels = torch.tensor([0] * 50 + [1] * 10 + [3] * 5 + [4])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    ratios = torch.rand(len(labels), generator=generator)
    kept = kept_mask(ratios, fraction, labels)
    for cluster, size in ((0, 50), (1, 10), (3, 5), (4, 1)):
        own = labels == cluster
        count = max(1, round(fraction * size))
        assert int(kept[own].sum()) == count
        assert torch.equal(kept[own], ratios[own] <= ratios[own].sort().values[count - 1])


def test_a_rare_cluster_that_is_all_at_the_boundary_is_not_lost() -> None:
    labels = torch.tensor([0] * 8 + [1] * 2)
    ratios = torch.cat([torch.linspace(0.1, 0.2, 8), torch.tensor([0.9, 0.95])])
    assert not kept_mask(ratios, 0.8)[8:].any()
    assert kept_mask(ratios, 0.8, labels)[8:].all()
