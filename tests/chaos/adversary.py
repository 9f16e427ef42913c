"""What is done to a search at random moments; a seed decides all but the moments' last moment."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.chaos.attacked import Attacked
from tests.chaos.places import AWAY_S, Failure, Place, Tracker

# Files of a search, its trials, its trunks and its cache that a crash may tear.
_TORN = (
    "study.journal",
    "study.journal.sums",
    "trials/*/metrics.parquet",
    "trials/*/checkpoints/*/state.pt",
    "trials/*/checkpoints/*/summary.json",
    "trunks/*/metrics.parquet",
    "trunks/*/checkpoints/*/state.pt",
)
_IN_CACHE = "**/*.npy"
# At most so many bytes at the end of a file are damaged, and one line of the journal.
_LAST_BYTES = 64
Blow = Callable[[], str]


class Adversary:
    """Attacks a search; what it does, and the moments, depend on a seed.

    Attributes:
        done: what it did, a line for each blow.
    """

    def __init__(
        self, seed: int, attacked: Attacked, place: Place, tracker: Tracker | None
    ) -> None:
        self.done: list[str] = []
        self._numbers = random.Random(seed)
        self._attacked, self._place = attacked, place
        self._failures = [*place.failures, *(tracker.failures if tracker else ())]

    def attack(self, num_blows: int) -> None:
        """Strike, and resume the search after each blow; ends early if the search does."""
        for blow in self._numbers.choices(self._blows(), k=num_blows):
            self._attacked.go_on()
            self._wait()
            self._attacked.go_on()
            if self._attacked.has_ended_well:
                self.done.append("the search has ended")
                return
            self.done.append(blow())

    def _wait(self) -> None:
        if self._numbers.random() < 0.25:
            # Also while it starts.
            time.sleep(self._numbers.uniform(0, 8))
        else:
            self._attacked.wait_for(self._numbers.randrange(1, 10))

    def _blows(self) -> list[Blow]:
        kills = [lambda role=role: self._kill(role) for role in ("driver", "actor", "worker")]
        kills += [lambda role=role: self._kill(role) for role in ("raylet", "head")]
        stops = [lambda role=role: self._stop(role) for role in ("driver", "actor", "worker")]
        failures = [lambda failure=failure: self._fail(failure) for failure in self._failures]
        # What only some searches meet is met as often as a kill.
        return [*kills, *stops, self._lose_machine, self._tear, *(2 * failures)]

    def _kill(self, role: str) -> str:
        pid = self._attacked.signal(role, signal.SIGKILL, self._numbers)
        return f"kill {role}" if pid else f"no {role} to kill"

    def _stop(self, role: str) -> str:
        pid = self._attacked.signal(role, signal.SIGSTOP, self._numbers)
        if pid is None:
            return f"no {role} to stop"
        time.sleep(self._numbers.uniform(*AWAY_S))
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).send_signal(signal.SIGCONT)
        return f"stop {role}"

    def _lose_machine(self) -> str:
        self._attacked.lose_machine()
        return "lose the machine"

    def _fail(self, failure: Failure) -> str:
        failure(self._numbers)
        return failure.__name__.replace("_", " ")

    def _tear(self) -> str:
        self._attacked.lose_machine()
        if self._place.folder is None:
            return "lose the machine"
        folder = self._place.folder / "search"
        files = sorted(file for kind in _TORN for file in folder.glob(kind))
        files += sorted((self._attacked.scratch / "cache").glob(_IN_CACHE))
        kinds = sorted({file.name for file in files})
        if not kinds:
            return "lose the machine"
        kind = self._numbers.choice(kinds)
        file = self._numbers.choice([file for file in files if file.name == kind])
        return f"lose the machine, {self._torn(file)}"

    def _torn(self, file: Path) -> str:
        data = bytearray(file.read_bytes())
        last = len(data.splitlines()[-1]) if file.name.startswith("study") else _LAST_BYTES
        at = self._numbers.randrange(1, max(2, min(last, len(data))))
        how = self._numbers.choice(("cut", "flip"))
        if how == "cut":
            del data[-at:]
        else:
            data[-at] ^= 1 << self._numbers.randrange(8)
        # In place, as a disk does it.
        file.write_bytes(data)
        return f"{how} byte -{at} of {file.name}"
