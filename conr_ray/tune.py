"""`python -m conr_ray.tune`: search CoNR's hyper-parameters."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from conr_ray.command_line import (
    absolute_data_path,
    directory_uri,
    make_console,
    make_parser,
    resumable,
    run_command,
)
from conr_ray.config import parse_overrides
from conr_ray.errors import UserError
from conr_ray.scaling.cluster import connect, default_resources
from conr_ray.search.run_search import SearchDirectory, check_search, run_search
from conr_ray.search.space import SearchSpace, load_space
from conr_ray.search.trial_table import Trial, best_trial, to_rich
from conr_ray.tracking.wandb_run import WandbSettings, wandb_mode


def main(arguments: Sequence[str]) -> None:
    """Parse, search, print the table."""
    args = _parser().parse_args(arguments)
    fixed = parse_overrides(args.settings)
    space = load_space(args.space, fixed)
    if "data.path" not in space.search:
        space = load_space(args.space, {**fixed, **absolute_data_path(space.config())})
    num_trials = space.trials if args.trials is None else args.trials
    if num_trials < 1:
        raise UserError(f"--trials {num_trials}: a search needs 1 or more")
    uri = directory_uri(args, Path(args.space).stem)
    if "://" in uri:
        raise UserError(f"--storage {args.storage}: a search needs a folder that all nodes see")
    directory = SearchDirectory(Path(uri))
    directory.check(space, resume=args.resume)
    check_search(space, args.workers)
    mode, note = wandb_mode(space.config().tracking)
    # A core for each worker, so that as many trials as possible run side by side.
    resources = default_resources(args.workers, cpus_per_worker=1)
    connect(resources, dashboard=args.workers > 1)
    directory.claim(space, resume=args.resume)

    console = make_console()
    console.print(f"search directory: {directory.path}", soft_wrap=True)
    if note:
        console.print(note, soft_wrap=True)
    with resumable(uri):
        trials = run_search(
            space, directory, resources, WandbSettings(mode), console, num_trials=num_trials
        )
    _print_result(space, directory, trials, console)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("tune", "Search CoNR's hyper-parameters.")
    parser.add_argument("--space", required=True, help="a file of search_spaces/, or your own")
    parser.add_argument("--trials", type=int, help="number of trials (the space's)")
    parser.add_argument("--workers", type=int, default=1, help="workers of each trial (1)")
    return parser


def _print_result(
    space: SearchSpace, directory: SearchDirectory, trials: list[Trial], console: Console
) -> None:
    console.print(to_rich(trials, space))
    best = best_trial(trials)
    assert best is not None
    names = ("acc", "nmi", "ari", "silhouette")
    known = ((name, best.figures[name]) for name in names)
    figures = "  ".join(f"{name.upper()} {v:.4f}" for name, v in known if v is not None)
    console.print(
        f"best: trial {best.number}, {figures}\n"
        f"train it: python -m conr_ray.train --config {directory.path}/best.yaml",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main)
