"""What a W&B that does not answer costs a search: the command's wait, and each trial's.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/wandb_dead.py       # a minute on 1 core

Trials of about a second, one after another in one process as in an actor of a search, with W&B off
and with a server that refuses connections, in turn. The search of 40 trials is calculated: the
command's wait, and the extra time of 40 trials on 2 actors.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["WANDB_BASE_URL"] = "http://127.0.0.1:9"
os.environ["WANDB_API_KEY"] = "0" * 40
os.environ.pop("WANDB_MODE", None)

from conr_ray.config import RunConfig
from conr_ray.engine.observer import Observer
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.scaling.resources import WorkerResources
from conr_ray.scaling.worker import run_here
from conr_ray.tracking.wandb_reach import reached_settings
from conr_ray.tracking.wandb_settings import WandbSettings
from tests.tiny_runs import tiny_config

TRIALS, ACTORS, MEASURED = 40, 2, 8


def trial_s(config: RunConfig, folder: Path, settings: WandbSettings) -> float:
    """Seconds that one trial takes, its claim and W&B included."""
    started = time.perf_counter()
    directory = RunDirectory(folder)
    directory.claim(config, resume=False)
    own = settings.for_run(folder.name, group="search", run_uri=directory.uri)
    run_here(config, directory, WorkerResources(), own, Observer())
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    config = tiny_config(evaluation__every=5, checkpoint__every=5)
    started = time.perf_counter()
    dead, told = reached_settings(config.tracking, "/search", of_search=True)
    wait_s = time.perf_counter() - started
    print(told)
    ways = {"off": WandbSettings("off"), "dead": dead, "with figures": replace(dead, sparing=False)}
    with tempfile.TemporaryDirectory() as scratch:
        trial_s(config, Path(scratch, "warm-up"), ways["off"])
        first_s = trial_s(config, Path(scratch, "first"), dead)
        times = {
            name: [trial_s(config, Path(scratch, f"{number}-{n}"), way) for n in range(MEASURED)]
            for number, (name, way) in enumerate(ways.items())
        }
    off_s, *others = (statistics.median(found) for found in times.values())
    print(f"command waits {wait_s:.1f} s; a trial takes {off_s:.2f} s with W&B off")
    for name, each_s in zip(list(ways)[1:], others, strict=True):
        whole_s = wait_s + (first_s - each_s) + (each_s - off_s) * TRIALS / ACTORS
        print(f"{name}: {each_s / off_s:.2f} x, {TRIALS} trials {whole_s:+.1f} s")


if __name__ == "__main__":
    main()
