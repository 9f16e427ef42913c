"""The normalised cut of embeddings, and what it is for: clusters of unequal sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method.clustering import cut
from conr_ray.method.clustering.cut import cut_clusters
from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.method.clustering.metrics import balanced_accuracy
from conr_ray.method.collectives import share
from tests.gloo_workers import run_workers

SIZES = (600, 200, 60, 40, 30, 30)


def uneven_rows(common: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rows of clusters of unequal sizes and widths, all in part in one direction, and labels."""
    generator = torch.Generator().manual_seed(3)
    centers_cd = torch.randn(len(SIZES), 16, generator=generator)
    # The rare ones lie near each other, the frequent ones are wide.
    centers_cd[2:] = centers_cd[2] + 0.5 * centers_cd[2:]
    labels_n = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    width_n1 = 0.25 + 0.5 * (torch.tensor(SIZES).float() / SIZES[0])[labels_n, None]
    rows_nd = centers_cd[labels_n] + width_n1 * torch.randn(len(labels_n), 16, generator=generator)
    rows_nd[:, 0] += common
    order = torch.randperm(len(labels_n), generator=generator)
    return normalize(rows_nd)[order], labels_n[order]


@pytest.mark.parametrize("common", [0.0, 6.0])
def test_rare_clusters_are_found_that_kmeans_joins(common: float) -> None:
    rows_nd, labels_n = uneven_rows(common)
    found = cut_clusters(rows_nd, len(rows_nd), len(SIZES), seed=0)
    plain = spherical_kmeans(rows_nd, len(rows_nd), len(SIZES), seed=0)
    by_cut = balanced_accuracy(labels_n, found.labels_b)
    assert by_cut > 0.9
    assert by_cut > balanced_accuracy(labels_n, plain.labels_b) + 0.1


def test_a_row_is_in_the_cluster_of_its_nearest_centre() -> None:
    rows_nd, _ = uneven_rows(common=3.0)
    found = cut_clusters(rows_nd, len(rows_nd), len(SIZES), seed=0, restarts=2)
    torch.testing.assert_close(found.centers_cd.norm(dim=1), torch.ones(len(SIZES)))
    assert torch.equal(found.labels_b, (rows_nd @ found.centers_cd.T).argmax(1))


def test_the_same_seed_gives_the_same_and_another_one_other_numbers() -> None:
    rows_nd, _ = uneven_rows()
    first, again, other = (
        cut_clusters(rows_nd, len(rows_nd), len(SIZES), seed=seed, restarts=2).labels_b
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_warm_start_keeps_the_numbers_of_clusters() -> None:
    rows_nd, labels_n = uneven_rows(common=2.0)
    found = cut_clusters(rows_nd, len(rows_nd), len(SIZES), seed=0)
    noise_nd = torch.randn(rows_nd.shape, generator=torch.Generator().manual_seed(0))
    moved_nd = normalize(rows_nd + 0.02 * noise_nd)
    after = cut_clusters(moved_nd, len(rows_nd), len(SIZES), seed=5, warm_cd=found.centers_cd)
    assert float((after.labels_b == found.labels_b).float().mean()) > 0.9
    assert balanced_accuracy(labels_n, after.labels_b) > 0.9


def test_rows_beyond_the_sample_go_to_their_nearest_centre() -> None:
    rows_nd, labels_n = uneven_rows()
    found = cut_clusters(rows_nd, len(rows_nd), len(SIZES), seed=0, most_rows=600)
    assert len(found.labels_b) == len(rows_nd)
    assert balanced_accuracy(labels_n, found.labels_b) > 0.9


@pytest.mark.parametrize("count", [2, 5, 12])
def test_few_rows(count: int) -> None:
    rows_nd = normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(1)))
    found = cut_clusters(rows_nd, count, 2, seed=0, restarts=2)
    assert found.labels_b.shape == (count,) and bool(found.centers_cd.isfinite().all())
    with pytest.raises(ValueError, match=f"num_clusters={count + 1} exceeds the {count} rows"):
        cut_clusters(rows_nd, count, count + 1, seed=0)


def test_equal_rows_give_finite_centres() -> None:
    rows_nd = normalize(torch.ones(40, 6))
    found = cut_clusters(rows_nd, 40, 3, seed=0, restarts=2)
    assert bool(found.centers_cd.isfinite().all())


def _on_workers() -> tuple[Tensor, Tensor]:
    rows_nd, _ = uneven_rows(common=1.0)
    local = share(len(rows_nd))
    found = cut_clusters(rows_nd[local], len(rows_nd), len(SIZES), seed=4, restarts=2)
    return found.centers_cd, found.labels_b


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_find_what_one_finds(workers: int) -> None:
    rows_nd, _ = uneven_rows(common=1.0)
    alone = cut_clusters(rows_nd, len(rows_nd), len(SIZES), seed=4, restarts=2)
    parts = run_workers(_on_workers, workers)
    for centers_cd, _ in parts:
        assert torch.equal(centers_cd, parts[0][0])
        torch.testing.assert_close(centers_cd, alone.centers_cd, rtol=1e-4, atol=1e-4)
    labels_n = torch.cat([labels_b for _, labels_b in parts])
    assert float((labels_n == alone.labels_b).float().mean()) > 0.995


@pytest.mark.parametrize("seed", range(5))
def test_of_divisions_that_are_as_good_that_of_kmeans_counts(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Four equal groups on a circle: two halves of it are as good as the two others.
    group_s = torch.arange(400) % 4
    angles_s = (group_s + 0.2 * torch.rand(400, generator=generator)) * torch.pi / 2
    rows_sd = torch.stack([angles_s.cos(), angles_s.sin()], 1)
    draws_sk = torch.randint(100, (400, 10), generator=generator)
    near_sk = 4 * draws_sk + group_s[:, None]
    halves = rows_sd.new_tensor([[1, 1], [-1, -1]]), rows_sd.new_tensor([[1, -1], [-1, 1]])
    for plain, other in (halves, halves[::-1]):
        starts_hcd = torch.stack([other, plain, other])
        found_cd = cut._learned(rows_sd, near_sk, starts_hcd, generator, warm=False)
        same = (rows_sd @ found_cd.T).argmax(1) == (rows_sd @ plain.T).argmax(1)
        assert same.all()
