"""Clustering heads on more and more vectors: seconds of each stage, and memory.

    python benchmarks/many_vectors.py --vectors VECTORS.parquet --counts 62500 125000 250000
    python benchmarks/many_vectors.py --vectors VECTORS.parquet --counts 1000000 --probes 32

VECTORS is a table as `python -m conr_ray.embed` writes it. Its vectors are reduced to --width
principal components, repeated and jittered (noise of a tenth of their deviation) until there are
as many as asked for. Each count is a run of preset photos' heads in a process of its own: how long
finding contextual neighbours takes, an epoch of the heads, and clustering all, by the clock and of
the cores; and the most memory that the process held.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from conr_ray.config import RunConfig, build, load_preset
from conr_ray.cores import usable_cores
from conr_ray.data.store import open_data
from conr_ray.engine.run import Run
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import WHOLE

_ROWS = 65536


def write_table(file: Path, real_nd: torch.Tensor, count: int) -> None:
    """A table of `count` vectors, written in parts."""
    generator = torch.Generator().manual_seed(0)
    width, scale = real_nd.shape[1], float(real_nd.std()) / 10
    schema = pa.schema([("embedding", pa.list_(pa.float32(), width))])
    with pq.ParquetWriter(file, schema) as writer:
        for first in range(0, count, _ROWS):
            rows = torch.arange(first, min(first + _ROWS, count)) % len(real_nd)
            noise = torch.randn(len(rows), width, generator=generator)
            flat = (real_nd[rows] + scale * noise).numpy().ravel()
            column = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
            writer.write_table(pa.table([column], schema=schema))


def reduced(file: Path, width: int) -> torch.Tensor:
    """The principal components of a table's vectors, (n, width)."""
    column = pq.read_table(file, columns=["embedding"])["embedding"].combine_chunks()
    rows_nd = torch.from_numpy(np.array(column.flatten()).reshape(len(column), -1))
    rows_nd = rows_nd - rows_nd.mean(0)
    axes: torch.Tensor = torch.linalg.eigh(rows_nd.T @ rows_nd).eigenvectors[:, -width:]
    return rows_nd @ axes


def config_of(file: Path, clusters: int, probes: int | None) -> RunConfig:
    """The heads of preset photos on a table of vectors, for one epoch."""
    tree = load_preset("photos").model_dump(mode="json")
    tree["data"] = {"source": "vectors", "path": str(file), "label_column": None}
    tree["model"] = {"framework": "heads", "backbone": "identity"}
    tree["clustering"] = {"num_clusters": clusters}
    tree["neighborhood"]["probes"] = probes
    tree["schedule"] = {**tree["schedule"], "epochs": 1, "warmup_epochs": 0}
    tree["evaluation"] = {"neighbors": False}
    return build({name: tree[name] for name in tree if name != "views"})


def measure(file: Path, clusters: int, probes: int | None) -> dict[str, float]:
    """Seconds and MiB of one run."""
    config = config_of(file, clusters, probes)
    data = open_data(config.data, file.parent / "cache")
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        started, computed = time.perf_counter(), time.process_time()
        work()
        seconds[name] = time.perf_counter() - started
        seconds[f"{name} cpu"] = time.process_time() - computed

    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, data, RunDirectory(folder), torch.device("cpu"), WHOLE)
        with run.acceleration.applied():
            trained, stage = run.state.trained_module(), run.stage_at(0)
            timed("neighbours", lambda: run.prepare(stage, 0))

            def epoch() -> None:
                for index, step in enumerate(map(stage.paired, run.steps(0))):
                    batches = zip(run.batches(step), run.view_keys(0, index), strict=True)
                    views = [
                        run.inputs.random(batch, key, step.positions_b, mild=True)
                        for batch, key in batches
                    ]
                    loss, _ = stage.loss(run.state.framework, trained(views, step), step)
                    run.state.optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    run.schedule.set_learning_rates(run.state.optimizer, 0, index)
                    run.state.optimizer.step()

            timed("epoch", epoch)
            timed("clustering", lambda: run.evaluate({}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**seconds, "peak": peak}


def main() -> None:
    """Print a table, a row for each count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", required=True, type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[62_500, 125_000, 250_000])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--probes", type=int, help="neighborhood.probes (default: exact search)")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(measure(args.vectors, args.clusters, args.probes)))
        return
    print(f"{args.threads} threads, {args.width} wide, {args.clusters} clusters\n")
    print("| vectors | neighbours | an epoch | clustering | peak memory |")
    print("| --- | --- | --- | --- | --- |")
    real_nd = reduced(args.vectors, args.width)
    with tempfile.TemporaryDirectory() as folder:
        for count in args.counts:
            file = Path(folder) / f"{count}.parquet"
            write_table(file, real_nd, count)
            words = [sys.executable, __file__, "--vectors", str(file), "--one"]
            words += ["--clusters", str(args.clusters), "--threads", str(args.threads)]
            words += ["--probes", str(args.probes)] if args.probes else []
            told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            found = json.loads(told.splitlines()[-1])
            stages = ("neighbours", "epoch", "clustering")
            times = " | ".join(f"{found[n]:.0f} s, {found[f'{n} cpu']:.0f} s" for n in stages)
            print(f"| {count:,} | {times} | {found['peak']:,.0f} MiB |", flush=True)
            file.unlink()


if __name__ == "__main__":
    main()
