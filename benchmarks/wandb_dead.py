"""What a W&B that does not answer costs a search of 40 trials of about a second.

    python benchmarks/wandb_dead.py --rounds 3       # about 2 minutes a round on 2 cores

Runs the command with W&B switched off, and with a server that refuses connections, in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from many_trials import ROOT, SPACE

WAYS = {
    "off": {"WANDB_MODE": "disabled"},
    "dead": {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40},
}
# The network is as tiny as in the search of 500 trials; so many epochs take about a second.
EPOCHS = 12


def search_s(way: str, trials: int, folder: Path) -> tuple[float, str]:
    """Seconds that the command takes, and the lines that it says of W&B."""
    fixed = {**SPACE["fixed"], "schedule.epochs": EPOCHS}
    space = Path(folder, "space.yaml")
    space.write_text(yaml.safe_dump({**SPACE, "fixed": fixed}))
    command = [sys.executable, "-m", "conr_ray.tune", "--space", str(space)]
    command += ["--trials", str(trials), "--storage", str(folder), "--name", "search"]
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **WAYS[way]}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    taken_s = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"the search has ended with status {done.returncode}: {done.stderr}")
    said = [line for line in (done.stdout + done.stderr).splitlines() if "W&B" in line]
    return taken_s, "; ".join(said)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(args.rounds):
        # Which comes first changes, as may how busy the machine is.
        for way in list(WAYS)[:: 1 - 2 * (number % 2)]:
            with tempfile.TemporaryDirectory() as folder:
                taken_s, said = search_s(way, args.trials, Path(folder))
            times[way].append(taken_s)
            print(f"{way}: {taken_s:.1f} s; of W&B it says: {said or 'nothing'}", flush=True)
    off_s, dead_s = (statistics.median(times[way]) for way in WAYS)
    print(f"{args.trials} trials: off {off_s:.1f} s, dead {dead_s:.1f} s: {dead_s - off_s:+.1f} s")


if __name__ == "__main__":
    main()
