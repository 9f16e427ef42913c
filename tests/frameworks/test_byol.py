from __future__ import annotations

import torch

from conr_ray.method.frameworks import byol
from conr_ray.method.frameworks.base import Step
from conr_ray.method.networks import ConvNet
from conr_ray.method.stages.instance import InstanceStage
from tests.frameworks.conformance import FrameworkConformance


class TestByol(FrameworkConformance):
    name = "byol"


def test_gradient_reaches_all_of_online_and_nothing_of_target() -> None:
    framework = byol.Framework(byol.Config(), ConvNet(1, (4, 6)), 16, 5)
    ids = torch.arange(9)
    step = Step(0, 10, 0, 0, ids, ids)
    outputs = framework([torch.randn(9, 1, 8, 8) for _ in range(2)], step)
    assert not any(keys.requires_grad for keys in outputs.keys)
    for rows in (*outputs.queries, *outputs.keys):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(9))
    loss, _ = InstanceStage().loss(framework, outputs, step)
    torch.autograd.backward(loss)
    assert all(p.grad is None for p in framework.target.parameters())
    assert all(p.grad is not None and p.grad.any() for p in framework.encoder.backbone.parameters())
    assert framework.predictor[3].weight.grad.any()


def test_rows_are_float32_under_autocast() -> None:
    framework = byol.Framework(byol.Config(), ConvNet(1, (4, 6)), 16, 5)
    ids = torch.arange(9)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = framework([torch.randn(9, 1, 8, 8) for _ in range(2)], Step(0, 1, 0, 0, ids, ids))
    assert {rows.dtype for rows in (*outputs.queries, *outputs.keys)} == {torch.float32}
