from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor

from conr_ray.method.collectives import (
    all_gather_rows,
    all_reduce_sum,
    broadcast_first,
    rank,
    share,
    world_size,
)
from tests.gloo_workers import run_workers

SIZES = [0, 1, 2, 3, 7, 12]


def _rows(n: int) -> Tensor:
    return torch.arange(2.0 * n).view(n, 2)


def _shares() -> list[list[int]]:
    own = []
    for n in SIZES:
        rows = list(range(n))
        parts = [rows[share(n, worker)] for worker in range(world_size())]
        assert list(chain(*parts)) == rows
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert rows[share(n)] == parts[rank()]
        own.append(parts[rank()])
    return own


def _exchange() -> dict[str, list[Tensor]]:
    sources = [_rows(n) for n in SIZES]
    wide = [rows[share(n)].requires_grad_() for rows, n in zip(sources, SIZES, strict=True)]
    flat = [torch.arange(n)[share(n)] for n in SIZES]
    local = torch.tensor([1, 10]) ** rank()
    results = {
        "rows": [all_gather_rows(part, n) for part, n in zip(wide, SIZES, strict=True)],
        "integers": [all_gather_rows(part, n) for part, n in zip(flat, SIZES, strict=True)],
        "sum": [all_reduce_sum(local)],
        "first": [broadcast_first(local + 5)],
        "local": [local],
    }
    assert not any(rows.requires_grad for rows in results["rows"])
    return results


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_shares_cover_all_rows_in_order(num_workers: int) -> None:
    by_worker = run_workers(_shares, num_workers)
    for number, n in enumerate(SIZES):
        assert list(chain(*(own[number] for own in by_worker))) == list(range(n))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_exchanges_give_every_worker_the_same_and_leave_its_own(num_workers: int) -> None:
    for number, found in enumerate(run_workers(_exchange, num_workers)):
        for n, rows, integers in zip(SIZES, found["rows"], found["integers"], strict=True):
            assert torch.equal(rows, _rows(n))
            assert torch.equal(integers, torch.arange(n))
        powers = [10**worker for worker in range(num_workers)]
        assert found["sum"][0].tolist() == [num_workers, sum(powers)]
        assert found["first"][0].tolist() == [6, 6]
        assert found["local"][0].tolist() == [1, 10**number]


def test_without_a_process_group_there_is_one_worker() -> None:
    assert (world_size(), rank(), share(7)) == (1, 0, slice(0, 7))
    rows = _rows(3).requires_grad_()
    assert torch.equal(all_gather_rows(rows, 3), rows)
    assert not all_gather_rows(rows, 3).requires_grad
    local = torch.ones(2)
    for result in (all_reduce_sum(local), broadcast_first(local)):
        assert torch.equal(result, local)
        assert result.data_ptr() != local.data_ptr()
