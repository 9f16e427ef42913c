"""Whether a run fits its samples, known before anything is trained."""

from __future__ import annotations

from conr_ray.config import RunConfig
from conr_ray.data.store import DataSet
from conr_ray.errors import UserError


def check_data(config: RunConfig, data: DataSet, workers: int) -> int:
    """Number of clusters of a run of `config` on `data` by so many workers.

    Raises:
        UserError: too few samples for the batch or the clusters, or no number of clusters.
    """
    num_clusters = config.clustering.num_clusters or data.num_classes
    if num_clusters is None:
        raise UserError(
            f"clustering.num_clusters is not set and the {data.what} have no labels: set it"
        )
    for field, count in (
        ("clustering.num_clusters", num_clusters),
        ("optim.batch_size", config.optim.batch_size),
    ):
        if count > data.num_rows:
            raise UserError(
                f"{field}={count} exceeds the {data.num_rows} {data.what}: lower it or add "
                f"{data.what}"
            )
    if not 1 <= workers <= config.optim.batch_size // 2:
        raise UserError(
            f"--workers {workers} is not between 1 and {config.optim.batch_size // 2}, half of "
            f"optim.batch_size: a worker needs 2 {data.what} of a batch"
        )
    return num_clusters
