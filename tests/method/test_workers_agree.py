"""Training steps on 1, 2 and 3 workers against one process on the joined batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from conr_ray.config import build
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.training_state import TrainingState
from conr_ray.method.batch_norm import synchronize_batch_norm
from conr_ray.method.collectives import share, world_size
from conr_ray.method.frameworks import byol
from conr_ray.method.frameworks.base import Step
from conr_ray.method.neighbors.bank import MemoryBank, Neighborhood
from conr_ray.method.networks import ConvNet
from conr_ray.method.stages.base import Stage
from conr_ray.method.stages.group import GroupStage
from conr_ray.method.stages.instance import InstanceStage
from tests.gloo_workers import run_workers
from tests.method.naive_reranking import unit_rows

CPU = torch.device("cpu")
# Not divisible by 3.
BATCH, STEPS = 16, 3
STAGES = ["instance", "contextual", "euclidean", "contextual 1/4", "euclidean 1/4"]
STAGES += ["contextual bank", "euclidean bank"]


@dataclass
class Case:
    """What the steps are made of, the same on every worker."""

    stage: str
    dtype: torch.dtype
    production: bool
    views: list[tuple[Tensor, Tensor]]
    labels: Tensor
    centers: Tensor
    classes: Tensor


def _cases() -> list[Case]:
    settings = [(stage, torch.float64, True) for stage in STAGES]
    settings += [(stage, torch.float32, True) for stage in STAGES[:2]]
    settings += [(stage, torch.float64, False) for stage in STAGES[:2]]
    return [
        Case(
            *setting,
            views=[(torch.rand(BATCH, 1, 8, 8), torch.rand(BATCH, 1, 8, 8)) for _ in range(STEPS)],
            labels=torch.randint(3, (BATCH,)),
            centers=unit_rows(torch.randn(3, 12)),
            classes=torch.randint(3, (STEPS * BATCH,)),
        )
        for setting in settings
    ]


def _neighborhood(stage: str) -> dict[str, Any]:
    return {
        "kind": stage.split()[0] if stage != "instance" else "contextual",
        "k1": 4,
        "k2": 2,
        "k": 5,
    }


def _production(case: Case) -> tuple[TrainingState, torch.nn.Module]:
    config = build(
        {
            "data": {"source": "digits"},
            "model": {
                "backbone": "convnet",
                "widths": [6, 8],
                "head_hidden_dim": 24,
                "embedding_dim": 12,
            },
            "optim": {"lr": 0.5, "batch_size": BATCH},
            "neighborhood": _neighborhood(case.stage),
            "bank": {"size": 24 if case.stage.endswith("bank") else 0},
        }
    )
    state = TrainingState.create(config, (1, 8, 8), Acceleration(CPU))
    state.framework.to(case.dtype)
    return state, state.trained_module()


def _by_hand(case: Case) -> tuple[TrainingState, torch.nn.Module]:
    torch.manual_seed(5)
    framework = byol.Framework(byol.Config(), ConvNet(1, (6, 8)), 24, 12).to(case.dtype)
    synchronize_batch_norm(framework, CPU)
    module: torch.nn.Module = framework
    if world_size() > 1:
        module = torch.nn.parallel.DistributedDataParallel(framework)
    bank = MemoryBank(0, 12, BATCH, Neighborhood(**_neighborhood(case.stage)))
    trained = [p for p in framework.parameters() if p.requires_grad]
    return TrainingState(framework, torch.optim.SGD(trained, lr=0.1), bank), module


def _stage(case: Case, bank: MemoryBank) -> Stage:
    if case.stage == "instance":
        return InstanceStage()
    return GroupStage(bank, 0.25 if case.stage.endswith("1/4") else 1.0, case.classes)


def _train(case: Case) -> dict[str, Tensor]:
    """Steps as the training loop makes them: losses, gradients and everything after them."""
    state, module = (_production if case.production else _by_hand)(case)
    framework, stage, local = state.framework, _stage(case, state.bank), share(BATCH)
    found: dict[str, Tensor] = {}
    for number, pair in enumerate(case.views):
        step = Step(
            number=number,
            num_steps=10,
            epoch=0,
            key=number,
            positions_b=torch.arange(BATCH)[local],
            # Half of the batch's samples have an older copy in the bank.
            sample_ids_n=torch.arange(BATCH) + number * BATCH // 2,
            fraction=0.7,
            pseudo_labels_n=case.labels,
            centers_cd=case.centers,
        )
        outputs = module([view[local].to(case.dtype) for view in pair], step)
        loss, _ = stage.loss(framework, outputs, step)
        state.optimizer.zero_grad()
        torch.autograd.backward(loss * world_size())
        found[f"loss {number}"] = loss.detach()
        for name, parameter in framework.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                found[f"gradient {number} {name}"] = parameter.grad.clone()
        state.optimizer.step()
        framework.after_step(outputs, step)
    return found | framework.state_dict()


def _train_all(cases: list[Case]) -> list[dict[str, Tensor]]:
    return [_train(case) for case in cases]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_have_the_loss_gradients_and_state_of_one_process(num_workers: int) -> None:
    cases = _cases()
    expected = _train_all(cases)
    by_worker = run_workers(_train_all, num_workers, cases)
    for number, (case, alone) in enumerate(zip(cases, expected, strict=True)):
        parts = [results[number] for results in by_worker]
        # Predictions and keys are float32 in both.
        limit = 1e-5 if case.dtype == torch.float64 else 3e-4
        largest = max(float(g.abs().max()) for name, g in alone.items() if "gradient" in name)
        assert all(part.keys() == alone.keys() for part in parts)
        for name, value in alone.items():
            values = [part[name] for part in parts]
            if name.startswith("loss"):
                total = torch.stack(values).sum()
                assert float(total) == pytest.approx(float(value), rel=1e-5)
                continue
            assert all(torch.equal(other, values[0]) for other in values), (case.stage, name)
            # Before a batch normalisation a bias has no gradient but rounding errors.
            scale = max(float(value.abs().max()), 0.01 * largest)
            error = float((values[0] - value).abs().max())
            assert error <= limit * scale, (case.stage, name, error, scale)


def test_group_loss_weight_scales_loss_and_gradient_of_one_process() -> None:
    torch.manual_seed(1)
    case = next(case for case in _cases() if case.stage == "contextual")
    whole = _train(case)
    case.stage = "contextual 1/4"
    quarter = _train(case)
    names = [name for name in whole if name.startswith(("loss 0", "gradient 0"))]
    assert len(names) > 10
    for name in names:
        torch.testing.assert_close(quarter[name] * 4, whole[name])
