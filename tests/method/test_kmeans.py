from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from conr_ray.method import compiled
from conr_ray.method.clustering.kmeans import Clustering, spherical_kmeans
from conr_ray.method.clustering.lloyd import refine
from conr_ray.method.clustering.merging import merge
from conr_ray.method.clustering.partition import Partition
from conr_ray.method.clustering.seeding import greedy_starts
from conr_ray.method.collectives import share
from tests.gloo_workers import run_workers
from tests.method.naive_reranking import unit_rows


@pytest.fixture(params=["CPU", "other devices"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two ways to iterate."""
    monkeypatch.setattr(compiled, "serves", lambda device: request.param == "CPU")


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
@pytest.mark.parametrize("start_rows", [8192, 64])
@pytest.mark.usefixtures("route")
def test_well_separated_blobs_are_found(clusters: int, start_rows: int) -> None:
    rows, labels = _blobs(200, clusters)
    found = spherical_kmeans(rows, 200, clusters, seed=3, start_rows=start_rows)
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


@pytest.mark.parametrize("start_rows", [8192, 10])
@pytest.mark.usefixtures("route")
def test_fewer_distinct_rows_than_clusters(start_rows: int) -> None:
    rows = torch.eye(3).repeat(10, 1)
    found = spherical_kmeans(rows, 30, 5, seed=0, start_rows=start_rows)
    assert torch.isfinite(found.centers_cd).all()
    torch.testing.assert_close(found.centers_cd.norm(dim=1), torch.ones(5))
    assert _same_partition(found.labels_b, torch.arange(3).repeat(10))


@pytest.mark.parametrize("noise", [0, 1e-8, 1e-6])
@pytest.mark.usefixtures("route")
def test_rows_that_coincide_or_nearly_do(noise: float) -> None:
    row = unit_rows(torch.randn(1, 64))
    collapsed = unit_rows(row + noise * torch.randn(300, 64))
    found = spherical_kmeans(collapsed, 300, 8, seed=0, start_rows=100)
    torch.testing.assert_close(found.centers_cd, row.repeat(8, 1), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("route")
def test_as_many_clusters_as_rows() -> None:
    rows = unit_rows(torch.randn(8, 3))
    assert len(spherical_kmeans(rows, 8, 8, seed=0).labels_b.unique()) == 8


@pytest.mark.usefixtures("route")
def test_an_empty_cluster_takes_the_row_that_fits_worst() -> None:
    rows = unit_rows(torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 0, 1], [0, 0.1, 1], [0, 1, 1]]))
    # The second centre attracts nothing.
    centers = unit_rows(torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 0, 1]]))[None]
    moved = refine(rows, centers, rows, 1, spread=False)[0]
    torch.testing.assert_close(moved[1], rows[4])
    settled = refine(rows, centers, rows, 50, spread=False)[0]
    assert sorted((rows @ settled.T).argmax(1).bincount().tolist()) == [1, 2, 2]


@pytest.mark.usefixtures("route")
def test_several_empty_clusters_take_a_row_each() -> None:
    rows = unit_rows(torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 0, 1], [0, 1, 1], [0, -1, 2]]))
    centers = unit_rows(torch.tensor([[-1.0, 0, 0], [1, 1, 1], [-1, -1, -1]]))
    # In another start all centres attract rows.
    others = rows[[0, 2, 3]]
    found = refine(rows, torch.stack([centers, others]), rows, 1, spread=False)
    total = rows.sum(0)
    fits = (rows @ centers.T).amax(1).tolist()
    worst, next_worst = sorted(range(5), key=lambda row: fits[row])[:2]
    expected = torch.stack([rows[worst], total / total.norm(), rows[next_worst]])
    torch.testing.assert_close(found[0], expected)
    alone = refine(rows, others[None], rows, 1, spread=False)
    torch.testing.assert_close(found[1], alone[0])


def test_both_routes_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit_rows(torch.randn(500, 6))
    starts = torch.stack([rows[:9], rows[100:109]])
    by_bounds = refine(rows, starts, rows, 100, spread=False)
    monkeypatch.setattr(compiled, "serves", lambda device: False)
    torch.testing.assert_close(refine(rows, starts, rows, 100, spread=False), by_bounds)


def test_clusters_are_those_of_the_nearest_centres_however_these_move() -> None:
    rows, centers = unit_rows(torch.randn(300, 5)), unit_rows(torch.randn(7, 5))
    partition = Partition(rows, 7)
    for step in (0.5, 0.1, 0.02, 0.001, 0, 0.3, 0.01, 0.01):
        centers = unit_rows(centers + step * torch.randn(7, 5))
        expected = torch.zeros(7, 6, dtype=torch.float64)
        for row in rows:
            cluster = max(range(7), key=lambda c: float(row @ centers[c]))
            expected[cluster] += torch.cat([row, torch.ones(1)])
        torch.testing.assert_close(partition.sums(centers), expected)


def test_draws_keep_the_candidate_that_leaves_the_smallest_distances() -> None:
    rows = unit_rows(torch.randn(40, 4))
    starts = greedy_starts(rows, 12, 3, torch.Generator().manual_seed(5))
    # 2 + log 12 candidates.
    draws = torch.rand(3, 12, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for start in range(3):
        chosen = [int(draws[start, 0, 0] * 40)]
        for draw in draws[start, 1:]:
            distances = [_squared_distance(row, rows[chosen]) for row in rows]
            candidates = []
            for number in draw.tolist():
                passed, row = 0.0, 0
                while passed + distances[row] <= number * sum(distances):
                    passed, row = passed + distances[row], row + 1
                candidates.append(row)
            left = [
                sum(_squared_distance(row, rows[[*chosen, candidate]]) for row in rows)
                for candidate in candidates
            ]
            chosen.append(candidates[left.index(min(left))])
        assert torch.equal(starts[start], rows[chosen])


def _squared_distance(row: Tensor, others: Tensor) -> float:
    return min(float((row - other).double().square().sum()) for other in others)


def test_merging_takes_the_cheapest_pair_each_time() -> None:
    sums = torch.randn(2, 9, 4, dtype=torch.float64)
    # Without rows.
    sums[1, 3] = 0
    found = merge(sums, 5)
    for start in range(2):
        left = list(sums[start])
        for _ in range(4):
            costs = {
                (i, j): float(left[i].norm() + left[j].norm() - (left[i] + left[j]).norm())
                for i, j in combinations(range(len(left)), 2)
            }
            i, j = min(costs, key=lambda pair: costs[pair])
            left[i] = left[i] + left[j]
            del left[j]
        torch.testing.assert_close(found[start].float(), unit_rows(torch.stack(left)))


def test_one_start_fits_as_well_as_the_best_of_ten_of_scikit_learn() -> None:
    centers = unit_rows(torch.randn(40, 16))
    rows = unit_rows(centers[torch.arange(2000) % 40] + 0.6 * torch.randn(2000, 16) / 4)
    found = spherical_kmeans(rows, 2000, 40, seed=0, restarts=1, start_rows=800)
    by_peer = KMeans(40, n_init=10, random_state=0).fit(rows.numpy()).cluster_centers_
    ours, peers = (
        float((1 - (rows @ unit_rows(c).T).amax(1)).mean())
        for c in (found.centers_cd, torch.from_numpy(by_peer))
    )
    assert ours <= 1.001 * peers


@pytest.mark.parametrize("start_rows", [8192, 150])
@pytest.mark.usefixtures("route")
def test_it_continues_from_centres_unless_a_start_fits_better(start_rows: int) -> None:
    rows, labels = _blobs(600, 6)
    options: dict[str, Any] = {"restarts": 1, "start_rows": start_rows}
    fresh = spherical_kmeans(rows, 600, 6, seed=0, **options)
    # The clusters keep their numbers.
    order = torch.randperm(6)
    warm = unit_rows(fresh.centers_cd[order] + 0.1 * torch.randn(6, 8))
    continued = spherical_kmeans(rows, 600, 6, seed=0, **options, warm_cd=warm)
    torch.testing.assert_close(continued.centers_cd, fresh.centers_cd[order])
    # Of two clusters one is lost, or all are.
    for lost in (warm[[0, 0, 2, 3, 4, 5]], warm[:1].repeat(6, 1)):
        recovered = spherical_kmeans(rows, 600, 6, seed=0, **options, warm_cd=lost)
        assert _same_partition(recovered.labels_b, labels)


def test_more_clusters_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="num_clusters=5 exceeds the 4 rows"):
        spherical_kmeans(unit_rows(torch.randn(4, 3)), 4, 5, seed=0)


Case = tuple[Tensor, int, int]


def _cluster_share(cases: list[Case], by_bounds: bool) -> list[tuple[Tensor, Tensor]]:
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "serves", lambda device: by_bounds)
        for rows, clusters, start_rows in cases:
            local = rows[share(len(rows))]
            found = spherical_kmeans(local, len(rows), clusters, seed=7, start_rows=start_rows)
            results.append((found.centers_cd, found.labels_b))
    return results


@pytest.mark.parametrize("by_bounds", [True, False])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_find_what_one_process_finds(num_workers: int, by_bounds: bool) -> None:
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
    expected = _cluster_share(cases, True)
    by_worker = run_workers(_cluster_share, num_workers, cases, by_bounds)
    for number, (centers, labels) in enumerate(expected):
        found = [results[number] for results in by_worker]
        for worker_centers, _ in found:
            torch.testing.assert_close(worker_centers, centers, rtol=1e-6, atol=1e-6)
            assert torch.equal(worker_centers, found[0][0])
        assert torch.equal(torch.cat([part for _, part in found]), labels)
