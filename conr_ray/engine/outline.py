"""What a run is about to do, in a line for people."""

from __future__ import annotations

from conr_ray.config import RunConfig
from conr_ray.config.cluster_numbers import numbers_of

GROUP_STAGE_BEGINS = (
    "group stage: the loss is now that of neighbours, no longer of two views of one sample, so it "
    "begins at another level; compare losses within a stage only"
)


def outline(
    config: RunConfig, num_rows: int, num_classes: int | None, what: str, done: int = 0
) -> str:
    """Samples, clusters, stages and steps.

    Args:
        config: the run's.
        num_rows: number of samples.
        num_classes: of their labels, None without.
        what: images or vectors.
        done: epochs that are trained already.
    """
    epochs, start = config.schedule.epochs, config.group_start_epoch
    near = config.neighborhood
    pool = "all data" if near.pool == "data" else "the batch and the bank"
    if near.pool == "batch" and not config.bank.size:
        pool = "the batch"
    stages = []
    if start != 0:
        stages.append(f"{_epochs(0, start or epochs)} of the instance stage ({_framework(config)})")
    if start is not None:
        stages.append(
            f"{_epochs(start, epochs)} of the group stage ({near.k} {near.kind} neighbours in "
            f"{pool})"
        )
    steps = num_rows // config.optim.batch_size
    begun = f"; {done} epochs are trained already" if done else ""
    return (
        f"training: {num_rows:,} {what} into {_clusters(config, num_rows, num_classes)}; "
        f"{', then '.join(stages)}; {steps:,} steps of {config.optim.batch_size} {what} each"
        f"{begun}; the time left is shown when the first epoch has ended"
    )


def _framework(config: RunConfig) -> str:
    return f"{config.model.framework} alone"


def _epochs(first: int, end: int) -> str:
    """Epochs from `first` to before `end`, counted from 1 as progress is."""
    return f"epoch {end}" if end == first + 1 else f"epochs {first + 1} to {end}"


def _clusters(config: RunConfig, num_rows: int, num_classes: int | None) -> str:
    numbers = numbers_of(config.clustering.num_clusters, num_rows)
    if numbers is not None:
        return f"{numbers[0]} to {numbers[-1]} clusters, as many as the data show"
    count = config.clustering.num_clusters
    return f"{num_classes} clusters, one for each label" if count is None else f"{count} clusters"
