"""The group stage: keys to neighbours, kept rows and loss (paper section 3).

Change the objective here; the loop calls `GroupStage` once a step.

Shapes: b rows of this worker, n rows of the global batch, c clusters, d width, k neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conr_ray.method.clustering.metrics import neighbor_matches
from conr_ray.method.collectives import all_gather_rows, share
from conr_ray.method.neighbors.bank import MemoryBank, Neighbors
from conr_ray.method.stages.boundary import boundary_ratio, kept_mask


@dataclass(frozen=True)
class GroupStage:
    """The loss that pulls predictions toward the keys of their neighbours.

    Attributes:
        weight: factor on the loss.
    """

    weight: float = 1.0

    def __call__(
        self,
        predictions: Sequence[Tensor],
        keys: Sequence[Tensor],
        bank: MemoryBank,
        *,
        sample_ids_n: Tensor,
        pseudo_labels_n: Tensor,
        centers_cd: Tensor,
        fraction: float,
        classes: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """This worker's part of the global mean loss, and figures to track.

        The prediction of each view is pulled toward keys of the other one; the loss is the mean of
        both directions. The batch's samples are then enqueued in the bank.

        Args:
            predictions: (b, d) of both views, unit length, with gradient.
            keys: (b, d) of both views, unit length, without gradient.
            bank: the neighbour pool, which finds the neighbours.
            sample_ids_n: the samples of the global batch.
            pseudo_labels_n: cluster of each row of the global batch.
            centers_cd: cluster centres, unit length.
            fraction: share of the global batch that is kept.
            classes: true class of every sample by its id, -1 where unknown, for `neighbor_purity`.

        Returns:
            The loss, to be summed over the workers, and figures as shares: two numbers each, part
            and whole, to be summed over the workers too. `neighbor_purity` (where classes are
            given), `bank_share` (of the neighbours but the row itself), `neighbor_age` (steps,
            of those from the bank), `kept` and `discovery_time_s` (a step's, of which the whole
            counts the steps).
        """
        num_global = len(sample_ids_n)
        local = share(num_global)
        # Direction i: the predictions of view i, the keys of the other one.
        key_pools = [all_gather_rows(keys_bd, num_global) for keys_bd in reversed(keys)]
        started = time.perf_counter()
        found = bank.find(key_pools, sample_ids_n)
        elapsed_s = time.perf_counter() - started
        losses, kept = [], []
        for predictions_bd, pool_nd, neighbors in zip(predictions, key_pools, found, strict=True):
            with torch.no_grad():
                ratios_n = boundary_ratio(pool_nd, pseudo_labels_n, centers_cd)
                kept.append(kept_mask(ratios_n, fraction)[local])
            losses.append(group_loss(predictions_bd, neighbors.mean_keys_bd, kept[-1], num_global))
        figures = _figures(found[0], sample_ids_n[local], classes)
        figures["kept"] = torch.stack([kept[0].sum(), torch.ones_like(kept[0]).sum()])
        figures["discovery_time_s"] = kept[0].new_tensor([elapsed_s, 1.0], dtype=torch.float64)
        return self.weight * torch.stack(losses).mean(), figures


def group_loss(
    predictions_bd: Tensor, mean_keys_bd: Tensor, kept_b: Tensor, num_global: int
) -> Tensor:
    """-2 mean over rows and neighbours of kept * cos(prediction, neighbour key) (paper eq. 7).

    Returned is this worker's part, as in `instance_loss`. (The released code averages over the
    workers where it has to sum, which divides its gradient by their number; see `group_loss_weight`
    in the config.)

    The mean cosine over k keys is the dot product with the keys' mean. Rows that are not kept count
    as zeros in the mean, as published.

    Args:
        predictions_bd: unit length, with gradient.
        mean_keys_bd: mean of the unit length keys of each row's neighbours, without gradient.
        kept_b: bool; rows far enough from the boundaries.
        num_global: rows of the global batch, n.
    """
    cosines_b = (predictions_bd * mean_keys_bd).sum(1)
    return -2 * (cosines_b * kept_b).sum() / num_global


def _figures(
    neighbors: Neighbors, sample_ids_b: Tensor, classes: Tensor | None
) -> dict[str, Tensor]:
    """Figures of the neighbours of one direction, as shares."""
    others_bk, ages_bk = neighbors.sample_ids_bk[:, 1:] >= 0, neighbors.ages_bk[:, 1:]
    from_bank = (ages_bk > 0).sum()
    figures = {
        "bank_share": torch.stack([from_bank, others_bk.sum()]),
        "neighbor_age": torch.stack([ages_bk.sum(), from_bank]),
    }
    if classes is not None:
        ids_bk = neighbors.sample_ids_bk
        labels_bk = classes[ids_bk.clamp_min(0)].masked_fill(ids_bk < 0, -1)
        figures["neighbor_purity"] = neighbor_matches(labels_bk, classes[sample_ids_b])
    return figures
