"""What runs and searches cost beyond their training: on Ray, against the same in one process.

    python benchmarks/orchestration.py search --trials 4 --epochs 40
    python benchmarks/orchestration.py run --rounds 5

A search is held against a plain Optuna loop. The same points are trained by both, one trial at a
time, without trunks. Overhead is wall time beyond the epochs' own, as a share of these; Ray's start
is in it, and printed apart.

A run of one worker is held against `--local`, each from shell to prompt, in turn.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
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
from conr_ray.searching.run_search import run_search
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.space_file import load_space
from conr_ray.searching.study import open_study
from conr_ray.searching.study_storage import journal_file
from conr_ray.storage.files import Folder
from conr_ray.tracking.wandb_settings import WandbSettings


@dataclass(frozen=True)
class RunTimes:
    """Seconds from shell to prompt, of the epochs, before the first and after the last of them."""

    total_s: float
    training_s: float
    before_s: float
    after_s: float


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


def measure_search(args: argparse.Namespace) -> None:
    """Run the search and the loop, print the figures."""
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


def command_times(folder: Path, *arguments: str) -> RunTimes:
    """Train a small run by the command, and take the time of what it prints."""
    epochs = 2
    settings = {
        "data.limit": 256,
        "schedule.epochs": epochs,
        "schedule.group_start": 1,
        "schedule.warmup_epochs": 1,
    }
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "conr_ray.train", "--preset", "digits", *words, *arguments]
    started, seen = time.perf_counter(), {}
    with subprocess.Popen(
        [*command, "--storage", str(folder), "--name", "run"],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), **os.environ, "WANDB_MODE": "disabled"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch "):
                seen[int(line.split()[1].partition("/")[0])] = time.perf_counter()
    ended = time.perf_counter()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} has ended with status {process.returncode}")
    rows = RunDirectory(folder / "run").metric_rows()
    first_s, training_s = (float(row["train_time_s"] or 0) for row in (rows[0], rows[-1]))
    before_s = seen[1] - started - first_s
    return RunTimes(ended - started, training_s, before_s, ended - seen[epochs])


def measure_run(args: argparse.Namespace) -> None:
    """Train on Ray and in the command's own process by turns, print a table of medians."""
    ways = {"--local": ["--local"], "on Ray, one worker": []}
    found: dict[str, list[RunTimes]] = {way: [] for way in ways}
    # What is read from the disk or compiled for the first time does not count.
    with tempfile.TemporaryDirectory() as root:
        command_times(Path(root), "--local")
    for _ in range(args.rounds):
        for way, arguments in ways.items():
            with tempfile.TemporaryDirectory() as root:
                found[way].append(command_times(Path(root), *arguments))
    print(
        f"{'medians, s':20}{'total':>9}{'epochs':>9}{'before':>9}{'after':>9}{'beyond epochs':>15}"
    )
    for way, rounds in found.items():
        columns = [*zip(*map(astuple, rounds), strict=True)]
        columns.append(tuple(times.total_s - times.training_s for times in rounds))
        figures = [statistics.median(column) for column in columns]
        print(f"{way:20}" + "".join(f"{f:9.2f}" for f in figures[:-1]) + f"{figures[-1]:15.2f}")
    beyond = [[times.total_s - times.training_s for times in found[way]] for way in ways]
    more = [on_ray - local for local, on_ray in zip(*beyond, strict=True)]
    each = ", ".join(f"{seconds:.1f}" for seconds in sorted(more))
    print(f"on Ray, beyond the epochs: {statistics.median(more):.1f} s more (rounds: {each})")


def main() -> None:
    """Parse, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(required=True)
    search = what.add_parser("search", help="against a plain Optuna loop")
    search.add_argument("--trials", type=int, default=4)
    search.add_argument("--epochs", type=int, default=40, help="of a trial; 30 s or so are meant")
    search.set_defaults(measure=measure_search)
    run = what.add_parser("run", help="against --local")
    run.add_argument("--rounds", type=int, default=5)
    run.set_defaults(measure=measure_run)
    args = parser.parse_args()
    args.measure(args)


if __name__ == "__main__":
    main()
