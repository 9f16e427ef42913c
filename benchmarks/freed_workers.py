"""What early stopping leaves behind, and how busy it keeps the cores: trials of two workers.

    python benchmarks/freed_workers.py --trials 6 --epochs 60

Runs a search by ASHA whose trials train through Ray Train. Printed are the processes and placement
groups that live longer than the trials' own, after 10 s, and the share of the search in which no
trial's cores were held: between a trial's end and the next one's first process, cores are idle.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from pathlib import Path

import psutil
import ray
import yaml
from ray.util.state import list_placement_groups
from rich.console import Console

from conr_ray.data.store import open_data
from conr_ray.engine.trunk_store import open_trunks
from conr_ray.scaling.actor_locks import ActorLocks
from conr_ray.scaling.cluster import start
from conr_ray.scaling.resources import WorkerResources
from conr_ray.searching.run_search import run_search
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space_file import load_space
from conr_ray.storage.files import Folder
from conr_ray.tracking.wandb_settings import WandbSettings

_SAMPLE_S = 0.25


class CoreWatch:
    """Samples which of Ray's cores are held, until it is closed."""

    def __init__(self, needed: float) -> None:
        self._needed = needed
        self._samples: list[bool] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(_SAMPLE_S):
            total = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
            free = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
            self._samples.append(total - free >= self._needed)

    def close(self) -> float:
        """Share of the time in which the cores of a trial were not held."""
        self._closed.set()
        self._thread.join()
        return 1 - sum(self._samples) / len(self._samples)


def workers_alive() -> list[str]:
    """Processes of trials and their workers."""
    names = []
    for process in psutil.Process().children(recursive=True):
        if process.is_running():
            title = " ".join(process.cmdline())
            if "RayTrainWorker" in title or "TrainController" in title or "ImplicitFunc" in title:
                names.append(title)
    return names


def groups_alive() -> int:
    """Placement groups that hold something."""
    return sum(group.state != "REMOVED" for group in list_placement_groups(limit=1000))


def main() -> None:
    """Parse, search, look around."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    group_start = args.epochs * 2 // 3
    tree = {
        "preset": "digits",
        "metric": "nmi",
        "fixed": {"schedule.epochs": args.epochs, "schedule.group_start": group_start},
        "search": {"neighborhood.k1": {"int": [5, 20]}, "neighborhood.k": {"int": [2, 60]}},
    }
    resources = WorkerResources(workers=2)
    start(resources, dashboard=True)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        (folder / "space.yaml").write_text(yaml.safe_dump(tree))
        space = load_space(folder / "space.yaml")
        directory = SearchDirectory(Folder(folder / "search"))
        directory.claim(space, resume=False)
        trunks = open_trunks(f"{directory.uri}/trunks", space.group_starts, ActorLocks())
        watch, started = CoreWatch(needed=2), time.perf_counter()
        trials = run_search(
            space,
            directory,
            resources,
            WandbSettings("off"),
            Console(file=io.StringIO()),
            num_trials=args.trials,
            fingerprint=open_data(space.config().data).fingerprint,
            trunks=trunks,
        )
        search_s, idle = time.perf_counter() - started, watch.close()
        training_s = sum(trial.time_s + trial.built_time_s for trial in trials)
        time.sleep(10)
        alive, groups = workers_alive(), groups_alive()
    states = ", ".join(f"{trial.state} after {trial.epochs}" for trial in trials)
    print(f"trials: {states}")
    print(f"10 s after the end: {len(alive)} processes of trials, {groups} placement groups")
    print(f"search {search_s:.0f} s; no trial holds its cores {idle:.1%} of it")
    print(f"epochs' own time {training_s:.0f} s, {training_s / search_s:.0%} of the search")


if __name__ == "__main__":
    main()
