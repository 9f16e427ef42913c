from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch

from conr_ray.method.frameworks import moco
from conr_ray.method.frameworks.base import Outputs, Step
from conr_ray.method.networks import Identity
from tests.frameworks.conformance import FrameworkConformance
from tests.method.naive_reranking import unit_rows


class TestMoco(FrameworkConformance):
    name = "moco"
    # No multiple of the batch.
    settings: ClassVar[dict[str, Any]] = {"queue_size": 70}


def _framework(queue_size: int) -> moco.Framework:
    return moco.Framework(moco.Config(queue_size=queue_size, momentum=0.5), Identity(6), 8, 4)


def _step(size: int) -> Step:
    ids = torch.arange(size)
    return Step(0, 10, 0, 0, ids, ids)


@pytest.mark.parametrize("kept", [None, [True, False, True]])
def test_the_loss_is_the_cross_entropy_of_the_key_among_the_queue(kept: list[bool] | None) -> None:
    framework = _framework(5)
    queries, keys = unit_rows(torch.randn(3, 4)), unit_rows(torch.randn(3, 4))
    mask = None if kept is None else torch.tensor(kept)
    found = framework.pull(queries, keys, _step(3), mask)
    total = 0.0
    for row, (query, key) in enumerate(zip(queries, keys, strict=True)):
        own = math.exp(float(query @ key) / 0.2)
        others = sum(math.exp(float(query @ other) / 0.2) for other in framework.queue_qd)
        if kept is None or kept[row]:
            total -= math.log(own / (own + others))
    assert float(found) == pytest.approx(total / 3, rel=1e-5)


def test_the_queue_holds_the_newest_keys_of_the_second_view() -> None:
    framework, seen = _framework(5), []
    for _ in range(4):
        keys = unit_rows(torch.randn(3, 4)), unit_rows(torch.randn(3, 4))
        framework.after_step(Outputs(keys, keys), _step(3))
        seen += keys[1].tolist()
    newest = sorted(map(tuple, torch.tensor(seen[-5:]).tolist()))
    assert sorted(map(tuple, framework.queue_qd.tolist())) == newest


def test_a_batch_larger_than_the_queue_fills_it() -> None:
    framework, keys = _framework(5), unit_rows(torch.randn(9, 4))
    framework.after_step(Outputs((keys, keys), (keys, keys)), _step(9))
    assert sorted(framework.queue_qd.tolist()) == sorted(keys[-5:].tolist())
