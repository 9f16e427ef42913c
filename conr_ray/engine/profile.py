"""A profile of a run: seconds a step by phase, and a trace of a few steps of each stage.

profile/phases.json            {stage: {"steps": n, "seconds": {phase: s}}}
profile/instance.trace.json.gz for chrome://tracing and ui.perfetto.dev
profile/group.trace.json.gz
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import StorageError, UserError, one_line
from conr_ray.method.phases import Clock
from conr_ray.storage import disk

# In the order of a step; gradients are exchanged in `backward`, all else in `communication`.
PHASES = (
    *("views", "online", "target", "loss", "neighbours", "communication", "backward", "optimiser"),
    *("evaluation", "checkpoint", "other"),
)
_LAST_PHASE = "optimiser"
_FILE = "profile/phases.json"
# Steps of a stage that are traced; those before them compile and warm up.
_TRACED = range(3, 6)


@dataclass(frozen=True)
class PhaseTimes:
    """What a stage's steps took.

    Attributes:
        steps: number of steps.
        seconds: by phase, over all of them; `other` is what lies between phases.
    """

    steps: int
    seconds: Mapping[str, float]


class Profile(Observer):
    """Times the phases of the run that it observes, on the first worker.

    On a GPU every change of phase waits for the device, so that a profiled run is slower than the
    same run without. A stage's first epoch, which compiles, is left out if the stage has others.
    """

    def __init__(self, directory: RunDirectory, device: torch.device) -> None:
        """Start the clock; `end` stops it."""
        self._directory, self._device = directory, device
        self._clock = Clock(device, self._left)
        self._running = ExitStack()
        self._running.enter_context(self._clock.running())
        self._trace: profile | None = None
        self._first: dict[str, PhaseTimes] = {}

    def epoch(self, row: MetricRow) -> None:
        """Write the times of all stages so far."""
        stage = str(row["stage"])
        self._first.setdefault(stage, self._so_far(stage))
        # Stages that an earlier attempt has trained keep their figures.
        times = self._earlier()
        times |= {name: self._without_first(name) for name in self._first if self._steps(name)}
        tree = {name: {"steps": t.steps, "seconds": t.seconds} for name, t in times.items()}
        self._directory.write_text(_FILE, json.dumps(tree, indent=2) + "\n")

    def _earlier(self) -> dict[str, PhaseTimes]:
        try:
            return read_profile(self._directory)
        except StorageError:
            raise
        except UserError as error:
            disk.tell(f"{str(error).rpartition(': ')[0]}: written anew")
            return {}

    def end(self, error: BaseException | None) -> None:
        """Stop the clock, and a trace that is not complete."""
        self._running.close()
        self._drop_trace()

    def _drop_trace(self) -> None:
        """Stop a trace whose stage has too few steps for it."""
        if self._trace is not None:
            self._trace.stop()
            self._trace = None

    def _so_far(self, stage: str) -> PhaseTimes:
        own = {p: s for (outer, p), s in self._clock.seconds.items() if outer == stage}
        # The stage's own time is what lies between phases.
        seconds = {"other" if name == stage else name: s for name, s in own.items()}
        return PhaseTimes(self._steps(stage), seconds)

    def _steps(self, stage: str) -> int:
        """Steps so far: each has the phase of the optimiser once."""
        return self._clock.calls[stage, _LAST_PHASE]

    def _without_first(self, stage: str) -> PhaseTimes:
        first, whole = self._first[stage], self._so_far(stage)
        if whole.steps == first.steps:
            return whole
        seconds = {name: s - first.seconds.get(name, 0.0) for name, s in whole.seconds.items()}
        return PhaseTimes(whole.steps - first.steps, seconds)

    def _left(self, stage: str, phase: str) -> None:
        """A phase has ended, and with the last one a step."""
        if phase != _LAST_PHASE:
            return
        steps = self._steps(stage)
        if steps == _TRACED.start:
            self._drop_trace()
            on_gpu = self._device.type == "cuda"
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
            self._trace = profile(activities=activities)
            self._trace.start()
        elif steps == _TRACED.stop and self._trace is not None:
            self._trace.stop()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "trace.json.gz")
                self._trace.export_chrome_trace(str(file))
                self._directory.write_bytes(f"profile/{stage}.trace.json.gz", file.read_bytes())
            self._trace = None


def read_profile(directory: RunDirectory) -> dict[str, PhaseTimes]:
    """The times of each stage; empty if the run was not profiled.

    Raises:
        UserError: the file is damaged.
    """
    tree = directory.read_json(_FILE) or {}
    try:
        found = {
            stage: PhaseTimes(
                int(times["steps"]), {p: float(s) for p, s in times["seconds"].items()}
            )
            for stage, times in tree.items()
        }
        for times in found.values():
            whole = sum(times.seconds.values())
            if times.steps < 1 or not 0 < whole < math.inf or not {*times.seconds} <= {*PHASES}:
                raise ValueError("no times of a run's phases")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = one_line(error)
        raise UserError(f"{directory.uri}/{_FILE} is damaged ({reason}): delete it") from None
    return found
