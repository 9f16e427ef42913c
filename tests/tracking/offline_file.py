"""What the file of an offline W&B run holds, for tests."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from conr_ray.tracking.wandb_file import records
from tests.waiting import HANG_S


def ended(file: Path) -> list[Any]:
    """The records of a run that has ended; W&B's own process may still be writing the last."""
    deadline = time.monotonic() + HANG_S
    while True:
        found = list(records(file))
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        assert time.monotonic() < deadline, f"{file} does not end"
        time.sleep(0.1)


def run(file: Path) -> Any:
    """The run's record: id, group, job type, project and config."""
    return next(r.run for r in records(file) if r.WhichOneof("record_type") == "run")


def config(file: Path) -> dict[str, Any]:
    """The config that was given to `wandb.init`."""
    updates = run(file).config.update
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in updates}
