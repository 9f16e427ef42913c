"""What shared trunks save: the same search with and without them.

    python benchmarks/search_cost.py --space search_spaces/digits.yaml --trials 12

Runs the command twice with one seed and compares epochs trained, time and the best trial.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space_file import load_space
from conr_ray.searching.trial_table import Cost, read_trials
from conr_ray.storage.files import Folder


def main() -> None:
    """Parse, search twice, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="search_spaces/digits.yaml")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()
    print("| | epochs trained | epochs of all trials | wall time | best ACC | best NMI |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as root:
        for name, options in (("shared", []), ("unshared", ["--no-trunks"])):
            command = [sys.executable, "-m", "conr_ray.tune", "--space", args.space]
            command += ["--trials", str(args.trials), "--storage", root, "--name", name, *options]
            command += [word for setting in args.settings for word in ("--set", setting)]
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            wall_s = time.perf_counter() - started
            directory = SearchDirectory(Folder(Path(root) / name))
            space = load_space(Path(directory.uri) / "space.yaml")
            study = directory.open_study(space)
            trials = read_trials(study, space, directory.uri)
            cost = Cost.of(trials)
            best = {
                metric: max(t.figures[metric] or 0 for t in trials) for metric in ("acc", "nmi")
            }
            print(
                f"| {name} | {cost.epochs} | {cost.unshared_epochs} | {wall_s:.0f} s | "
                f"{best['acc']:.3f} | {best['nmi']:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
