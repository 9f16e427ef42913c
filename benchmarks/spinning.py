"""How long waiting threads should look before they sleep: digits runs alone and two at once.

    python benchmarks/spinning.py     # 5 minutes

Each run is a process with a thread for each core, so that two at once have twice as many threads as
there are cores. Seconds are those of an epoch of the instance stage, medians over rounds of the
slowest run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from conr_ray.engine.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
POLICIES: dict[str, dict[str, str]] = {
    "OpenMP's default": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
}


def epoch_seconds(count: int, policy: dict[str, str], epochs: int) -> float:
    """Median epoch of the slowest of `count` runs that train at once."""
    command = [sys.executable, "-m", "conr_ray.train", "--local", "--preset", "digits"]
    command += ["--set", f"schedule.epochs={epochs}", "--set", "schedule.group_start=never"]
    command += ["--set", "schedule.warmup_epochs=1"]
    environment = {**os.environ, **policy, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    with tempfile.TemporaryDirectory() as folder:
        names = [f"run-{number}" for number in range(count)]
        runs = [
            subprocess.Popen(
                [*command, "--storage", folder, "--name", name],
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            for name in names
        ]
        if any([run.wait() for run in runs]):
            raise SystemExit(f"{' '.join(command)} has failed")
        found = [RunDirectory(f"{folder}/{name}").metric_rows() for name in names]
    # The first epoch compiles and reads.
    return max(
        statistics.median(float(row["train_time_s"] or 0) for row in rows[1:]) for rows in found
    )


def main() -> None:
    """Print a table of policies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):
        for name, policy in POLICIES.items():
            for count in (1, 2):
                seconds = epoch_seconds(count, policy, args.epochs)
                found.setdefault((name, count), []).append(seconds)
    print("| threads that wait | alone, s an epoch | two at once, s an epoch |")
    print("| --- | --- | --- |")
    for name in POLICIES:
        alone, two = (statistics.median(found[name, count]) for count in (1, 2))
        print(f"| {name} | {alone:.2f} | {two:.2f} |")


if __name__ == "__main__":
    main()
