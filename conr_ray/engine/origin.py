"""The trunk that a run has gone on from, as its directory tells."""

from __future__ import annotations

import json
from dataclasses import dataclass

from conr_ray.engine.run_directory import RunDirectory


@dataclass(frozen=True)
class Origin:
    """Where a run came from.

    Attributes:
        trunk: name of the trunk.
        epoch: epochs that the run did not train itself.
        built_epochs: epochs of the trunk that were trained for this run first.
        waited_s: time in which others trained them.
        note: what was wrong with the trunk, or empty.
    """

    trunk: str
    epoch: int
    built_epochs: int = 0
    waited_s: float = 0.0
    note: str = ""

    @classmethod
    def read(cls, directory: RunDirectory) -> Origin | None:
        """Of the run in `directory`; None where it came from none."""
        text = directory.read_text("origin.json")
        return None if text is None else cls(**json.loads(text))
