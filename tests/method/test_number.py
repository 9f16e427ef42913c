from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from conr_ray.method.clustering.merge_tree import MergeTree, links_between
from conr_ray.method.clustering.number import NumberChoice, choose_number
from conr_ray.method.collectives import share
from tests.gloo_workers import run_workers
from tests.method.naive_reranking import unit_rows


def _blobs(sizes: list[int], spread: float = 0.08) -> Tensor:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    generator = torch.Generator().manual_seed(1)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    noise = torch.randn(len(labels), len(sizes) + 6, generator=generator)
    return unit_rows(torch.eye(len(sizes) + 6)[labels] + spread * noise)


def _chosen(rows: Tensor, least: int = 2, most: int = 30) -> NumberChoice:
    return choose_number(rows, len(rows), least, most, seed=0)


def test_links_are_counted_both_ways() -> None:
    random = np.random.default_rng(0)
    small, near, weights = (
        np.array([0, 2, 1, 1, 0, 2, 2]),
        random.integers(0, 7, (7, 3)),
        random.random((7, 3)),
    )
    expected = np.zeros((3, 3))
    for row in range(7):
        for place, other in enumerate(near[row]):
            expected[small[row], small[other]] += weights[row, place] / 2
            expected[small[other], small[row]] += weights[row, place] / 2
    np.testing.assert_allclose(links_between(small, near, weights), expected)


def test_the_tree_merges_what_is_linked_and_its_cuts_are_nested() -> None:
    links = np.full((6, 6), 0.1) + np.kron(np.eye(3), np.full((2, 2), 5.0))
    tree = MergeTree.of(links, 6)
    three = tree.clusters[3]
    assert three[0] == three[1] != three[2] == three[3] != three[4] == three[5]
    for fine, coarse in ((6, 4), (4, 3), (3, 2), (2, 1)):
        pairs = set(zip(tree.clusters[fine], tree.clusters[coarse], strict=True))
        assert len(pairs) == fine
    together = [links[np.ix_(three == one, three == one)].sum() for one in range(3)]
    assert tree.within[3] == pytest.approx(sum(together) / links.sum())
    assert tree.expected[3] == pytest.approx(3 * (1 / 3) ** 2)
    grid = np.array([0.01, 1.0, 100.0])
    assert tree.resolutions(grid).tolist() == [1, 3, 6]


def test_more_than_thirty_are_found_in_a_range_that_holds_them() -> None:
    assert _chosen(_blobs([40] * 45), 5, 60).num_clusters == 45


@pytest.mark.parametrize("sizes", [[120] * 4, [60] * 12, [300, 150, 80, 60, 40]])
def test_as_many_clusters_as_were_made_are_found(sizes: list[int]) -> None:
    choice = _chosen(_blobs(sizes))
    assert choice.num_clusters == len(sizes)
    assert sum(choice.shares.values()) == pytest.approx(1)
    assert choice.why.startswith(f"{len(sizes)} clusters last over the widest range")


def test_on_digits_the_number_is_ten_give_or_take_one() -> None:
    rows = torch.from_numpy(load_digits().data).float()
    choice = _chosen(unit_rows(rows))
    assert abs(choice.num_clusters - 10) <= 1
    assert _chosen(unit_rows(rows)) == choice


def test_a_range_without_the_number_gives_the_nearest_and_says_so() -> None:
    rows = _blobs([200] * 4, spread=0.02)
    choice = _chosen(rows, 8, 9)
    assert choice.num_clusters in (8, 9)
    assert choice.outside in (4, None)
    assert choice == _chosen(rows, 8, 9)
    alone = NumberChoice(8, {4: 1.0, 8: 0.0}, outside=4)
    assert alone.why == (
        "8 clusters: none in the range stands out, and this is the nearest to 4, which does"
    )


def test_few_rows_have_a_number_and_rows_that_are_one_have_none() -> None:
    assert 2 <= _chosen(_blobs([6] * 3), 2, 9).num_clusters <= 9
    assert _chosen(unit_rows(torch.eye(2)), 2, 2).num_clusters == 2
    with pytest.raises(ValueError, match="all rows are equal"):
        _chosen(unit_rows(torch.ones(40, 3)))
    for least, most in ((1, 4), (5, 4), (2, 41)):
        with pytest.raises(ValueError, match="clusters of 40 rows"):
            _chosen(_blobs([20, 20]), least, most)


def _on_a_worker(rows: Tensor) -> int:
    return choose_number(rows[share(len(rows))], len(rows), 2, 30, seed=0).num_clusters


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_choose_as_one_process(workers: int) -> None:
    rows = _blobs([50] * 7)
    assert run_workers(_on_a_worker, workers, rows) == [7] * workers
