"""What a stage of a run is to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from conr_ray.method.frameworks.base import Framework, Outputs, Step

# Parts and wholes, (2,) each, that are summed over steps and workers.
Figures = dict[str, Tensor]


class Stage(ABC):
    """Some epochs of a run, with a loss of their own.

    Attributes:
        name: in the metrics, and in the marks of the fields that it alone reads.
        mild_views: whether views are those of the group stage, which change images less.
    """

    name: ClassVar[str]
    mild_views: ClassVar[bool] = False

    @abstractmethod
    def needs_clusters(self, framework: Framework[Any], epoch: int) -> bool:
        """Whether the loss in `epoch` reads pseudo-labels, found when the epoch begins."""

    @abstractmethod
    def loss(
        self, framework: Framework[Any], outputs: Outputs, step: Step
    ) -> tuple[Tensor, Figures]:
        """This worker's part of the loss, to be summed over the workers, and figures to track."""


def with_scatter(loss: Tensor, framework: Framework[Any], outputs: Outputs, step: Step) -> Tensor:
    """`loss`, and what the framework adds to it in every stage."""
    more = framework.scatter(outputs, step)
    return loss if more is None else loss + more
