from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conr_ray.method.clustering import kmeans
from conr_ray.method.clustering.kmeans import Clustering, spherical_kmeans
from conr_ray.method.collectives import share
from tests.gloo_workers import run_workers
from tests.method.naive_reranking import unit_rows


def _blobs(n: int, clusters: int, spread: float = 0.05) -> tuple[Tensor, Tensor]:
    labels = torch.randint(clusters, (n,))
    labels[:clusters] = torch.arange(clusters)
    rows = torch.eye(clusters + 2)[labels] + spread * torch.randn(n, clusters + 2)
    return unit_rows(rows), labels


def _same_partition(left: Tensor, right: Tensor) -> bool:
    pairs = set(zip(left.tolist(), right.tolist(), strict=True))
    return len(pairs) == len(left.unique()) == len(right.unique())


def _assert_settled(rows: Tensor, found: Clustering) -> None:
    """Labels are the nearest centres, and centres the directions of the sums of their rows."""
    for row, label in zip(rows, found.labels_b.tolist(), strict=True):
        similarities = [float(row @ center) for center in found.centers_cd]
        assert similarities[label] >= max(similarities) - 1e-6
    for cluster, center in enumerate(found.centers_cd):
        members = [
            row for row, c in zip(rows, found.labels_b.tolist(), strict=True) if c == cluster
        ]
        total = sum(members[1:], start=members[0])
        torch.testing.assert_close(center, total / total.norm(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clusters", [1, 2, 5, 12])
@pytest.mark.parametrize("sample_rows", [8192, 64])
def test_well_separated_blobs_are_found(
    clusters: int, sample_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "_SAMPLE_ROWS", sample_rows)
    rows, labels = _blobs(200, clusters)
    found = spherical_kmeans(rows, 200, clusters, seed=3)
    assert found.labels_b.dtype == torch.int64
    assert _same_partition(found.labels_b, labels)
    _assert_settled(rows, found)
    torch.testing.assert_close(found.centers_cd.norm(dim=1), torch.ones(clusters))


def test_clusters_without_structure_settle_too() -> None:
    rows = unit_rows(torch.randn(150, 4))
    found = spherical_kmeans(rows, 150, 6, seed=0)
    assert len(found.labels_b.unique()) == 6
    _assert_settled(rows, found)


def test_result_depends_on_the_seed_alone() -> None:
    rows = unit_rows(torch.randn(150, 4))
    first = spherical_kmeans(rows, 150, 6, seed=1, restarts=1)
    torch.manual_seed(99)
    again = spherical_kmeans(rows, 150, 6, seed=1, restarts=1)
    assert torch.equal(first.centers_cd, again.centers_cd)
    assert torch.equal(first.labels_b, again.labels_b)
    other = spherical_kmeans(rows, 150, 6, seed=2, restarts=1)
    assert not torch.equal(first.centers_cd, other.centers_cd)


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    spherical_kmeans(unit_rows(torch.randn(3, 2)), 3, 2, seed=0)
    torch.manual_seed(0)
    torch.randn(3, 2)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    torch.randn(3, 2)
    assert torch.equal(torch.get_rng_state(), after)


def test_more_restarts_do_not_fit_worse() -> None:
    rows, fits = unit_rows(torch.randn(200, 5)), []
    for restarts in (1, 4, 16):
        found = spherical_kmeans(rows, 200, 8, seed=5, restarts=restarts)
        fits.append(float((rows @ found.centers_cd.T).amax(1).mean()))
    assert fits == sorted(fits)
    assert fits[0] < fits[-1]


@pytest.mark.parametrize("sample_rows", [8192, 10])
def test_fewer_distinct_rows_than_clusters(
    sample_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "_SAMPLE_ROWS", sample_rows)
    rows = torch.eye(3).repeat(10, 1)
    found = spherical_kmeans(rows, 30, 5, seed=0)
    assert torch.isfinite(found.centers_cd).all()
    torch.testing.assert_close(found.centers_cd.norm(dim=1), torch.ones(5))
    assert _same_partition(found.labels_b, torch.arange(3).repeat(10))


def test_collapsed_rows_and_as_many_clusters_as_rows() -> None:
    collapsed = unit_rows(torch.tensor([[0.3, -0.2, 0.7]])).repeat(8, 1)
    found = spherical_kmeans(collapsed, 8, 8, seed=0)
    torch.testing.assert_close(found.centers_cd, collapsed)
    rows = unit_rows(torch.randn(8, 3))
    assert len(spherical_kmeans(rows, 8, 8, seed=0).labels_b.unique()) == 8


def test_an_empty_cluster_takes_the_row_that_fits_worst() -> None:
    rows = unit_rows(torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 0, 1], [0, 0.1, 1], [0, 1, 1]]))
    # The second centre attracts nothing.
    centers = unit_rows(torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 0, 1]]))
    moved = kmeans._lloyd(rows, centers, rows, 1, spread=False)
    torch.testing.assert_close(moved[1], rows[4])
    settled = kmeans._lloyd(rows, centers, rows, 50, spread=False)
    assert sorted((rows @ settled.T).argmax(1).bincount().tolist()) == [1, 2, 2]


def test_more_clusters_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="num_clusters=5 exceeds the 4 rows"):
        spherical_kmeans(unit_rows(torch.randn(4, 3)), 4, 5, seed=0)


Case = tuple[Tensor, int, int]


def _cluster_share(cases: list[Case]) -> list[tuple[Tensor, Tensor]]:
    results = []
    for rows, clusters, sample_rows in cases:
        kmeans._SAMPLE_ROWS = sample_rows
        found = spherical_kmeans(rows[share(len(rows))], len(rows), clusters, seed=7)
        results.append((found.centers_cd, found.labels_b))
    return results


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_find_what_one_process_finds(
    num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, duplicates = unit_rows(torch.randn(100, 4)), torch.eye(4).repeat(25, 1)[:97]
    cases = [
        (noise, 6, 8192),
        (noise, 6, 40),
        (_blobs(101, 5)[0], 5, 33),
        (duplicates, 6, 8192),
        (duplicates, 6, 20),
        # Fewer rows than some workers' number of clusters, one row or none for each.
        (noise[:2], 2, 8192),
    ]
    monkeypatch.setattr(kmeans, "_SAMPLE_ROWS", kmeans._SAMPLE_ROWS)
    expected = _cluster_share(cases)
    by_worker = run_workers(_cluster_share, num_workers, cases)
    for number, (centers, labels) in enumerate(expected):
        found = [results[number] for results in by_worker]
        for worker_centers, _ in found:
            torch.testing.assert_close(worker_centers, centers, rtol=1e-6, atol=1e-6)
            assert torch.equal(worker_centers, found[0][0])
        assert torch.equal(torch.cat([part for _, part in found]), labels)
