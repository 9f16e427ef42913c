"""What a search costs beyond its training: against a plain Optuna loop in one process.

    python benchmarks/orchestration.py --trials 4 --epochs 40

The same points are trained by both, one trial at a time, without trunks. Overhead is wall time
beyond the epochs' own, as a share of these; Ray's start is in it, and printed apart.
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
import time
from pathlib import Path

import torch
import yaml
from rich.console import Console

from conr_ray.data.store import open_data
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.scaling.cluster import start
from conr_ray.scaling.resources import WorkerResources
from conr_ray.search.run_search import run_search
from conr_ray.search.search_directory import SearchDirectory, journal_file
from conr_ray.search.space import SearchSpace
from conr_ray.search.space_file import load_space
from conr_ray.search.study import open_study
from conr_ray.storage.files import Folder
from conr_ray.tracking.wandb_settings import WandbSettings


def plain_loop(space: SearchSpace, folder: Path, num_trials: int) -> tuple[float, float]:
    """Wall time and the epochs' own of an ask-and-tell loop around `train`."""
    started, training_s = time.perf_counter(), 0.0
    study = open_study(space, journal_file(folder / "plain.journal"), "plain")
    for _ in range(num_trials):
        trial = study.ask()
        config = space.config(space(trial))
        directory = RunDirectory(folder / f"plain {trial.number}")
        images = open_data(config.data)
        rows = train(config, images, directory, Observers(), torch.device("cpu"))
        study.tell(trial, float(rows[-1]["nmi"] or 0))
        training_s += sum(float(row["epoch_time_s"] or 0) for row in rows)
    return time.perf_counter() - started, training_s


def main() -> None:
    """Parse, run both, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=40, help="of a trial; 30 s or so are meant")
    args = parser.parse_args()
    tree = {
        "preset": "digits",
        "metric": "nmi",
        "scheduler": None,
        "fixed": {"schedule.epochs": args.epochs, "schedule.group_start": args.epochs // 2},
        "search": {"neighborhood.k1": {"int": [5, 20]}, "neighborhood.k": {"int": [5, 20]}},
    }
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        (folder / "space.yaml").write_text(yaml.safe_dump(tree))
        space = load_space(folder / "space.yaml")
        open_data(space.config().data)
        # What is compiled on first use is compiled for both.
        (folder / "warm").mkdir()
        plain_loop(load_space(folder / "space.yaml", {"seed": 1}), folder / "warm", 1)

        plain_s, plain_training_s = plain_loop(space, folder, args.trials)

        started = time.perf_counter()
        resources = WorkerResources()
        start(resources, dashboard=False)
        ray_s = time.perf_counter() - started
        directory = SearchDirectory(Folder(folder / "search"))
        directory.claim(space, resume=False)
        trials = run_search(
            space,
            directory,
            resources,
            WandbSettings("off"),
            Console(file=io.StringIO()),
            num_trials=args.trials,
            fingerprint=open_data(space.config().data).fingerprint,
            max_concurrent=1,
        )
        search_s = time.perf_counter() - started
        search_training_s = sum(trial.time_s for trial in trials)
        starts = trial_starts(directory)
    plain_share = plain_s / plain_training_s - 1
    search_share = search_s / search_training_s - 1
    print(f"training of a trial: {plain_training_s / args.trials:.1f} s")
    print(f"plain loop: {plain_s:.1f} s, {plain_share:.1%} beyond training")
    print(
        f"search: {search_s:.1f} s, {search_share:.1%} beyond training; Ray's start {ray_s:.1f} s"
    )
    print(f"difference: {search_share - plain_share:.1%}")
    print(f"from a trial's end to the next one's start: {', '.join(starts)}")


def trial_starts(directory: SearchDirectory) -> list[str]:
    """Seconds between a trial's last file and the writing of the next one's config."""
    runs = sorted((Path(directory.uri) / "trials").iterdir())
    found = []
    for run, following in itertools.pairwise(runs):
        ended = max(file.stat().st_mtime for file in run.rglob("*") if file.is_file())
        begun = (following / "config.yaml").stat().st_mtime
        found.append(f"{begun - ended:.2f} s")
    return found


if __name__ == "__main__":
    main()
