"""Objectives of soft clusters by pairs of neighbours.

Shapes: b pairs, h heads, c clusters.
"""

from __future__ import annotations

from torch import Tensor

from conr_ray.method.collectives import differentiable_sum

_SMALLEST = 1e-8


def joint_probabilities(
    queries_bhc: Tensor, keys_bhc: Tensor, kept_b: Tensor | None = None, *, spread: bool = True
) -> Tensor:
    """How often the samples of a pair are in each two clusters, symmetric, sum 1, (h, c, c).

    Args:
        queries_bhc: probabilities of the clusters, with gradient.
        keys_bhc: of the other sample of each pair.
        kept_b: bool; other pairs are left out. None keeps all.
        spread: whether pairs are split over the workers; otherwise this one has all.
    """
    weights_b = queries_bhc.new_ones(len(queries_bhc)) if kept_b is None else kept_b.float()
    counted_hbc = (queries_bhc * weights_b[:, None, None]).transpose(0, 1)
    joint_hcc = counted_hbc.transpose(1, 2) @ keys_bhc.transpose(0, 1)
    if spread:
        joint_hcc = differentiable_sum(joint_hcc)
    joint_hcc = joint_hcc / joint_hcc.detach().sum((1, 2), keepdim=True)
    return ((joint_hcc + joint_hcc.transpose(1, 2)) / 2).clamp_min(_SMALLEST)


def information_loss(joint_hcc: Tensor, balance: float) -> Tensor:
    """Minus the mutual information of the clusters of pairs, for each head (h,).

    With `joint_probabilities` P and their margin p: `sum p log p * 2 balance - sum P log P`. At
    `balance` 1 this is minus the mutual information; above it, equal sizes of the clusters count
    more. It is at least -2 balance log c.
    """
    margin_hc = joint_hcc.sum(2)
    entropy_h = -(margin_hc * margin_hc.log()).sum(1)
    return -2 * balance * entropy_h - (joint_hcc * joint_hcc.log()).sum((1, 2))


def cut_loss(joint_hcc: Tensor) -> Tensor:
    """Minus the normalised association of the clusters of pairs, for each head (h,).

    With `joint_probabilities` P and their margin p: `-sum P_cc / p_c`, how likely the neighbour of
    a sample of a cluster is in it too, summed over the clusters, whatever their sizes (Shi and
    Malik 2000; of soft clusters Tang et al. 2018). It is the normalised cut less c, and at least
    -c; an empty cluster adds next to nothing.
    """
    return -(joint_hcc.diagonal(dim1=1, dim2=2) / joint_hcc.sum(2)).sum(1)
