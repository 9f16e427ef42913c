"""The instance stage: BYOL (paper section 3.1).

Shapes: b rows of this worker, d width.
"""

from __future__ import annotations

from torch import Tensor


def instance_loss(predictions_bd: Tensor, keys_bd: Tensor, num_global: int) -> Tensor:
    """BYOL: -2 cos(prediction, key of the other view of the same sample) (paper eq. 1).

    Returned is this worker's part of the mean over the global batch: the sum over the local rows
    divided by the *global* number of rows, so that summing loss and gradient over the workers gives
    those of one process on the joined batch.

    Args:
        predictions_bd: unit length, with gradient.
        keys_bd: unit length target embeddings of the same rows, without gradient.
        num_global: rows of the global batch, n.
    """
    return -2 * (predictions_bd * keys_bd).sum() / num_global
