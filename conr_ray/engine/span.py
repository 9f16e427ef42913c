"""Which epochs of a run are trained in one go."""

from __future__ import annotations

from dataclasses import dataclass

from conr_ray.engine.run_directory import RunDirectory


@dataclass(frozen=True)
class Span:
    """The epochs of a run that are trained in one go.

    Attributes:
        origin: checkpoint of another run, as its directory and epoch, to go on from where the run
            has none of its own; the two may differ in what follows it, and where `may_change`.
        until: epochs after which training ends and a checkpoint is written; all where None.
        pinned: epochs after which checkpoints are written that are kept for good.
    """

    origin: tuple[RunDirectory, int] | None = None
    until: int | None = None
    pinned: frozenset[int] = frozenset()


WHOLE = Span()
