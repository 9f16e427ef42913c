"""The group stage that a config asks for."""

from __future__ import annotations

from torch import Tensor

from conr_ray.config import RunConfig
from conr_ray.engine.schedule import Schedule
from conr_ray.method.neighbors.bank import MemoryBank
from conr_ray.method.neighbors.links import Links
from conr_ray.method.stages.group import GroupStage
from conr_ray.method.stages.pairs import PairStage


def make_group_stage(
    config: RunConfig,
    schedule: Schedule,
    bank: MemoryBank,
    classes: Tensor | None,
    links: Links | None,
) -> GroupStage | PairStage:
    """The stage with neighbours in the batch and the bank, or in all data.

    `classes` are the true ones of all samples, for figures; `links` are a person's word.
    """
    weight, per_cluster = config.optim.group_loss_weight, config.boundary.per == "cluster"
    if config.neighborhood.pool == "batch":
        return GroupStage(bank, weight, classes, links, per_cluster=per_cluster)
    kind, until = config.neighborhood.kind, schedule.clusters_until
    return PairStage(kind, weight, classes, until, links, per_cluster=per_cluster)
