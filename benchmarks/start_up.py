"""How long commands take until they are at work, beside `import torch`, and what a report needs.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --search runs/digits-20261128-120000 --rounds 9

Each round starts every command once, in turn, in an empty folder; a ratio is that of the medians.
The first round, which reads files from the disk, does not count. Without --search the report is
that of a search of 40 trials that is made here, without training.
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

ROOT = Path(__file__).resolve().parents[1]
# Makes the search in a process of its own: what this one holds would count as its children's.
MADE = """
import sys
from pathlib import Path
from tests.reporting.made_searches import make_search
make_search(Path(sys.argv[1]), ("complete",) * 30 + ("stopped",) * 10, epochs=100, start=60)
"""


def measured(arguments: list[str], folder: str) -> tuple[float, float]:
    """Seconds and peak MiB of a Python with these arguments."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    time_s = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} has ended with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time_s, usage.ru_maxrss * unit / 2**20


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--search", metavar="DIR", help="a finished search")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        search = str(Path(args.search or Path(folder, "search")).absolute())
        if args.search is None:
            subprocess.run([sys.executable, "-c", MADE, search], cwd=ROOT, check=True)
        spaces = ROOT / "search_spaces"
        commands = {
            "import torch": ["-c", "import torch"],
            "train --help": ["-m", "conr_ray.train", "--help"],
            "tune --help": ["-m", "conr_ray.tune", "--help"],
            "report --help": ["-m", "conr_ray.report", "--help"],
            "tune --plan, cifar100": [
                *("-m", "conr_ray.tune", "--plan"),
                *("--space", str(spaces / "cifar100.yaml")),
            ],
            "report of a search": [
                *("-m", "conr_ray.report", search),
                *("--out", str(Path(folder, "report.html"))),
            ],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(args.rounds + 1):
            for name, arguments in commands.items():
                found[name].append(measured(arguments, folder))
    medians_s = {
        name: statistics.median(time_s for time_s, _ in rounds[1:])
        for name, rounds in found.items()
    }
    print(f"{'':24}{'median s':>9}{'x torch':>9}{'peak MiB':>10}")
    for name, median_s in medians_s.items():
        peak_mib = max(peak for _, peak in found[name][1:])
        ratio = median_s / medians_s["import torch"]
        print(f"{name:24}{median_s:9.2f}{ratio:9.2f}{peak_mib:10.0f}")


if __name__ == "__main__":
    main()
