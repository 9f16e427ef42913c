"""Steps hardly wait for the device: their operations need no values on the host.

Counted on the second device of the tests, which also refuses operations on tensors of two devices.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.training_state import TrainingState
from conr_ray.method.clustering import lloyd
from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.method.frameworks import framework_names
from conr_ray.method.frameworks.base import Step
from conr_ray.method.neighbors import neighbor_lists
from conr_ray.method.neighbors.bank import MemoryBank, Neighborhood
from conr_ray.method.stages.base import Stage
from conr_ray.method.stages.instance import InstanceStage
from tests.method.naive_reranking import unit_rows
from tests.second_device import device_waits, second_device
from tests.tiny_runs import framework_config, group_stage_of, train_step

BATCH, CLUSTERS = 24, 5


@pytest.mark.parametrize(
    ("stage_name", "bank_size", "most"),
    [("instance", 0, 0), ("group", 0, 0), ("group", 40, 1), ("group", 1200, 2)],
)
@pytest.mark.parametrize("name", framework_names())
def test_a_training_step_hardly_waits(
    name: str, stage_name: str, bank_size: int, most: int
) -> None:
    with second_device() as device:
        config = framework_config(
            name, bank__size=bank_size, optim__batch_size=BATCH, neighborhood__k=6
        )
        state = TrainingState.create(config, (1, 8, 8), Acceleration(device))
        classes = torch.randint(CLUSTERS, (300,), device=device)
        stage: Stage = InstanceStage()
        if stage_name == "group":
            stage = group_stage_of(config, state, classes)
        views = [torch.rand(BATCH, 1, 8, 8, device=device) for _ in range(2)]
        centers = unit_rows(torch.randn(CLUSTERS, 16, device=device))
        centers = centers[:, : state.framework.embedding_encoder.embedding_dim]
        positions = torch.arange(BATCH, device=device)

        def train(ids: Tensor) -> Tensor:
            step = Step(3, 10, 60, 7, positions, ids, 0.7, classes[:BATCH], centers)
            return train_step(state, stage, views, step)

        for first in (0, 12, 24):
            ids = torch.arange(first, first + BATCH, device=device)
            with device_waits() as found:
                train(ids)
        assert found.total() <= most, found


def _steps(num_steps: int, batch_size: int) -> list[tuple[list[Tensor], Tensor]]:
    """Keys of both views around centres that move on, and ids of which some come again."""
    steps = []
    for _ in range(num_steps):
        places_nd = unit_rows(torch.randn(4, 8))[torch.arange(batch_size) % 4]
        ids = torch.randperm(8 * batch_size)[:batch_size]
        views = [places_nd + 0.1 * torch.randn(batch_size, 8) for _view in range(2)]
        # Equal rows are ties.
        views[0][: batch_size // 4] = views[0][0]
        steps.append(([unit_rows(view) for view in views], ids))
    return steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "k1", "k2"), [("contextual", 5, 2), ("contextual", 4, 1), ("euclidean", 1, 1)]
)
@pytest.mark.parametrize(
    ("size", "most"),
    [(1, 1), (30, 1), (150, 1), (2000, 2), pytest.param(65536, 2, marks=pytest.mark.long)],
)
def test_a_step_with_a_bank_waits_twice_at_most_and_finds_what_a_cpu_finds(
    size: int, most: int, kind: str, k1: int, k2: int, dtype: torch.dtype
) -> None:
    near = Neighborhood(kind, k1, k2, 6)
    on_host = MemoryBank(size, 8, BATCH, near, dtype=dtype)
    with second_device() as device:
        bank = MemoryBank(size, 8, BATCH, near, dtype=dtype, device=device)
        for keys, ids in _steps(9 if size < 2000 else 3, BATCH):
            there = [view.to(device) for view in keys], ids.to(device)
            with device_waits() as waits:
                found = bank.find(*there)
            assert waits.total() <= most, waits
            for part, expected in zip(found, on_host.find(keys, ids), strict=True):
                assert torch.equal(part.numbers_bk.cpu(), expected.numbers_bk)
                assert torch.equal(part.sample_ids_bk.cpu(), expected.sample_ids_bk)
                assert torch.equal(part.mean_keys_bd.cpu(), expected.mean_keys_bd)
        states = bank.state_dict(), on_host.state_dict()
        for name, value in states[1].items():
            assert torch.equal(torch.as_tensor(states[0][name]).cpu(), torch.as_tensor(value)), name
    assert bank.num_searched_anew == on_host.num_searched_anew


def test_lists_made_anew_and_unsure_rows_need_no_further_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No room for ties among the candidates.
    monkeypatch.setattr(neighbor_lists, "_SLACK", 0)
    monkeypatch.setattr(neighbor_lists, "_EXACT_ROWS", 0)
    near, settled = Neighborhood("contextual", 2, 2, 4), 0
    offer_exactly = neighbor_lists._offer_exactly

    def counted(*args: object) -> None:
        nonlocal settled
        settled += 1
        offer_exactly(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(neighbor_lists, "_offer_exactly", counted)
    on_host = MemoryBank(90, 8, BATCH, near)
    with second_device() as device:
        bank = MemoryBank(90, 8, BATCH, near, device=device)
        for keys, ids in _steps(12, BATCH):
            there = [view.to(device) for view in keys], ids.to(device)
            with device_waits() as waits:
                found = bank.find(*there)
            assert waits.total() <= 1, waits
            for part, expected in zip(found, on_host.find(keys, ids), strict=True):
                assert torch.equal(part.numbers_bk.cpu(), expected.numbers_bk)
    assert bank.num_searched_anew == on_host.num_searched_anew > 0
    assert settled > 0


@pytest.mark.parametrize("warm", [False, True])
def test_kmeans_looks_once_in_ten_iterations(warm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sums, iterations = lloyd.cluster_sums, 0

    def counted(*args: Tensor) -> Tensor:
        nonlocal iterations
        iterations += 1
        return sums(*args)

    monkeypatch.setattr(lloyd, "cluster_sums", counted)
    # Two distinct rows among them leave clusters empty.
    rows = torch.cat([unit_rows(torch.randn(400, 6)), torch.eye(6)[:2].repeat(50, 1)])
    warm_cd = torch.eye(6)[[0, 0, 1, 1, 1, 2, 2]]
    with second_device() as device:
        there, warm_there = rows.to(device), warm_cd.to(device) if warm else None
        with device_waits() as found:
            spherical_kmeans(there, 500, 7, seed=0, restarts=3, start_rows=200, warm_cd=warm_there)
    assert iterations >= 30
    assert found.total() <= 2 + iterations / 10, found
