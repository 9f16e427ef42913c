"""Whether memory and handles of a search grow with its trials: 500 that are as tiny as can be.

    python benchmarks/many_trials.py --trials 500        # about 10 minutes on 2 cores

Runs the command, and every few trials asks the system for the resident memory, the open files and
the threads of each of its processes that last. The slope is that of a line through the samples
after the first fifth of the trials, per 100 trials. Kinds with several processes are summed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from optuna.storages.journal import JournalFileBackend

ROOT = Path(__file__).resolve().parents[1]
SPACE: dict[str, Any] = {
    "preset": "digits",
    "metric": "nmi",
    "sampler": "random",
    "scheduler": None,
    "fixed": {
        "data.limit": 40,
        "model.widths": [4, 4],
        "model.head_hidden_dim": 8,
        "model.embedding_dim": 4,
        "optim.batch_size": 20,
        "bank.size": 0,
        "schedule.epochs": 1,
        "schedule.group_start": "never",
        "schedule.warmup_epochs": 0,
        "clustering.restarts": 1,
        "evaluation.neighbors": False,
        # All embeddings of so small networks are alike.
        "evaluation.on_collapse": "warn",
    },
    "search": {"optim.lr": {"float": [0.01, 0.1]}},
}
# Parts of the command lines of processes that last.
KINDS = {"actors": "ray::", "raylet": "raylet/raylet", "head": "gcs_server"}
SAMPLED_EVERY = 10
Sample = tuple[float, int, int]


def kind_of(process: psutil.Process, driver: int) -> str | None:
    """What a process is; None if it does not matter here."""
    if process.pid == driver:
        return "driver"
    line = " ".join(process.cmdline())
    return next((kind for kind, part in KINDS.items() if part in line), None)


def sample(driver: psutil.Process) -> dict[str, Sample]:
    """MiB, open files and threads of each kind of process."""
    found: defaultdict[str, list[Sample]] = defaultdict(list)
    for process in [driver, *driver.children(recursive=True)]:
        try:
            if kind := kind_of(process, driver.pid):
                with process.oneshot():
                    memory = process.memory_info().rss / 2**20
                    found[kind].append((memory, process.num_fds(), process.num_threads()))
        except psutil.Error:
            continue
    columns = {kind: list(zip(*samples, strict=True)) for kind, samples in found.items()}
    return {kind: (sum(m), sum(f), sum(t)) for kind, (m, f, t) in columns.items()}


def ended(journal: Path) -> int:
    """Trials of the study that have ended."""
    if not journal.exists():
        return 0
    entries = JournalFileBackend(str(journal)).read_logs(0)
    # Optuna's code of the operation that sets a state, and its codes of ended ones.
    return sum(e["op_code"] == 6 and e.get("state") in (1, 2, 3) for e in entries)


def main() -> None:
    """Run, sample, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=500)
    args = parser.parse_args()
    samples: defaultdict[str, list[tuple[int, Sample]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder, "space.yaml")
        space.write_text(yaml.safe_dump(SPACE))
        command = [sys.executable, "-m", "conr_ray.tune", "--space", str(space)]
        command += ["--trials", str(args.trials), "--storage", folder, "--name", "search"]
        environment = {**os.environ, "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        driver, last = psutil.Process(process.pid), 0
        while process.poll() is None:
            count = ended(Path(folder, "search", "study.journal"))
            if count >= last + SAMPLED_EVERY:
                last = count
                for kind, one in sample(driver).items():
                    samples[kind].append((count, one))
            time.sleep(0.5)
        wall_s = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(f"the search has ended with status {process.returncode}")
    print(f"{args.trials} trials in {wall_s:.0f} s")
    print("| process | MiB | per 100 trials | files | per 100 | threads | per 100 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind, found in samples.items():
        known = [(count, one) for count, one in found if count > args.trials / 5]
        counts = np.array([count for count, _ in known]) / 100
        columns = np.array([one for _, one in known], dtype=float)
        cells = []
        for values in columns.T:
            slope = np.polyfit(counts, values, 1)[0]
            cells.append(f"{values[0]:.0f} to {values[-1]:.0f} | {slope:+.2f}")
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
