from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch

from conr_ray.method.frameworks import propos
from conr_ray.method.frameworks.base import Outputs, Step
from conr_ray.method.frameworks.propos import scattering_loss
from conr_ray.method.networks import Identity
from tests.frameworks.conformance import FrameworkConformance
from tests.method.naive_reranking import unit_rows


class TestPropos(FrameworkConformance):
    name = "propos"
    # From the first epoch on, and strong enough to be seen.
    settings: ClassVar[dict[str, Any]] = {
        "scattering_start": 0,
        "scattering_weight": 1.0,
        "noise": 0.1,
    }


@pytest.mark.parametrize("absent", [None, 1])
def test_scattering_is_the_formula_over_present_clusters(absent: int | None) -> None:
    online, target = unit_rows(torch.randn(4, 6)), unit_rows(torch.randn(4, 6))
    present = [c for c in range(4) if c != absent]
    total = 0.0
    for own in present:
        match = math.exp(float(online[own] @ target[own]) / 0.5)
        others = sum(math.exp(float(online[own] @ online[c]) / 0.5) for c in present if c != own)
        total -= math.log(match / (match + others))
    mask = torch.tensor([c in present for c in range(4)])
    found = scattering_loss(online, target, mask, 0.5)
    assert float(found) == pytest.approx(total / len(present), rel=1e-5)


def test_prototypes_are_directions_of_the_sums_of_a_cluster() -> None:
    framework = propos.Framework(propos.Config(scattering_start=2), Identity(6), 8, 4)
    rows = [unit_rows(torch.randn(8, 4)).requires_grad_() for _ in range(2)]
    keys = [unit_rows(torch.randn(8, 4)) for _ in range(2)]
    labels, ids = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0]), torch.arange(8)
    outputs = Outputs((rows[0], rows[1]), (keys[0], keys[1]), (rows[0], rows[1]))
    early, step = (Step(0, 9, e, 0, ids, ids, 1.0, labels, torch.zeros(4, 4)) for e in (1, 2))
    assert framework.scatter(outputs, early) is None and not framework.needs_clusters(1)
    found = framework.scatter(outputs, step)
    assert found is not None and framework.needs_clusters(2)

    def prototypes(rows: torch.Tensor) -> torch.Tensor:
        sums = [rows[labels == c].sum(0) for c in range(3)]
        return unit_rows(torch.stack(sums))

    everyone = torch.ones(3).bool()
    parts = [
        scattering_loss(prototypes(rows[i]), prototypes(keys[1 - i]), everyone, 0.5)
        for i in range(2)
    ]
    expected = 0.1 * torch.stack(parts).mean()
    torch.testing.assert_close(found, expected)
    for wanted, got in zip(
        torch.autograd.grad(expected, rows), torch.autograd.grad(found, rows), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_positives_are_sampled_by_key_and_position() -> None:
    framework = propos.Framework(propos.Config(noise=0.5), Identity(6), 8, 4).eval()
    views, ids = [torch.randn(6, 6) for _ in range(2)], torch.arange(6)

    def queries(key: int, rows: slice) -> torch.Tensor:
        step = Step(0, 9, 0, key, ids[rows], ids)
        return framework([view[rows] for view in views], step).queries[0]

    whole = queries(1, slice(0, 6))
    torch.testing.assert_close(queries(1, slice(2, 5)), whole[2:5])
    assert not torch.allclose(queries(2, slice(0, 6)), whole)
