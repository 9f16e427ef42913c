"""The order of an epoch that makes clusters more even."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conr_ray.engine.order import even_order

SIZES = (500, 120, 30, 4)
STEPS, BATCH = 10, 64


def labels() -> Tensor:
    labels_n = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    return labels_n[torch.randperm(len(labels_n), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("evenness", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("key", [1, 2])
def test_no_batch_has_a_sample_twice_and_all_have_the_same_parts(key: int, evenness: float) -> None:
    labels_n = labels()
    order = even_order(key, labels_n, STEPS, BATCH, evenness).view(STEPS, BATCH)
    assert order.dtype == torch.int64
    counts = torch.stack([torch.bincount(labels_n[rows], minlength=len(SIZES)) for rows in order])
    assert int((counts.amax(0) - counts.amin(0)).max()) <= 1
    assert all(len(rows.unique()) == BATCH for rows in order)


@pytest.mark.parametrize("evenness", [0.0, 0.5, 1.0])
def test_clusters_are_drawn_by_a_power_of_their_sizes_and_samples_alike(evenness: float) -> None:
    labels_n, steps = labels(), 100
    order = even_order(3, labels_n, steps, BATCH, evenness)
    drawn_c = torch.bincount(labels_n[order], minlength=len(SIZES)).double()
    shares_c = torch.tensor(SIZES).double() ** (1 - evenness)
    full = evenness == 1
    if full:
        # Four samples cannot be a quarter of 64 different ones.
        shares_c[3] = 0
        assert int(drawn_c[3]) == pytest.approx(4 * steps, abs=1)
    expected_c = shares_c / shares_c.sum() * (steps * BATCH - 4 * steps * full)
    torch.testing.assert_close(drawn_c[:3], expected_c[:3], rtol=0, atol=2)
    copies_n = torch.bincount(order, minlength=len(labels_n))
    for cluster in range(len(SIZES)):
        own = copies_n[labels_n == cluster]
        assert int(own.max() - own.min()) <= 1


def test_the_order_depends_on_the_key_alone() -> None:
    first, again, other = (even_order(key, labels(), STEPS, BATCH, 0.5) for key in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_clusters_that_are_all_full_give_each_sample_to_each_batch() -> None:
    labels_n = torch.tensor([0, 0, 1, 2])
    order = even_order(0, labels_n, 5, 4, 1.0).view(5, 4)
    assert all(sorted(rows.tolist()) == [0, 1, 2, 3] for rows in order)
