"""What safety costs a search on digits: its share of the wall time, part by part.

    OMP_NUM_THREADS=1 python benchmarks/safety_cost.py --trials 4      # minutes on 1 core

Trials train one after another in this process, as in an actor of a search, and their study is asked
and told as by the driver; each function of a part is timed where it is called. A part counts whole,
as if without it nothing had to be written; only the outermost of nested parts counts. The beats of
a watched worker come from a thread: what sending one takes is measured apart, with Ray.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["WANDB_MODE"] = "disabled"

import ray

from conr_ray.config import load_preset, parse_overrides
from conr_ray.data.store import open_data
from conr_ray.engine import collapse, evaluation
from conr_ray.engine.checkpoints import CheckpointFolder
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trunk_store import open_trunks
from conr_ray.scaling.actor_locks import ActorLocks
from conr_ray.scaling.cluster import leave, start
from conr_ray.scaling.pulse import Beat
from conr_ray.scaling.resources import WorkerResources
from conr_ray.scaling.watch import Limits, Watch
from conr_ray.scaling.worker import run_here
from conr_ray.searching.file_journal import FileJournal
from conr_ray.searching.run_search import write_results
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.space_file import load_space
from conr_ray.searching.study_searcher import EPOCHS, POINT, StudySearcher
from conr_ray.searching.trial_attributes import TRIAL_ID
from conr_ray.storage import disk, sealed
from conr_ray.storage.files import Folder
from conr_ray.tracking.wandb_settings import WandbSettings

# What is timed, by part.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "sync of files and folders": [(os, "fsync"), (disk, "sync_folder")],
    "journal and its checksums": [(FileJournal, "append_logs"), (FileJournal, "read_logs")],
    "identity of folders": [(Folder, "check_identity"), (Folder, "keep")],
    "checksums of checkpoints and cache": [
        (CheckpointFolder, "_sound_state"),
        (sealed, "seal"),
        (sealed, "unseal"),
    ],
    "room, remains and config": [
        (RunDirectory, "check_room"),
        (RunDirectory, "tidy"),
        (RunDirectory, "claim"),
    ],
    "spread of embeddings, ranges, collapse": [
        (evaluation.DataClustering, "_spread"),
        (evaluation, "within_ranges"),
        (collapse, "has_collapsed"),
    ],
}
BEATS = 100


class Shares:
    """Seconds and calls of each part."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)
        self._inside = False
        for part, places in PARTS.items():
            for owner, name in places:
                setattr(owner, name, self._timed(getattr(owner, name), part))

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            if self._inside:
                return function(*args, **options)
            self._inside, started = True, time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self._inside = False
                self.seconds[part] += time.perf_counter() - started
                self.calls[part] += 1

        return timed


class Told(Observer):
    """Tells the study of each evaluated epoch."""

    def __init__(self, searcher: StudySearcher, space: SearchSpace, name: str) -> None:
        self._searcher, self._space, self._name = searcher, space, name
        self.last: dict[str, Any] = {}

    def epoch(self, row: MetricRow) -> None:
        """Let the study decide on the trial."""
        if (value := row.get(self._space.metric)) is not None:
            self.last = {EPOCHS: int(row["epoch"] or 0) + 1, self._space.metric: value}
            self._searcher.should_stop(self._name, self.last)


def search(folder: Path, space: SearchSpace, num_trials: int) -> None:
    """A search in this process."""
    directory = SearchDirectory(Folder(folder))
    open_data(space.config().data)
    directory.claim(space, resume=False)
    trunks = open_trunks(f"{directory.uri}/trunks", space.group_starts, ActorLocks())
    with directory.held():
        study = directory.open_study(space)
        searcher = StudySearcher(space, study)
        for number in range(num_trials):
            given = searcher.suggest(str(number))
            assert isinstance(given, dict)
            config = space.config(given[POINT])
            run = RunDirectory(f"{directory.uri}/trials/{given[TRIAL_ID]}", directory.files)
            run.check_room()
            run.claim(config, resume=True)
            told = Told(searcher, space, str(number))
            run_here(config, run, WorkerResources(), WandbSettings("off"), told, trunks)
            searcher.on_trial_complete(str(number), told.last)
        write_results(space, study, directory)


def beat() -> tuple[float, float]:
    """Processor seconds that a worker's thread takes for a beat, and seconds between beats."""
    start(WorkerResources(), dashboard=False)
    pulse = Watch(Limits(), print).pulse
    sent = Beat("", 0, "127.0.0.1", "node", os.getpid(), 7, "views")
    times = []
    for _ in range(BEATS):
        started = time.thread_time()
        ray.get(pulse.keeper.keep.remote(sent))
        times.append(time.thread_time() - started)
    leave()
    return statistics.median(times), pulse.every_s


def main() -> None:
    """Search, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--space", default="search_spaces/digits.yaml")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()
    space = load_space(args.space, parse_overrides(args.settings))
    with tempfile.TemporaryDirectory() as folder:
        # Compiled kernels and the decoded images are kept.
        short = {"schedule.epochs": 6, "schedule.group_start": 3, "schedule.relax_epochs": 1}
        config, run = load_preset("digits", short), RunDirectory(Path(folder, "warm-up"))
        run.claim(config, resume=False)
        run_here(config, run, WorkerResources(), WandbSettings("off"), Observer())
        shares = Shares()
        started = time.perf_counter()
        search(Path(folder, "search"), space, args.trials)
        wall_s = time.perf_counter() - started
    print("| part | calls | ms | share |\n| --- | ---: | ---: | ---: |")
    for part in PARTS:
        seconds = shares.seconds[part]
        print(f"| {part} | {shares.calls[part]} | {1e3 * seconds:.0f} | {seconds / wall_s:.2%} |")
    each_s, every_s = beat()
    share = each_s / every_s
    print(f"| a beat every {every_s:.0f} s | | {1e3 * each_s:.2f} each | {share:.3%} |")
    total = sum(shares.seconds.values()) / wall_s + share
    print(f"| all, of {wall_s:.1f} s for {args.trials} trials | | | {total:.2%} |")


if __name__ == "__main__":
    main()
