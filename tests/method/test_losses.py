from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conr_ray.method.group_stage import GroupStage
from conr_ray.method.losses import group_loss, instance_loss
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
    found = instance_loss(predictions, keys, 7)
    _same_value_and_gradient(found, _naive_instance_loss(raw, keys), raw)


def test_instance_loss_is_minus_two_where_prediction_and_key_agree() -> None:
    keys = _rows(4)
    assert float(instance_loss(keys, keys, 4)) == pytest.approx(-2)
    assert float(instance_loss(-keys, keys, 4)) == pytest.approx(2)


def test_parts_of_the_losses_sum_to_the_whole() -> None:
    predictions, keys = _rows(7), _rows(7)
    neighbors, kept = torch.randint(7, (7, 3)), torch.rand(7) < 0.5
    parts = [slice(0, 2), slice(2, 4), slice(4, 7)]
    torch.testing.assert_close(
        sum((instance_loss(predictions[p], keys[p], 7) for p in parts), torch.tensor(0.0)),
        instance_loss(predictions, keys, 7),
        check_dtype=False,
    )
    torch.testing.assert_close(
        sum(
            (group_loss(predictions[p], keys, neighbors[p], kept[p], 7) for p in parts),
            torch.tensor(0.0),
        ),
        group_loss(predictions, keys, neighbors, kept, 7),
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
    found = group_loss(predictions, pool, neighbors, torch.tensor(kept), 6)
    expected = _naive_group_loss(predictions, pool, neighbors.tolist(), kept)
    _same_value_and_gradient(found, expected, predictions)
    if not any(kept):
        assert found.item() == 0


def test_group_loss_with_only_the_row_itself_is_the_instance_loss() -> None:
    predictions, keys = _rows(6), _rows(6)
    found = group_loss(predictions, keys, torch.arange(6)[:, None], torch.ones(6).bool(), 6)
    torch.testing.assert_close(found, instance_loss(predictions, keys, 6))


def _naive_kept(keys: Tensor, labels: list[int], centers: Tensor, fraction: float) -> list[bool]:
    ratios = []
    for key, label in zip(keys, labels, strict=True):
        distances = [float((key - center).norm()) for center in centers]
        others = [x for j, x in enumerate(distances) if j != label]
        ratios.append(distances[label] / min(others))
    order = sorted(range(len(ratios)), key=lambda i: (ratios[i], i))
    best = order[: round(fraction * len(ratios))]
    return [i in best for i in range(len(ratios))]


@pytest.mark.parametrize("kind", ["contextual", "euclidean"])
@pytest.mark.parametrize("fraction", [0.3, 0.8, 1.0])
def test_group_stage_is_the_composition_of_its_formulas(kind: str, fraction: float) -> None:
    n, k1, k2, k, weight = 21, 5, 2, 4, 0.25
    predictions = unit_rows(torch.randn(n, 6)).requires_grad_()
    keys, centers = unit_rows(torch.randn(n, 6)), unit_rows(torch.randn(3, 6))
    labels, classes = torch.randint(3, (n,)), torch.randint(-1, 3, (n,))
    loss, figures = GroupStage(kind, k1, k2, k, weight)(
        predictions,
        keys,
        pseudo_labels_n=labels,
        centers_cd=centers,
        fraction=fraction,
        classes_n=classes,
    )
    if kind == "contextual":
        near = naive_contextual(keys, k1, k2, k)[1]
    else:
        near = naive_nearest(keys, k)[1]
    kept = _naive_kept(keys, labels.tolist(), centers, fraction)
    expected = weight * _naive_group_loss(predictions, keys, near, kept)
    _same_value_and_gradient(loss, expected, predictions)
    pairs = [(classes[i], classes[j]) for i in range(n) for j in near[i][1:]]
    known = [(a, b) for a, b in pairs if a >= 0 and b >= 0]
    purity = sum(int(a == b) for a, b in known) / len(known)
    same, known = figures["neighbor_purity"].tolist()
    assert same / known == pytest.approx(purity)


def test_group_stage_sends_no_gradient_into_keys_and_has_no_figures_without_classes() -> None:
    predictions = unit_rows(torch.randn(8, 4)).requires_grad_()
    keys = unit_rows(torch.randn(8, 4)).requires_grad_()
    loss, figures = GroupStage("contextual", 3, 2, 3)(
        predictions,
        keys,
        pseudo_labels_n=torch.arange(8) % 2,
        centers_cd=unit_rows(torch.randn(2, 4)),
        fraction=1.0,
    )
    loss.backward()
    assert keys.grad is None
    assert predictions.grad is not None
    assert figures == {}
