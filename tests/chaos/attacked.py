"""A search as a command of its own, run again with --resume until it has ended well."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

import conr_ray
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError
from conr_ray.storage.files import Folder
from tests.tiny_runs import TINY
from tests.waiting import HANG_S, until

EPOCHS, GROUP_START = 20, 10
K1 = "neighborhood.k1"
POINTS = [5, 12]
FIXED: dict[str, Any] = {
    **TINY,
    "data.limit": 192,
    "schedule.epochs": EPOCHS,
    "schedule.group_start": GROUP_START,
    "evaluation.neighbors": False,
    "checkpoint.every": 2,
}
SPACE: dict[str, Any] = {
    "preset": "digits",
    "metric": "nmi",
    "trials": len(POINTS),
    "sampler": "grid",
    "scheduler": None,
    "fixed": FIXED,
    "search": {K1: {"choice": POINTS}},
}
# How a process is known by its command line.
ROLES = {
    "actor": "ray::ImplicitFunc",
    "worker": "RayTrainWorker",
    "raylet": "raylet/raylet",
    "head": "gcs_server",
}
# A search that is begun more often than this does not get on.
MOST_STARTS = 15


class Attacked:
    """A search of `workers` workers per trial with its results at `uri`.

    Everything else that it writes is under `scratch`, a short path, from where it is started: by
    that its processes are known, also those that nobody waits for.

    Attributes:
        ends: status and last line of each command that has ended.
    """

    def __init__(
        self, scratch: Path, uri: str, workers: int, environment: Mapping[str, str]
    ) -> None:
        self.scratch, self.uri = scratch, uri
        self.ends: list[tuple[int, str]] = []
        self._command = [sys.executable, "-m", "conr_ray.tune", "--storage", uri.rpartition("/")[0]]
        self._command += ["--name", uri.rpartition("/")[2], "--workers", str(workers)]
        self._command += ["--space", str(scratch / "space.yaml")]
        (scratch / "space.yaml").write_text(yaml.safe_dump(SPACE))
        for folder in ("here", "tmp"):
            (scratch / folder).mkdir()
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(Path(conr_ray.__file__).parents[1]),
            "CONR_RAY_CACHE": str(scratch / "cache"),
            "RAY_TMPDIR": str(scratch),
            "TMPDIR": str(scratch / "tmp"),
            # A lost head is given up sooner than after a minute.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._known_epochs = 0

    @property
    def outputs(self) -> list[Path]:
        """What the commands have printed, a file for each."""
        return sorted(self.scratch.glob("output-*"))

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def has_ended_well(self) -> bool:
        return self._process is not None and self._process.poll() == 0

    def go_on(self) -> None:
        """Start the command, as a user would, unless it runs or has ended well."""
        if self.is_running or self.has_ended_well:
            return
        if self._process is not None:
            text = self.outputs[-1].read_text(errors="replace").strip()
            self.ends.append((self._process.returncode, text.rpartition("\n")[2]))
        assert len(self.ends) < MOST_STARTS, self.ends
        begun = Folder(self.uri).has("space.yaml")
        output = self.scratch / f"output-{len(self.ends):02d}"
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [*self._command, "--resume"] if begun else self._command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                cwd=self.scratch / "here",
            )

    def epochs_trained(self) -> int:
        """Epochs of all trials and trunks; the last known number while they cannot be read."""
        with suppress(UserError):
            place = Folder(self.uri)
            folders = [
                f"{part}/{f}" for part in ("trials", "trunks") for f in place.folder_names(part)
            ]
            rows = (RunDirectory(f"{self.uri}/{folder}").metric_rows() for folder in folders)
            self._known_epochs = sum(map(len, rows))
        return self._known_epochs

    def wait_for(self, epochs: int) -> None:
        """Until so many more epochs are trained, or the command has ended."""
        goal = self.epochs_trained() + epochs
        until(lambda: self.epochs_trained() >= goal or not self.is_running, pause_s=0.1)

    def finish(self) -> None:
        """Go on until the search has ended well."""
        while not self.has_ended_well:
            self.go_on()
            assert self._process is not None
            self._process.wait(timeout=HANG_S)

    def processes(self) -> list[psutil.Process]:
        """All processes of the search that live, whoever their parents are."""
        found = []
        for pid in psutil.pids():
            with suppress(OSError, psutil.Error):
                if self._is_ours(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found.append(psutil.Process(pid))
        return found

    def _is_ours(self, pid: int) -> bool:
        for link in ("cwd", "fd/1", "fd/2"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/{link}").startswith(f"{self.scratch}/"):
                    return True
        return False

    def signal(self, role: str, number: signal.Signals, numbers: random.Random) -> int | None:
        """Send a signal to the driver, or to any process of a role; its id, None without one."""
        assert self._process is not None
        if role == "driver":
            pids = [self._process.pid] if self.is_running else []
        else:
            pids = [p.pid for p in self.processes() if ROLES[role] in _line_of(p)]
        if not pids:
            return None
        pid = numbers.choice(sorted(pids))
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def lose_machine(self) -> None:
        """Kill the driver and all that it started, as when the power fails."""
        deadline = time.monotonic() + HANG_S
        while found := self.processes():
            assert time.monotonic() < deadline, found
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            if self._process is not None:
                self._process.wait(timeout=HANG_S)
            time.sleep(0.1)


def _line_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
