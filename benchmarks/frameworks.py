"""Each framework alone against itself with the contextual group stage, from the same trunk.

    python benchmarks/frameworks.py --preset digits

Runs are whole runs of a preset, one process and one thread each, as many at a time as there are
cores. ACC and NMI are those of the last epoch, mean and deviation over seeds; the gain is that of
pairs of the same seed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from conr_ray.cores import usable_cores

FIGURES = ("acc", "nmi")


def pair(preset: str, overrides: dict[str, Any]) -> list[dict[str, Any]]:
    """Last rows of a framework alone and of its fork with a group stage."""
    import torch

    from conr_ray.config import load_preset
    from conr_ray.data.store import open_data
    from conr_ray.engine.loop import train
    from conr_ray.engine.observer import Observers
    from conr_ray.engine.run_directory import RunDirectory
    from conr_ray.engine.span import Span

    torch.set_num_threads(1)
    device = torch.device("cpu")
    grouped = load_preset(preset, overrides)
    alone = load_preset(preset, {**overrides, "schedule.group_start": "never"})
    start, data = grouped.group_start_epoch, open_data(grouped.data)
    assert start is not None, "the preset has no group stage"
    with tempfile.TemporaryDirectory() as folder:
        trunk = RunDirectory(f"{folder}/alone")
        # Kept: the fork begins with its checkpoint.
        span = Span(pinned=frozenset({start}))
        rows = [train(alone, data, trunk, Observers(), device, span)[-1]]
        fork = RunDirectory(f"{folder}/grouped")
        span = Span(origin=(trunk, start))
        rows.append(train(grouped, data, fork, Observers(), device, span)[-1])
    return [dict(row) for row in rows]


def main() -> None:
    """Parse, run all frameworks and seeds, print the table."""
    from conr_ray.config import parse_overrides
    from conr_ray.method.frameworks import framework_names

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    names = framework_names()
    parser.add_argument("--frameworks", nargs="+", choices=names, default=list(names))
    args = parser.parse_args()
    settings = parse_overrides(args.settings)
    jobs = {
        (name, seed): {**settings, "model.framework": name, "seed": seed}
        for name in args.frameworks
        for seed in range(args.seeds)
    }
    print("| framework | alone: ACC, NMI | with the group stage: ACC, NMI | gain in ACC, NMI |")
    print("| --- | --- | --- | --- |", flush=True)
    with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool:
        found = {job: pool.submit(pair, args.preset, fields) for job, fields in jobs.items()}
        for name in args.frameworks:
            pairs = [found[name, seed].result() for seed in range(args.seeds)]
            alone, grouped = (
                ", ".join(_spread([float(rows[which][f]) for rows in pairs]) for f in FIGURES)
                for which in (0, 1)
            )
            gains = ", ".join(
                _spread([float(after[f]) - float(before[f]) for before, after in pairs], sign="+")
                for f in FIGURES
            )
            print(f"| {name} | {alone} | {grouped} | {gains} |", flush=True)


def _spread(values: list[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
