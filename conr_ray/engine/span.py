"""Which epochs of a run are trained in one go."""

from __future__ import annotations

from dataclasses import dataclass

from conr_ray.engine.run_directory import RunDirectory


@dataclass(frozen=True)
class Span:
    """The epochs of a run that are trained in one go.

    Attributes:
        origin: directory and epoch of another run's checkpoint, the start if the run has none of
            its own; the two may differ in what comes after it, and in fields that `may_change`.
        until: epochs after which training ends and a checkpoint is written; None for all.
        extends: take other samples into the origin's clusters than it has, without training.
        pinned: epochs after which checkpoints are written that are never deleted.
    """

    origin: tuple[RunDirectory, int] | None = None
    until: int | None = None
    pinned: frozenset[int] = frozenset()
    extends: bool = False


WHOLE = Span()
