"""What runs on the second device of the tests, and that it is told from the CPU.

Training, evaluation, snapshot and checkpoints keep to one device, whichever it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conr_ray.data.store import open_data
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.method.frameworks import framework_names
from conr_ray.method.neighbors import contexts, neighbor_lists
from conr_ray.method.neighbors.reranking import contextual_neighbors, euclidean_neighbors
from tests.second_device import device_waits, second_device
from tests.tiny_runs import NEEDS, tiny_config, without_times


@pytest.mark.parametrize(
    ("use", "waits"),
    [
        (lambda rows: float(rows.sum()), ["_local_scalar_dense"]),
        (lambda rows: rows.tolist(), ["tolist"]),
        (lambda rows: rows.cpu(), ["copy"]),
        (lambda rows: bool((rows > 0).any()), ["_local_scalar_dense"]),
        (lambda rows: rows[rows > 0], ["index by a mask"]),
        (lambda rows: rows[torch.tensor([0, 1])], ["index from the CPU"]),
        (lambda rows: rows.nonzero(), ["nonzero"]),
        (lambda rows: rows.unique(), ["_unique2"]),
        (lambda rows: rows.new_tensor([1.0, 2.0]), ["copy"]),
        (lambda rows: torch.arange(2, device=rows.device).repeat_interleave(2), []),
        (lambda rows: rows[torch.zeros(2, dtype=torch.int64, device=rows.device)], []),
        (lambda rows: rows.masked_fill_(rows > 1, 0.0) + torch.tensor(2.0), []),
        (lambda rows: rows[1:].fill_(7.0), []),
    ],
)
def test_what_waits_is_counted(use: Callable[[Tensor], object], waits: list[str]) -> None:
    with second_device() as device:
        rows = torch.rand(3, 2, device=device)
        with device_waits() as found:
            use(rows)
    assert [name.partition(" at ")[0] for name in found.elements()] == waits


@pytest.mark.parametrize(
    "meet",
    [
        lambda rows: rows + torch.ones(3, 2),
        lambda rows: torch.ones(2, 3) @ rows,
        lambda rows: torch.cat([rows, torch.ones(1, 2)]),
        lambda rows: torch.ones(3)[rows[:, 0].long()],
    ],
)
def test_tensors_of_two_devices_do_not_meet(meet: Callable[[Tensor], object]) -> None:
    with second_device() as device:
        rows = torch.zeros(3, 2, device=device)
        with pytest.raises(RuntimeError, match="tensors of two devices"):
            meet(rows)
        with pytest.raises(TypeError, match="copy it to the CPU first"):
            rows.numpy()


def test_gradients_and_views_are_those_of_the_cpu() -> None:
    rows = torch.rand(4, 3)
    weights = torch.rand(3, 2, requires_grad=True)
    (rows @ weights).square()[1:].sum().backward()
    with second_device() as device:
        there = weights.detach().to(device).requires_grad_()
        (rows.to(device) @ there).square()[1:].sum().backward()
        assert there.grad is not None and there.grad.device == device
        assert weights.grad is not None and torch.equal(there.grad.cpu(), weights.grad)


def _run(folder: Path, device: torch.device, **changes: Any) -> list[dict[str, Any]]:
    config = tiny_config(**changes)
    data = open_data(config.data)
    return without_times(train(config, data, RunDirectory(folder), Observers(), device))


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in framework_names()), ("byol", {"bank__size": 0})],
)
def test_a_run_keeps_to_its_device_and_goes_on_there(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"model__framework": name, "data__limit": 200, **changes, **NEEDS.get(name, {})}
    changes |= {"schedule__group_start": 1, "schedule__epochs": 2}
    expected = _run(tmp_path / "cpu", torch.device("cpu"), **changes)
    with second_device() as device:
        _run(tmp_path / "there", device, **changes)
        folder = RunDirectory(tmp_path / "there")
        folder.delete_checkpoint(folder.checkpoint_epochs()[-1])
        found = _run(tmp_path / "there", device, **changes)
    assert len(found) == len(expected) == 2
    for row, wanted in zip(found, expected, strict=True):
        assert row.keys() == wanted.keys()
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
        assert row["acc"] == pytest.approx(wanted["acc"], abs=0.05)
    snapshot = Snapshot.read(folder)
    assert snapshot is not None and snapshot.epoch == 2


@pytest.mark.parametrize("spread", [1.0, 0.02])
@pytest.mark.parametrize("rough", [False, True])
def test_neighbors_of_a_data_set_are_those_of_the_cpu(
    rough: bool, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rough:
        monkeypatch.setattr(neighbor_lists, "_EXACT_ROWS", 0)
        monkeypatch.setattr(contexts, "_DENSE_ROWS", 0)
        monkeypatch.setattr(neighbor_lists, "_EXACT_PAIRS", 1000)
    rows = torch.randn(6, 12)[torch.arange(300) % 6] + spread * torch.randn(300, 12)
    with second_device() as device:
        for k1, k2 in ((5, 2), (5, 1)):
            found = contextual_neighbors(rows.to(device), k1=k1, k2=k2, k=7)
            for tensor, wanted in zip(
                found, contextual_neighbors(rows, k1=k1, k2=k2, k=7), strict=True
            ):
                assert torch.equal(tensor.cpu(), wanted)
        nearest = euclidean_neighbors(rows.to(device), k=7)
        for tensor, wanted in zip(nearest, euclidean_neighbors(rows, k=7), strict=True):
            assert torch.equal(tensor.cpu(), wanted)
