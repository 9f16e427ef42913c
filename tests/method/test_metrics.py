from __future__ import annotations

import itertools
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from conr_ray.method.clustering.metrics import (
    agreement,
    balanced_accuracy,
    centre_silhouette,
    clustering_accuracy,
    mean_stability,
    neighbor_purity,
)
from tests.method.naive_reranking import unit_rows


def _brute_force_accuracy(labels: list[int], clusters: list[int]) -> float:
    classes, groups = sorted(set(labels)), sorted(set(clusters))
    # As many stand-ins that match nothing as make every injection possible.
    targets: list[int | None] = [*classes, *[None] * len(groups)]
    best = 0
    for chosen in permutations(targets, len(groups)):
        match = dict(zip(groups, chosen, strict=True))
        pairs = zip(labels, clusters, strict=True)
        best = max(best, sum(match[cluster] == label for label, cluster in pairs))
    return best / len(labels)


@pytest.mark.parametrize(
    ("classes", "groups"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([0, 1, 2, 3], [0, 1]),
        ([0, 1], [0, 1, 2, 3]),
        ([-5, 7, 1000], [3, 90, 12]),
        ([4], [0, 1, 2]),
        ([0, 1, 2], [8]),
    ],
)
def test_accuracy_is_that_of_the_best_match(classes: list[int], groups: list[int]) -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 5, 14, 30):
        labels, clusters = random.choice(classes, size), random.choice(groups, size)
        expected = _brute_force_accuracy(labels.tolist(), clusters.tolist())
        assert clustering_accuracy(labels, clusters) == pytest.approx(expected)


def test_accuracy_with_an_empty_cluster_is_not_zero() -> None:
    assert clustering_accuracy([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1]) == pytest.approx(4 / 6)


def test_accuracy_does_not_depend_on_the_names_of_clusters() -> None:
    labels = [0, 0, 1, 1, 2]
    assert clustering_accuracy(labels, [9, 9, -3, -3, 5]) == 1.0
    assert clustering_accuracy(np.array(labels, np.uint8), np.array(labels, np.int64)) == 1.0


@pytest.mark.parametrize(
    ("labels", "clusters"), [([], []), ([1, 2], [1]), ([[1, 2]], [[1, 2]]), (3, 3)]
)
def test_accuracy_refuses_what_is_not_two_lists_of_one_length(
    labels: object, clusters: object
) -> None:
    with pytest.raises(ValueError, match="not empty and of equal length"):
        clustering_accuracy(np.array(labels), np.array(clusters))


def test_agreement_leaves_unlabelled_samples_out() -> None:
    random = np.random.default_rng(1)
    labels, clusters = random.integers(-1, 3, 60), random.integers(0, 4, 60)
    known = labels != -1
    assert 0 < known.sum() < 60
    found = agreement(labels, clusters)
    assert found == pytest.approx(
        {
            "acc": _brute_force_accuracy(labels[known].tolist(), clusters[known].tolist()),
            "nmi": normalized_mutual_info_score(labels[known], clusters[known]),
            "ari": adjusted_rand_score(labels[known], clusters[known]),
            "balanced_acc": balanced_accuracy(labels[known], clusters[known]),
        }
    )
    elsewhere = np.where(known, clusters, 77)
    assert agreement(labels, elsewhere) == found


def test_purity_is_the_share_of_equal_labels_among_known_others() -> None:
    labels, pool = torch.randint(-1, 3, (20,)), torch.randint(-1, 3, (30,))
    neighbors = torch.randint(30, (20, 6))
    same = known = 0
    for i in range(20):
        for j in neighbors[i, 1:].tolist():
            if labels[i] >= 0 and pool[j] >= 0:
                known += 1
                same += int(labels[i] == pool[j])
    assert 0 < same < known < 100
    assert float(neighbor_purity(pool[neighbors], labels)) == pytest.approx(same / known)


def test_purity_without_known_pairs_is_nan() -> None:
    labels = torch.full((3,), -1)
    assert neighbor_purity(torch.full((3, 2), -1), labels).isnan()
    known = torch.zeros(3, dtype=torch.int64)
    assert neighbor_purity(known[:, None], known).isnan()


def test_silhouette_is_the_mean_of_the_formula() -> None:
    rows, centers = unit_rows(torch.randn(25, 4)), unit_rows(torch.randn(5, 4))
    clusters = torch.randint(5, (25,))
    terms = []
    for row, cluster in zip(rows, clusters.tolist(), strict=True):
        distances = [1 - float(row @ center) for center in centers]
        own = distances.pop(cluster)
        other = min(distances)
        terms.append((other - own) / max(own, other))
    assert centre_silhouette(rows, clusters, centers) == pytest.approx(np.mean(terms), abs=1e-5)


def test_silhouette_is_one_on_the_own_centres_and_zero_on_coinciding_ones() -> None:
    centers = torch.eye(3)
    clusters = torch.tensor([0, 1, 2, 0])
    assert centre_silhouette(centers[clusters], clusters, centers) == 1.0
    assert centre_silhouette(centers[clusters], (clusters + 1) % 3, centers) == -1.0
    same = centers[:1].repeat(3, 1)
    assert centre_silhouette(same, torch.tensor([0, 1, 2]), same) == 0.0


def test_silhouette_of_rows_that_nearly_coincide_with_centres_is_in_range() -> None:
    row = unit_rows(torch.randn(1, 64))
    for noise in (0, 1e-8, 1e-7, 1e-6, 1e-4, 1e-2):
        rows = unit_rows(row + noise * torch.randn(400, 64))
        centers = unit_rows(row + noise * torch.randn(6, 64))
        clusters = (rows @ centers.T).argmax(1)
        for shift in (0, 1):
            found = centre_silhouette(rows, (clusters + shift) % 6, centers)
            assert -1 <= found <= 1
            if noise <= 1e-6:
                assert found == 0


def test_balanced_accuracy_is_the_best_mean_of_the_classes_shares() -> None:
    random = np.random.default_rng(4)
    labels = np.repeat([0, 1, 2], [60, 10, 4])
    clusters = random.integers(0, 4, len(labels))
    clusters[labels == 1] = 2
    best = max(
        sum(float((clusters[labels == c] == group).mean()) for c, group in enumerate(groups)) / 3
        for groups in itertools.permutations(range(4), 3)
    )
    assert balanced_accuracy(labels, clusters) == pytest.approx(best)


def test_rare_classes_count_as_much_as_frequent_ones() -> None:
    labels = np.repeat([0, 1], [98, 2])
    assert balanced_accuracy(labels, np.zeros(100, dtype=np.int64)) == pytest.approx(0.5)
    assert balanced_accuracy(labels, labels) == 1


def test_stability_is_the_mean_share_that_stays_whatever_the_sizes() -> None:
    counts = torch.tensor([[900, 0, 100], [0, 6, 4], [0, 0, 0]])
    assert mean_stability(counts) == pytest.approx((0.9 + 0.6 + 0.0) / 3)
    assert mean_stability(torch.diag(torch.tensor([1000, 10, 1]))) == 1
