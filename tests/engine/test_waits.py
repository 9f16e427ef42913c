"""Steps do not wait for the device: none of their operations needs a value on the host.

Counted on a CPU with the routes of other devices: operations whose result, or its shape, the host
reads, and tensors made of Python numbers, which are copied to the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from conr_ray.engine.training_state import TrainingState
from conr_ray.method import compiled
from conr_ray.method.clustering import lloyd
from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.method.frameworks import framework_names
from conr_ray.method.frameworks.base import Step
from conr_ray.method.neighbors import rough_products
from conr_ray.method.stages.base import Stage
from conr_ray.method.stages.group import GroupStage
from conr_ray.method.stages.instance import InstanceStage
from tests.method.naive_reranking import unit_rows
from tests.tiny_runs import tiny_config

BATCH, CLUSTERS = 24, 5
WAITING = {
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "lift_fresh"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "isin", "bincount", "histc"),
}


class Waits(TorchDispatchMode):
    """Counts the operations that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in WAITING or self._looks_for_true(name, args):
            self.found[name] += 1
        if name == "repeat_interleave" and not (kwargs or {}).get("output_size"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _looks_for_true(name: str, args: tuple[Any, ...]) -> bool:
        """Indexing by a mask reads how many entries are true."""
        if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return False
        return any(index is not None and index.dtype == torch.bool for index in args[1])


def waits(step: Callable[[], object]) -> dict[str, int]:
    with Waits() as mode:
        step()
    return dict(mode.found)


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (lambda: float(torch.ones(3).sum()), {"_local_scalar_dense": 1}),
        (lambda: torch.ones(3)[torch.ones(3) > 0], {"index": 1}),
        (lambda: torch.ones(3).nonzero(), {"nonzero": 1}),
        (lambda: torch.ones(3).new_tensor([1.0, 2.0]), {"lift_fresh": 1}),
        (lambda: torch.ones(3)[torch.zeros(2, dtype=torch.int64)], {}),
    ],
)
def test_what_waits_is_counted(step: Callable[[], object], found: dict[str, int]) -> None:
    assert waits(step) == found


@pytest.mark.parametrize("stage_name", ["instance", "group"])
@pytest.mark.parametrize("name", framework_names())
def test_a_step_waits_for_nothing(
    name: str, stage_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "serves", lambda device: False)
    monkeypatch.setattr(rough_products, "_bfloat16_is_faster", lambda: False)
    config = tiny_config(
        model__framework=name, bank__size=0, optim__batch_size=BATCH, neighborhood__k=6
    )
    state = TrainingState.create(config, (1, 8, 8), torch.device("cpu"))
    classes = torch.randint(CLUSTERS, (300,))
    stage: Stage = InstanceStage()
    if stage_name == "group":
        stage = GroupStage(state.bank, 1.0, classes)
    views = [torch.rand(BATCH, 1, 8, 8) for _ in range(2)]
    ids = torch.arange(BATCH)
    centers = unit_rows(torch.randn(CLUSTERS, 16))
    step = Step(3, 10, 60, 7, ids, ids, 0.7, classes[:BATCH], centers)

    def train() -> Tensor:
        outputs = state.framework(views, step)
        loss, _ = stage.loss(state.framework, outputs, step)
        state.optimizer.zero_grad()
        torch.autograd.backward(loss)
        state.optimizer.step()
        state.framework.after_step(outputs, step)
        return loss

    train()
    assert waits(train) == {}


@pytest.mark.parametrize("warm", [False, True])
def test_kmeans_looks_once_in_ten_iterations(warm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "serves", lambda device: False)
    sums, iterations = lloyd.cluster_sums, 0

    def counted(*args: Tensor) -> Tensor:
        nonlocal iterations
        iterations += 1
        return sums(*args)

    monkeypatch.setattr(lloyd, "cluster_sums", counted)
    # Two distinct rows among them leave clusters empty.
    rows = torch.cat([unit_rows(torch.randn(400, 6)), torch.eye(6)[:2].repeat(50, 1)])
    warm_cd = torch.eye(6)[[0, 0, 1, 1, 1, 2, 2]] if warm else None

    def cluster() -> None:
        spherical_kmeans(rows, 500, 7, seed=0, restarts=3, start_rows=200, warm_cd=warm_cd)

    found = waits(cluster)
    assert set(found) == {"equal"}
    assert iterations >= 30
    assert found["equal"] <= iterations / 10
