"""The trunk that a run started from, as recorded in its directory."""

from __future__ import annotations

from dataclasses import dataclass

from conr_ray.engine.run_directory import RunDirectory


@dataclass(frozen=True)
class Origin:
    """Where a run started.

    Attributes:
        trunk: name of the trunk.
        epoch: epochs taken from the trunk.
        built_epochs: epochs of the trunk that this run trained.
        waited_s: time spent waiting for others to train them.
        note: what was wrong with the trunk, or empty.
    """

    trunk: str
    epoch: int
    built_epochs: int = 0
    waited_s: float = 0.0
    note: str = ""

    @classmethod
    def read(cls, directory: RunDirectory) -> Origin | None:
        """The origin of the run in `directory`; None if it has none."""
        known = directory.read_json("origin.json")
        return None if known is None else cls(**known)
