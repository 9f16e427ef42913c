from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method import compiled
from conr_ray.method.collectives import share
from conr_ray.method.neighbors import neighbor_lists
from conr_ray.method.neighbors.cells import lists_by_cells
from conr_ray.method.neighbors.neighbor_lists import NeighborLists, nearest_lists
from conr_ray.method.neighbors.rank_keys import EMPTY, numbers_of
from conr_ray.method.neighbors.reranking import contextual_neighbors, euclidean_neighbors
from tests.gloo_workers import run_workers

WIDTH = 12


def _blobs(count: int, width: int = 16) -> Tensor:
    """Groups of some 20 rows in 8 larger ones."""
    generator = torch.Generator().manual_seed(0)

    def noise(rows: int) -> Tensor:
        return torch.randn(rows, width, generator=generator)

    groups = noise(8)[torch.arange(count // 20) % 8] + 0.5 * noise(count // 20)
    rows = groups[torch.randint(len(groups), (count,), generator=generator)]
    return normalize(rows + 0.3 * noise(count))


def searched_lists(rows: Tensor, width: int, probes: int) -> NeighborLists:
    return lists_by_cells(rows, width, probes)[0]


@pytest.fixture(params=["compiled", "dense"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "compiled":
        # As on a GPU: pieces of at most so many rows are compared exactly, larger ones are not.
        monkeypatch.setattr(compiled, "serves", lambda _: False)
        monkeypatch.setattr(neighbor_lists, "_EXACT_ROWS", 20)
    return str(request.param)


@pytest.mark.usefixtures("route")
def test_all_cells_are_an_exact_search() -> None:
    rows = _blobs(500)
    found, exact = searched_lists(rows, WIDTH, 10_000), nearest_lists(rows, WIDTH)
    assert torch.equal(found.keys_as, exact.keys_as)


@pytest.mark.usefixtures("route")
def test_few_cells_hold_nearly_all_neighbours_and_more_cells_hold_more() -> None:
    rows = _blobs(3000)
    exact = nearest_lists(rows, WIDTH).keys_as
    recalls = [
        torch.isin(searched_lists(rows, WIDTH, probes).keys_as, exact).float().mean()
        for probes in (1, 4, 16)
    ]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.97
    assert recalls[1] > 0.97
    assert recalls[2] > 0.999


@pytest.mark.usefixtures("route")
def test_what_is_found_is_the_best_of_what_was_compared() -> None:
    rows = _blobs(2000)
    lists = searched_lists(rows, WIDTH, 2).keys_as
    numbers = numbers_of(lists)
    assert (lists != EMPTY).all()
    assert (lists[:, 1:] < lists[:, :-1]).all(), "best first, none twice"
    assert (numbers != torch.arange(2000)[:, None]).all()
    # Of two rows, both were offered or neither: who is better than the other's last is in its list.
    holders = torch.arange(2000)[:, None].expand_as(numbers)
    similarities = (rows[holders] * rows[numbers]).sum(-1)
    last = (rows * rows[numbers[:, -1]]).sum(-1)
    surely = similarities > last[numbers] + 1e-5
    mutual = (numbers[numbers] == holders[..., None]).any(-1)
    assert surely.any()
    assert mutual[surely].all()


def test_cells_of_few_rows_are_searched_together() -> None:
    rows = torch.cat([_blobs(100), normalize(torch.randn(3, 16))])
    assert (searched_lists(rows, 40, 1).keys_as != EMPTY).all()
    assert (searched_lists(rows, 102, 1).keys_as != EMPTY).all()


def test_equal_rows_are_each_others_neighbours() -> None:
    rows = normalize(torch.ones(300, 4))
    numbers = numbers_of(searched_lists(rows, 5, 3).keys_as)
    assert numbers[0].tolist() == [1, 2, 3, 4, 5]
    assert numbers[9].tolist() == [0, 1, 2, 3, 4]


def _searched(count: int) -> list[tuple[Tensor, Tensor]]:
    local, rows = share(count), _blobs(count)
    return [
        contextual_neighbors(rows[local], k1=10, k2=3, k=9, num_rows=count, probes=4),
        euclidean_neighbors(rows[local], k=9, num_rows=count, probes=4),
    ]


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_find_what_one_finds(workers: int) -> None:
    count, rows = 1001, _blobs(1001)
    parts = run_workers(_searched, workers, count)
    ones = [
        contextual_neighbors(rows, k1=10, k2=3, k=9, probes=4),
        euclidean_neighbors(rows, k=9, probes=4),
    ]
    for place, (similarities, numbers) in enumerate(ones):
        assert torch.equal(torch.cat([part[place][1] for part in parts]), numbers)
        assert torch.equal(torch.cat([part[place][0] for part in parts]), similarities)


def test_probes_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="probes=0 must be at least 1"):
        euclidean_neighbors(_blobs(100), k=3, probes=0)
