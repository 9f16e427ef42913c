"""Whether a run and the data that it is trained on fit together."""

from __future__ import annotations

from typing import Protocol

from conr_ray.config import RunConfig
from conr_ray.errors import UserError


class Counted(Protocol):
    """Data of which it is known how much there is."""

    @property
    def num_images(self) -> int:
        """Number of images."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""


def check_data(config: RunConfig, images: Counted, workers: int) -> int:
    """Number of clusters of a run of `config` on `images` by so many workers.

    Raises:
        UserError: too few images for the batch or the clusters, or no number of clusters.
    """
    num_clusters = config.clustering.num_clusters or images.num_classes
    if num_clusters is None:
        raise UserError("clustering.num_clusters is not set and the images have no labels: set it")
    if num_clusters > images.num_images:
        raise UserError(
            f"clustering.num_clusters={num_clusters} exceeds the {images.num_images} images: "
            "lower it or add images"
        )
    if config.optim.batch_size > images.num_images:
        raise UserError(
            f"optim.batch_size={config.optim.batch_size} exceeds the {images.num_images} images: "
            "lower it or add images"
        )
    if not 1 <= workers <= config.optim.batch_size // 2:
        raise UserError(
            f"--workers {workers} is not between 1 and {config.optim.batch_size // 2}, half of "
            "optim.batch_size: a worker needs 2 images of a batch"
        )
    return num_clusters
