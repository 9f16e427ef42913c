"""What share of samples keeps the number of its cluster, as samples are added or seeds change.

    python benchmarks/stable_ids.py cifar10.parquet fashion_mnist.parquet
    python benchmarks/stable_ids.py cifar10.parquet --heads

A table has a column `embedding`, a list of floats, and `label`, as `python -m conr_ray.embed`
writes it; labels tell the number of clusters and nothing else. The first 80% of the rows are
clustered; then all of them. *Unmatched* is the share of the rows in both that have the same number
as they come; *matched* is that after numbers follow the earlier clusters
(`conr_ray.method.clustering.numbering`), which is all that `--ids-of` can give.

Of k-means (vectors centred by the mean of the first 80%), all rows are clustered anew; or it goes
on from the centres of the first, until they rest; or for one step, which is what `recluster
--extend` does; or rows are put to the nearest of the old centres, as `predict` does.

With --heads, runs of the preset `photos` on the vectors: anew with `clustering.ids_of`, extended as
by `recluster --extend`, and with another seed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.config import load_preset, override
from conr_ray.data.store import open_data
from conr_ray.engine.earlier_clusters import EarlierClusters
from conr_ray.engine.extend import extend, extended_config
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.method.clustering.metrics import agreement
from conr_ray.method.clustering.numbering import counts_of, numbers_of

Ints = npt.NDArray[np.int64]
FIRST_SHARE = 0.8
Shares = tuple[float, float]


def shares(before_n: Ints, now_n: Ints, number: int) -> Shares:
    """Shares of rows in both with the same number: as it comes, and after matching."""
    count = min(len(before_n), len(now_n))
    before, now = before_n[:count], now_n[:count]
    counts_ac = counts_of(before, now, number, number)
    numbers_c = numbers_of(counts_ac, range(number), number)
    return float((before == now).mean()), float((before == numbers_c[now]).mean())


def by_kmeans(rows_nd: Tensor, labels_n: Ints, seed: int) -> dict[str, tuple[Shares, float]]:
    """For each way to cluster all rows, the shares, and ACC."""
    number, first = len(np.unique(labels_n)), round(FIRST_SHARE * len(rows_nd))
    centred_nd = normalize(rows_nd - rows_nd[:first].mean(0))

    def clustered(count: int, seed: int, **more: Any) -> Any:
        return spherical_kmeans(centred_nd[:count], count, number, seed=seed, restarts=10, **more)

    begun = clustered(first, seed)
    anew = clustered(len(rows_nd), seed)
    on = {"seed": seed, "restarts": 0, "warm_cd": begun.centers_cd}
    rested = spherical_kmeans(centred_nd, len(rows_nd), number, **on)
    step = spherical_kmeans(centred_nd, len(rows_nd), number, max_iterations=1, **on)
    nearest_n = (centred_nd @ begun.centers_cd.T).argmax(1)
    other = clustered(len(rows_nd), seed + 1000)
    pairs = {
        "80%, then all anew": (begun.labels_b, anew.labels_b),
        "80%, then on from its centres, until they rest": (begun.labels_b, rested.labels_b),
        "80%, then one step of its centres (`--extend`)": (begun.labels_b, step.labels_b),
        "80%, then the nearest of its centres (`predict`)": (begun.labels_b, nearest_n),
        "all, then all with another seed": (anew.labels_b, other.labels_b),
    }
    return {
        name: (shares(a.numpy(), b.numpy(), number), agreement(labels_n, b.numpy())["acc"])
        for name, (a, b) in pairs.items()
    }


def by_heads(few: str, whole: str, number: int, seed: int) -> dict[str, tuple[Shares, float]]:
    """The same of runs."""
    vectors = {"data.source": "vectors", "model.backbone": "identity", "model.weights": "hub"}
    vectors |= {"model.train": "all", "tracking.wandb": "off"}
    fields = {**vectors, "data.path": few, "seed": seed, "evaluation.neighbors": False}
    config = load_preset("photos", {**fields, "clustering.num_clusters": number})
    with tempfile.TemporaryDirectory() as folder:
        places = {name: RunDirectory(f"{folder}/{name}") for name in ("a", "b", "c", "d")}

        def trained(name: str, **changes: Any) -> None:
            dotted = {field.replace("__", "."): value for field, value in changes.items()}
            own = override(config, dotted)
            places[name].claim(own, resume=False)
            device = torch.device("cpu")
            train(own, open_data(own.data), places[name], Observers(), device)

        trained("a")
        trained("b", data__path=whole, clustering__ids_of=places["a"].uri)
        trained("c", data__path=whole, seed=seed + 1000, clustering__ids_of=places["b"].uri)
        longer = extended_config(TrainedRun.load(places["a"]), whole)
        places["d"].claim(longer, resume=False)
        extend(places["a"], longer, open_data(longer.data), places["d"], torch.device("cpu"))
        pairs = {
            "80%, then all anew": ("a", "b"),
            "80%, then `--extend`": ("a", "d"),
            "all, then all with another seed": ("b", "c"),
        }
        found: dict[str, tuple[Shares, float]] = {}
        for name, (one, two) in pairs.items():
            before, now = (EarlierClusters.read(places[place]) for place in (one, two))
            count = min(len(before.clusters_m), len(now.clusters_m))
            same = float((before.clusters_m[:count] == now.clusters_m[:count]).mean())
            found[name] = (float("nan"), same), float(places[two].metric_rows()[-1]["acc"] or 0)
        return found


def main() -> None:
    """Print a table for each data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vectors", nargs="+", help="Parquet files with embedding and label")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--heads", action="store_true", help="runs instead of k-means")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    for path in args.vectors:
        table = pq.read_table(path, columns=["embedding", "label"])
        flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        rows_nd = torch.from_numpy(np.array(flat, np.float32).reshape(len(table), -1))
        labels_n: Ints = np.unique(table["label"].to_numpy(), return_inverse=True)[1]
        number, found = len(np.unique(labels_n)), []
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            if args.heads:
                few = f"{folder}/first.parquet"
                pq.write_table(table.slice(0, round(FIRST_SHARE * len(table))), few)
            for seed in range(args.seeds):
                if args.heads:
                    found.append(by_heads(few, str(Path(path).absolute()), number, seed))
                else:
                    found.append(by_kmeans(rows_nd, labels_n, seed))
                print(f"seed {seed}: {time.process_time() - began:.0f} s of one core", flush=True)
        kind = "heads" if args.heads else "k-means"
        print(f"| {Path(path).stem}, {len(table):,} rows, {kind} | unmatched | matched | ACC |")
        print("| --- | --- | --- | --- |")
        for name in found[0]:
            cells = []
            for values in zip(*((*one[name][0], one[name][1]) for one in found), strict=True):
                spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
                cells.append(
                    "-" if np.isnan(values).any() else f"{np.mean(values):.3f} ± {spread:.3f}"
                )
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
