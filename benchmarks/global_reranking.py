"""Re-ranking of a whole data set against its own search, faiss and the dense formulation.

    python benchmarks/global_reranking.py --parquet fashion_mnist.parquet

Embeddings are 128 principal components of Fashion-MNIST's training images to unit length; beyond
60,000 rows, copies with noise. Times are medians of alternating repeats in one process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method.neighbors.reranking import contextual_neighbors, euclidean_neighbors

SIZES = (10_000, 30_000, 60_000, 120_000, 240_000)


def embeddings(parquet: Path, num_rows: int, width: int = 128) -> Tensor:
    """(n, d) float32 of unit length."""
    images = pq.read_table(parquet, columns=["image"]).slice(0, 60_000)["image"].to_pylist()
    pixels = np.frombuffer(b"".join(images), np.uint8).reshape(len(images), -1)
    rows_np = torch.from_numpy(pixels.astype(np.float32) / 255)
    rows_np -= rows_np.mean(0)
    axes = torch.linalg.eigh(rows_np.T @ rows_np).eigenvectors[:, -width:]
    rows_nd = rows_np @ axes
    copies = -(-num_rows // len(rows_nd))
    noise = torch.Generator().manual_seed(0)
    spread = 0.2 * rows_nd.std()
    parts = [rows_nd]
    for _ in range(copies - 1):
        parts.append(rows_nd + spread * torch.randn(rows_nd.shape, generator=noise))
    return normalize(torch.cat(parts)[:num_rows])


def dense_contextual(rows_nd: Tensor, k1: int, k2: int, k: int) -> Tensor:
    """Contextual neighbours by three n x n matrices and a full sort."""
    similarities_nn = rows_nd @ rows_nd.T
    order_nn = similarities_nn.argsort(dim=1, descending=True)
    features_nn = torch.zeros_like(similarities_nn).scatter_(1, order_nn[:, :k1], 1.0)
    for _ in range(0 if k2 == 1 else 2):
        both_nn = features_nn + features_nn.T
        features_nn = torch.zeros_like(both_nn)
        for place in range(k2):
            near_n1 = order_nn[:, place : place + 1]
            weights_n1 = similarities_nn.gather(1, near_n1) ** 2
            features_nn += weights_n1 * both_nn[near_n1.squeeze(1)]
        features_nn = normalize(features_nn)
    return (features_nn @ features_nn.T).argsort(dim=1, descending=True)[:, :k]


def seconds(call: Callable[[], Any]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def search_and_total(rows_nd: Tensor, repeats: int, **counts: Any) -> tuple[float, float]:
    """Median times of the exact search alone and of the whole re-ranking."""
    pairs = [
        (
            seconds(lambda: euclidean_neighbors(rows_nd, k=counts["k1"])),
            seconds(lambda: contextual_neighbors(rows_nd, **counts)),
        )
        for _ in range(repeats)
    ]
    search_s, total_s = (statistics.median(times) for times in zip(*pairs, strict=True))
    return search_s, total_s


def _peak_over_input(parquet: Path, num_rows: int) -> float:
    """GiB by which memory peaks above what it was with the input in it; in a fresh process."""
    rows_nd = embeddings(parquet, num_rows)
    contextual_neighbors(rows_nd[:500], k1=10, k2=2, k=10)
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    now = pages * resource.getpagesize() // 1024
    contextual_neighbors(rows_nd, k1=10, k2=2, k=10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # A peak below that of making the input is at most that one.
    return (max(peak, peak_before) - now) / 2**20


def main() -> None:
    """Parse, measure, print, draw."""
    import faiss

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parquet", type=Path, required=True, help="fashion_mnist.parquet")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--figure", type=Path, help="draw the cost curve into this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    rows_nd = embeddings(args.parquet, max(60_000, *args.sizes))
    # Compiles.
    contextual_neighbors(rows_nd[:2000], k1=20, k2=6, k=10)

    def faiss_search(part_nd: Tensor, k: int) -> None:
        index = faiss.IndexFlatIP(part_nd.shape[1])
        index.add(part_nd.numpy())
        index.search(part_nd.numpy(), k)

    print("| 60,000 x 128 | search | total | total/search | faiss search | total/faiss |")
    print("| --- | --- | --- | --- | --- | --- |")
    part_nd = rows_nd[:60_000]
    for k1, k2 in ((10, 2), (20, 6)):
        search_s, total_s = search_and_total(part_nd, args.repeats, k1=k1, k2=k2, k=10)
        peer_s = statistics.median(
            seconds(partial(faiss_search, part_nd, k1)) for _ in range(args.repeats)
        )
        print(
            f"| k1={k1} k2={k2} k=10 | {search_s:.2f} s | {total_s:.2f} s | "
            f"{total_s / search_s:.2f} | {peer_s:.2f} s | {total_s / peer_s:.2f} |"
        )
    with get_context("spawn").Pool(1) as pool:
        peak_gib = pool.apply(_peak_over_input, (args.parquet, 60_000))
    print(f"\npeak memory over the input, 60,000 x 128: {peak_gib:.2f} GiB")

    small_nd = rows_nd[:10_000]
    dense_s = seconds(lambda: dense_contextual(small_nd, 10, 2, 10))
    _, ours_s = search_and_total(small_nd, args.repeats, k1=10, k2=2, k=10)
    print(
        f"10,000 x 128: dense {dense_s:.1f} s, ours {ours_s:.3f} s: {dense_s / ours_s:.0f} x\n",
        flush=True,
    )

    print("| n | search | re-ranking | search / n^2, ns | re-ranking / n, us |")
    print("| --- | --- | --- | --- | --- |")
    curve = []
    for size in args.sizes:
        repeats = args.repeats if size <= 60_000 else 1
        search_s, total_s = search_and_total(rows_nd[:size], repeats, k1=10, k2=2, k=10)
        rest_s = total_s - search_s
        curve.append((size, search_s, rest_s))
        print(
            f"| {size:,} | {search_s:.2f} s | {rest_s:.2f} s | {search_s / size**2 * 1e9:.2f} | "
            f"{rest_s / size * 1e6:.1f} |",
            flush=True,
        )
    if args.figure:
        draw(curve, args.figure)


def draw(curve: list[tuple[int, float, float]], file: Path) -> None:
    """Time of the search and of what follows it over the number of rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes, search_s, rest_s = (np.array(column) for column in zip(*curve, strict=True))
    figure, axes = pyplot.subplots(figsize=(7, 3.8))
    for times, power, color, name in (
        (search_s, 2, "#d97706", "exact search"),
        (rest_s, 1, "#2563eb", "contexts and scores"),
    ):
        axes.loglog(sizes, times, "o-", color=color)
        guide = times[0] * (sizes / sizes[0]) ** power
        axes.loglog(sizes, guide, ":", color=color, linewidth=1)
        axes.text(sizes[-1] * 1.08, times[-1], name, color=color, va="center")
    axes.set(xlabel="rows", ylabel="seconds", title="Global re-ranking (dotted: n squared, n)")
    axes.set_xticks(sizes, [f"{size // 1000}k" for size in sizes], minor=False)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.subplots_adjust(right=0.78)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
