"""What holds for every kind of inputs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from conr_ray.config import ViewsConfig
from conr_ray.data.inputs import Images, Inputs, Vectors, inputs_from_state
from conr_ray.data.views import Views

CPU = torch.device("cpu")


def _images() -> Inputs:
    rows = np.random.default_rng(0).integers(0, 256, (12, 3, 10, 10), dtype=np.uint8)
    views = Views(ViewsConfig(size=8, noise=0.1), [0.4] * 3, [0.2] * 3)
    return Images(rows, views, CPU, on_device=False)


def _vectors() -> Inputs:
    rows = np.random.default_rng(0).normal(3, 2, (12, 6)).astype(np.float32)
    views = ViewsConfig(noise=0.3, dropout=0.4, group_stage_strength=0.5)
    return Vectors(rows, views, [3.0] * 6, 2.0, CPU, on_device=False)


@pytest.fixture(params=[_images, _vectors], ids=["images", "vectors"])
def inputs(request: Any) -> Inputs:
    made: Inputs = request.param()
    return made


def test_views_depend_on_key_and_position_alone(inputs: Inputs) -> None:
    ids = torch.arange(12)
    whole = inputs.random(inputs.take(ids), 5, ids, mild=False)
    part = inputs.random(inputs.take(ids[3:7]), 5, ids[3:7], mild=False)
    torch.testing.assert_close(part, whole[3:7])
    for other in (
        inputs.random(inputs.take(ids), 6, ids, mild=False),
        inputs.random(inputs.take(ids), 5, ids + 1, mild=False),
        inputs.random(inputs.take(ids), 5, ids, mild=True),
        inputs.plain(inputs.take(ids)),
    ):
        assert not torch.allclose(other, whole)
    assert whole.dtype == torch.float32 and whole.isfinite().all()


def test_perturbed_is_near_plain_and_keyed(inputs: Inputs) -> None:
    ids = torch.arange(12)
    plain = inputs.plain(inputs.take(ids))
    first, again, other = (inputs.perturbed(inputs.take(ids), key, ids) for key in (1, 1, 2))
    assert first.shape == plain.shape
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_the_state_makes_new_samples_what_the_run_saw(inputs: Inputs) -> None:
    state = json.loads(json.dumps(inputs.state_dict()))
    assert (state["kind"], tuple(state["shape"])) == (inputs.kind, inputs.shape)
    ids = torch.tensor([3, 1])
    batch = inputs.take(ids)
    again = inputs_from_state(state, batch.numpy(), CPU)
    assert torch.equal(again.plain(again.take(torch.arange(2))), inputs.plain(batch))


def test_vectors_keep_their_directions_and_dropped_features_are_at_the_mean() -> None:
    inputs, ids = _vectors(), torch.arange(12)
    batch = inputs.take(ids)
    torch.testing.assert_close(inputs.plain(batch), (batch - 3) / 2)
    rows = np.ones((2000, 6), np.float32)
    views = ViewsConfig(dropout=0.4)
    many = Vectors(rows, views, [0.0] * 6, 1.0, CPU, on_device=False)
    ids = torch.arange(2000)
    view = many.random(many.take(ids), 1, ids, mild=False)
    assert view.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert float((view == 0).float().mean()) == pytest.approx(0.4, abs=0.02)
