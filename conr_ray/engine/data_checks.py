"""Check that a run and its data fit together."""

from __future__ import annotations

from typing import Protocol

from conr_ray.config import RunConfig
from conr_ray.config.cluster_numbers import numbers_of
from conr_ray.errors import BadSetting, UserError


class Counted(Protocol):
    """Data with a known shape, and known numbers of samples and classes."""

    @property
    def num_rows(self) -> int:
        """Number of samples."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a sample, (c, h, w) or (d,)."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""

    @property
    def what(self) -> str:
        """The word "images" or "vectors", for messages."""


def check_data(config: RunConfig, data: Counted, workers: int) -> int:
    """Check the data and workers of a run of `config`; returns its least number of clusters.

    Raises:
        UserError: too few samples for the batch, the clusters or the neighbours, or no number of
            clusters.
        BadSetting: a worker would get fewer than 2 samples of a batch, or a part of a group that
            is normalised together.
    """
    wanted = config.clustering.num_clusters
    numbers = numbers_of(wanted, data.num_rows)
    num_clusters = data.num_classes if wanted is None else wanted
    if numbers is not None:
        num_clusters = numbers[-1]
    assert not isinstance(num_clusters, str)
    if num_clusters is None:
        raise UserError(
            f"clustering.num_clusters is not set and the {data.what} have no labels: set it"
        )
    for field, count in (
        ("clustering.num_clusters", num_clusters),
        ("optim.batch_size", config.optim.batch_size),
        *_neighbors_in_all_data(config),
    ):
        if count > data.num_rows:
            raise UserError(
                f"{field}={count} exceeds the {data.num_rows} {data.what}: lower it or add "
                f"{data.what}"
            )
    if not 1 <= workers <= config.optim.batch_size // 2:
        raise BadSetting(
            f"workers={workers} is not between 1 and {config.optim.batch_size // 2}, half of "
            f"optim.batch_size: a worker needs 2 {data.what} of each batch"
        )
    rows = config.norm_rows
    if rows is not None and (groups := config.optim.batch_size // rows) % workers:
        *fewer, most = (str(count) for count in range(1, groups + 1) if groups % count == 0)
        raise BadSetting(
            f"workers={workers} would split rows that model.norm_batch={rows} takes together: use "
            f"{', '.join(fewer)} or {most}, or leave model.norm_batch unset"
        )
    return num_clusters if numbers is None else numbers[0]


def _neighbors_in_all_data(config: RunConfig) -> list[tuple[str, int]]:
    """Fields that count samples of the whole data set."""
    near = config.neighborhood
    if near.pool != "data" or config.group_start_epoch is None:
        return []
    return [("neighborhood.k1", near.k1), ("neighborhood.k", near.k)]
