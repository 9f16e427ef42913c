"""The interface of stages to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from conr_ray.method.frameworks.base import Framework, Outputs, Step

# Shares by name: part and whole, (2,), each summed over steps and workers.
Figures = dict[str, Tensor]


class Stage(ABC):
    """A range of epochs of a run, with its own loss.

    The `framework` is that of the run, and `outputs` are what its `forward` has returned for a
    `step`; an `epoch` is its index from 0.

    Attributes:
        name: used in the metrics, and in the marks of fields that only this stage reads.
        mild_views: whether views use the milder settings of the group stage.
    """

    name: ClassVar[str]
    mild_views: ClassVar[bool] = False

    def paired(self, step: Step) -> Step:
        """`step` with the samples that the second views are of, if they are others."""
        return step

    @abstractmethod
    def needs_clusters(self, framework: Framework[Any], epoch: int) -> bool:
        """Whether the loss in `epoch` reads pseudo-labels, found when the epoch begins."""

    @abstractmethod
    def loss(
        self, framework: Framework[Any], outputs: Outputs, step: Step
    ) -> tuple[Tensor, Figures]:
        """This worker's part of the loss, to be summed over the workers, and figures to track.

        Returns:
            The loss, a scalar, with gradient; and by name the part and the whole, (2,), whose
            quotient, once both are summed over the epoch's steps and the workers, is the figure.
        """


def with_scatter(loss: Tensor, framework: Framework[Any], outputs: Outputs, step: Step) -> Tensor:
    """`loss` plus the additional loss of the framework, if it has one."""
    more = framework.scatter(outputs, step)
    return loss if more is None else loss + more
