"""The number of clusters of a run whose config leaves it open.

Shapes: b samples of this worker, d width.
"""

from __future__ import annotations

import logging

from torch import Tensor

from conr_ray.config import RunConfig
from conr_ray.errors import UserError
from conr_ray.method.clustering.number import NumberChoice, choose_number
from conr_ray.method.collectives import rank
from conr_ray.method.keyed_random import fold

logger = logging.getLogger(__name__)


def number_in(
    embeddings_bd: Tensor, num_rows: int, numbers: range, seed: int, asked: str, remedy: str
) -> NumberChoice:
    """The number of `numbers` that shows in a run's embeddings; called by all workers.

    Args:
        embeddings_bd: this worker's share.
        num_rows: of all workers.
        numbers: two or more.
        seed: of the run.
        asked: what asked for it, for messages.
        remedy: what to do where all embeddings are equal.

    Raises:
        UserError: they are.
    """
    seed = fold(seed, "number")
    try:
        return choose_number(embeddings_bd, num_rows, numbers[0], numbers[-1], seed=seed)
    except ValueError as error:
        raise UserError(f"{asked}: {error}: {remedy}") from None


def chosen_number(config: RunConfig, embeddings_bd: Tensor, num_rows: int, numbers: range) -> int:
    """`number_in` for a run of `config`; the first worker logs why."""
    asked = f"clustering.num_clusters={config.clustering.num_clusters}"
    choice = number_in(embeddings_bd, num_rows, numbers, config.seed, asked, "give the number")
    if rank() == 0:
        logger.info("%s", choice.why)
    return choice.num_clusters
