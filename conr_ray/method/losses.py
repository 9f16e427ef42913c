"""The two losses. Each gives a worker's part of the global mean.

Shapes: b rows of this worker, n of the global batch, d width.

Returned is the sum over the local rows divided by the *global* number of rows, so that summing loss
and gradient over the workers gives those of one process on the joined batch. (The released code
averages where it has to sum, which divides its group-stage gradient by the number of workers; see
`group_loss_weight` in the config.)
"""

from __future__ import annotations

from torch import Tensor


def instance_loss(predictions_bd: Tensor, keys_bd: Tensor, num_global: int) -> Tensor:
    """BYOL: -2 cos(prediction, key of the other view of the same sample) (paper eq. 1).

    Args:
        predictions_bd: unit length, with gradient.
        keys_bd: unit length target embeddings of the same rows, without gradient.
        num_global: rows of the global batch, n.
    """
    return -2 * (predictions_bd * keys_bd).sum() / num_global


def group_loss(
    predictions_bd: Tensor, mean_keys_bd: Tensor, kept_b: Tensor, num_global: int
) -> Tensor:
    """-2 mean over rows and neighbours of kept * cos(prediction, neighbour key) (paper eq. 7).

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
