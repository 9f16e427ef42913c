"""The instance stage: the framework alone (paper section 3.1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from conr_ray.method.frameworks.base import Framework, Outputs, Step
from conr_ray.method.stages.base import Figures, Stage, with_scatter


class InstanceStage(Stage):
    """Pulls the query of each view toward the key of the other view of the same sample."""

    name = "instance"

    def needs_clusters(self, framework: Framework[Any], epoch: int) -> bool:
        """If the framework does."""
        return framework.needs_clusters(epoch)

    def loss(
        self, framework: Framework[Any], outputs: Outputs, step: Step
    ) -> tuple[Tensor, Figures]:
        """The mean of both directions; no figures."""
        first, second = (
            framework.pull(queries_bd, keys_bd, step)
            for queries_bd, keys_bd in zip(outputs.queries, reversed(outputs.keys), strict=True)
        )
        return with_scatter((first + second) / 2, framework, outputs, step), {}
