"""Approximate search for neighbours: seconds, and how much of the exact lists it finds.

    OMP_NUM_THREADS=1 python benchmarks/probed_cells.py --vectors VECTORS.parquet --probes 4 8 16 32

VECTORS is a table as `python -m conr_ray.embed` writes it. The vectors are centred. Recall is the
share of a row's k exact neighbours that are found, of the nearest ones and of the contextual ones.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from many_vectors import reduced
from torch import Tensor

from conr_ray.cores import usable_cores
from conr_ray.method.neighbors.reranking import contextual_neighbors, euclidean_neighbors


def timed(search: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
    """Row numbers, and seconds."""
    began = time.perf_counter()
    _, rows_nk = search()
    return rows_nk, time.perf_counter() - began


def recall(found_nk: Tensor, exact_nk: Tensor) -> float:
    """Mean share of `exact_nk` that is in `found_nk`, but for the row itself."""
    both = torch.cat([found_nk[:, 1:], exact_nk[:, 1:]], 1).sort(1).values
    return float((both[:, 1:] == both[:, :-1]).sum() / exact_nk[:, 1:].numel())


def main() -> None:
    """Print a table, a row for each number of probes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", required=True, type=Path)
    parser.add_argument("--probes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--width", type=int, default=256, help="principal components")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or usable_cores()))
    rows_nd = reduced(args.vectors, args.width)
    print(f"{len(rows_nd):,} rows, {rows_nd.shape[1]} wide, {torch.get_num_threads()} threads\n")
    nearest = partial(euclidean_neighbors, rows_nd, k=50)
    contextual = partial(contextual_neighbors, rows_nd, k1=50, k2=5, k=20)
    # The first call compiles.
    euclidean_neighbors(rows_nd[:2000], k=5, probes=2)
    contextual_neighbors(rows_nd[:2000], k1=5, k2=2, k=5)
    near_nk, near_s = timed(nearest)
    context_nk, context_s = timed(contextual)
    print("| probes | nearest 50 | recall | contextual 20 of (50, 5) | recall |")
    print("| --- | --- | --- | --- | --- |")
    print(f"| exact | {near_s:.1f} s | 1 | {context_s:.1f} s | 1 |", flush=True)
    for probes in args.probes:
        found_nk, found_s = timed(partial(nearest, probes=probes))
        among_nk, among_s = timed(partial(contextual, probes=probes))
        print(
            f"| {probes} | {found_s:.1f} s | {recall(found_nk, near_nk):.3f} | "
            f"{among_s:.1f} s | {recall(among_nk, context_nk):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
