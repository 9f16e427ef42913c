from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conr_ray.method.frameworks import byol
from conr_ray.method.frameworks.base import Outputs, Step, alignment_loss
from conr_ray.method.neighbors.bank import MemoryBank, Neighborhood
from conr_ray.method.networks import Identity
from conr_ray.method.stages.group import GroupStage
from tests.method.naive_reranking import naive_contextual, naive_nearest, unit_rows


def _rows(n: int, d: int = 5) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, dtype=torch.float64))


def _naive_instance_loss(predictions: Tensor, keys: Tensor) -> Tensor:
    total = torch.zeros((), dtype=predictions.dtype)
    for prediction, key in zip(predictions, keys, strict=True):
        total = total - 2 * torch.cosine_similarity(prediction, key, dim=0)
    return total / len(predictions)


def _naive_group_loss(
    predictions: Tensor, pool: Tensor, neighbors: list[list[int]], kept: list[bool]
) -> Tensor:
    terms = []
    for prediction, near, keep in zip(predictions, neighbors, kept, strict=True):
        for j in near:
            cosine = (prediction * pool[j]).sum()
            terms.append(-2 * cosine if keep else 0 * cosine)
    return torch.stack(terms).mean()


def _same_value_and_gradient(found: Tensor, expected: Tensor, leaf: Tensor) -> None:
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, leaf)
    (expected_gradient,) = torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(gradient, expected_gradient)


def test_instance_loss_is_the_mean_of_the_formula_in_value_and_gradient() -> None:
    raw = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    predictions, keys = torch.nn.functional.normalize(raw), _rows(7)
    found = alignment_loss(predictions, keys, 7)
    _same_value_and_gradient(found, _naive_instance_loss(raw, keys), raw)


def test_instance_loss_is_minus_two_where_prediction_and_key_agree() -> None:
    keys = _rows(4)
    assert float(alignment_loss(keys, keys, 4)) == pytest.approx(-2)
    assert float(alignment_loss(-keys, keys, 4)) == pytest.approx(2)


def test_parts_of_the_losses_sum_to_the_whole() -> None:
    predictions, keys = _rows(7), _rows(7)
    mean_keys, kept = keys[torch.randint(7, (7, 3))].mean(1), torch.rand(7) < 0.5
    parts = [slice(0, 2), slice(2, 4), slice(4, 7)]
    torch.testing.assert_close(
        sum((alignment_loss(predictions[p], keys[p], 7) for p in parts), torch.tensor(0.0)),
        alignment_loss(predictions, keys, 7),
        check_dtype=False,
    )
    torch.testing.assert_close(
        sum(
            (alignment_loss(predictions[p], mean_keys[p], 7, kept[p]) for p in parts),
            torch.tensor(0.0),
        ),
        alignment_loss(predictions, mean_keys, 7, kept),
        check_dtype=False,
    )


@pytest.mark.parametrize(
    "kept",
    [[True] * 6, [False] * 6, [True, False, True, True, False, False]],
    ids=["all", "none", "some"],
)
@pytest.mark.parametrize("repeated", [False, True])
def test_group_loss_is_the_mean_of_the_formula_in_value_and_gradient(
    kept: list[bool], repeated: bool
) -> None:
    predictions = _rows(6).requires_grad_()
    pool = _rows(9)
    neighbors = torch.stack([torch.randperm(9)[:4] for _ in range(6)])
    if repeated:
        neighbors[:, 2] = neighbors[:, 0]
    found = alignment_loss(predictions, pool[neighbors].mean(1), 6, torch.tensor(kept))
    expected = _naive_group_loss(predictions, pool, neighbors.tolist(), kept)
    _same_value_and_gradient(found, expected, predictions)
    if not any(kept):
        assert found.item() == 0


def test_group_loss_with_only_the_row_itself_is_the_instance_loss() -> None:
    predictions, keys = _rows(6), _rows(6)
    found = alignment_loss(predictions, keys, 6, torch.ones(6).bool())
    torch.testing.assert_close(found, alignment_loss(predictions, keys, 6))


def _naive_kept(keys: Tensor, labels: list[int], centers: Tensor, fraction: float) -> list[bool]:
    ratios = []
    for key, label in zip(keys, labels, strict=True):
        distances = [float((key - center).norm()) for center in centers]
        others = [x for j, x in enumerate(distances) if j != label]
        ratios.append(distances[label] / min(others))
    order = sorted(range(len(ratios)), key=lambda i: (ratios[i], i))
    best = order[: round(fraction * len(ratios))]
    return [i in best for i in range(len(ratios))]


def _step(ids: Tensor, labels: Tensor, centers: Tensor, fraction: float) -> Step:
    positions = torch.arange(len(ids))
    return Step(0, 1, 0, 0, positions, ids, fraction, labels, centers)


@pytest.mark.parametrize("kind", ["contextual", "euclidean"])
@pytest.mark.parametrize("fraction", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("bank_size", [0, 30])
def test_group_stage_is_the_composition_of_its_formulas(
    kind: str, fraction: float, bank_size: int
) -> None:
    n, near, weight = 21, Neighborhood(kind, k1=5, k2=2, k=4), 0.25
    predictions = [unit_rows(torch.randn(n, 6)).requires_grad_() for _ in range(2)]
    keys = [unit_rows(torch.randn(n, 6)) for _ in range(2)]
    centers = unit_rows(torch.randn(3, 6))
    labels, classes = torch.randint(3, (n,)), torch.randint(-1, 3, (100,))
    bank, older, ids = MemoryBank(bank_size, 6, n, near), _rows(0, 6).float(), torch.arange(n) + 50
    older_ids = torch.arange(30)[:0]
    if bank_size:
        older_ids = torch.arange(n) + 10
        older = unit_rows(torch.randn(n, 6))
        bank.find([older, older], older_ids)
    loss, figures = GroupStage(bank, weight, classes).loss(
        byol.Framework(byol.Config(), Identity(3), 4, 6),
        Outputs((predictions[0], predictions[1]), (keys[0], keys[1])),
        _step(ids, labels, centers, fraction),
    )

    losses, purities, shares, pool_ids = [], [], [], torch.cat([ids, older_ids])
    for prediction, key in zip(predictions, reversed(keys), strict=True):
        pool = torch.cat([key, older])
        if kind == "contextual":
            lists = naive_contextual(pool, near.k1, near.k2, near.k)[1][:n]
        else:
            lists = naive_nearest(pool, near.k)[1][:n]
        kept = _naive_kept(key, labels.tolist(), centers, fraction)
        losses.append(_naive_group_loss(prediction, pool, lists, kept))
        pairs = [
            (classes[pool_ids[i]], classes[pool_ids[j]]) for i in range(n) for j in lists[i][1:]
        ]
        known = [(a, b) for a, b in pairs if a >= 0 and b >= 0]
        purities.append(sum(int(a == b) for a, b in known) / len(known))
        shares.append(sum(j >= n for row in lists for j in row[1:]) / (n * (near.k - 1)))
    expected = weight * torch.stack(losses).mean()
    for prediction in predictions:
        torch.testing.assert_close(loss, expected)
        found, wanted = (
            torch.autograd.grad(value, prediction, retain_graph=True)[0]
            for value in (loss, expected)
        )
        torch.testing.assert_close(found, wanted)
    parts = {name: part.tolist() for name, part in figures.items()}
    assert parts["neighbor_purity"][0] / parts["neighbor_purity"][1] == pytest.approx(purities[0])
    assert parts["bank_share"][0] / parts["bank_share"][1] == pytest.approx(shares[0])
    assert parts["kept"] == [round(fraction * n), n]
    assert (shares[0] > 0) == (bank_size > 0)
    # All rows of the bank are one step old.
    assert parts["neighbor_age"] == [parts["bank_share"][0]] * 2
    assert parts["discovery_time_s"][0] > 0
    assert parts["discovery_time_s"][1] == 1


def test_group_stage_sends_no_gradient_into_keys_and_has_no_purity_without_classes() -> None:
    predictions = [unit_rows(torch.randn(8, 4)).requires_grad_() for _ in range(2)]
    keys = [unit_rows(torch.randn(8, 4)).requires_grad_() for _ in range(2)]
    bank = MemoryBank(8, 4, 8, Neighborhood("contextual", 3, 2, 3))
    ids, centers = torch.arange(8), unit_rows(torch.randn(2, 4))
    loss, figures = GroupStage(bank).loss(
        byol.Framework(byol.Config(), Identity(3), 4, 4),
        Outputs((predictions[0], predictions[1]), (keys[0], keys[1])),
        _step(ids, ids % 2, centers, 1.0),
    )
    loss.backward()
    assert all(key.grad is None for key in keys)
    assert all(prediction.grad is not None for prediction in predictions)
    assert "neighbor_purity" not in figures
