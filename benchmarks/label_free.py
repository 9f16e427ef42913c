"""Do the label-free scores follow the accuracy? Spearman's correlation over varied runs.

    python benchmarks/label_free.py --preset digits --runs 24
    python benchmarks/label_free.py --searches runs/ablation_byol runs/ablation_k1_k2

Draws runs at random from a space that is wide in both stages, trains each from epoch 0, and
correlates every score of the last epoch with ACC. One process and one thread a run. What a folder
named by --out has already is not trained again, but scored again by this code. Or takes the
complete trials of searches that have ended.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from bank_quality import train_in
from scipy.stats import spearmanr

from conr_ray.cores import usable_cores


def drawn(number: int, config: Any) -> dict[str, Any]:
    """The fields of run `number`: learning, views and both stages are varied."""
    rng = random.Random(number)
    epochs, batch = config.schedule.epochs, config.optim.batch_size
    k1 = rng.choice([5, 10, 20, min(50, batch // 2)])
    return {
        "seed": number,
        "optim.lr": config.optim.lr * 10 ** rng.uniform(-1.5, 0.5),
        "optim.weight_decay": rng.choice([0.0, 1e-4, 5e-4, 2e-3]),
        "byol.momentum": rng.choice([0.9, 0.95, 0.99, 0.996]),
        "views.crop_scale": [rng.choice([0.2, 0.4, 0.6, 0.8]), 1.0],
        "views.jitter_probability": rng.choice([0.0, 0.8]),
        "views.brightness": rng.choice([0.1, 0.4]),
        "views.contrast": rng.choice([0.1, 0.4]),
        "neighborhood.kind": rng.choice(["contextual", "euclidean"]),
        "neighborhood.k1": k1,
        "neighborhood.k2": rng.choice([1, 2, min(6, k1)]),
        "neighborhood.k": rng.choice([5, 10, 20, min(50, batch // 2)]),
        "boundary.initial_fraction": rng.choice([0.5, 0.7, 0.9, 1.0]),
        "schedule.group_start": rng.choice(["never", epochs // 3, epochs // 2, epochs * 2 // 3]),
        "optim.group_stage_lr_factor": rng.choice([0.1, 0.3, 1.0]),
    }


def trained(preset: str, overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The last epoch's metrics of a run, the scores found from its last checkpoint."""
    name = folder / f"run_{overrides['seed']:03d}"
    return {**train_in(name, preset, overrides), **scored(name)}


def scored(folder: Path) -> dict[str, float]:
    """Clusters, scores and agreement after the last epoch of the run in `folder`, found anew."""
    import torch

    from conr_ray.config import from_yaml
    from conr_ray.data.inputs import make_inputs
    from conr_ray.data.store import open_data
    from conr_ray.engine.acceleration import Acceleration
    from conr_ray.engine.embedder import Embedder
    from conr_ray.engine.evaluation import cluster_data
    from conr_ray.engine.run_directory import RunDirectory
    from conr_ray.engine.training_state import TrainingState
    from conr_ray.method.keyed_random import fold

    directory, device = RunDirectory(folder), torch.device("cpu")
    epoch = directory.checkpoint_epochs()[-1]
    checkpoint = directory.load_checkpoint(epoch, device)
    config = from_yaml(checkpoint["config"], str(folder))
    images = open_data(config.data)
    state = TrainingState.create(config, images.row_shape, Acceleration(device))
    state.load(checkpoint, config, images.fingerprint)
    embedder = Embedder(
        state.framework,
        make_inputs(config, images, device),
        Acceleration(device),
    )
    clusters = config.clustering.num_clusters or images.num_classes
    assert isinstance(clusters, int), "set clustering.num_clusters"
    found = cluster_data(
        config, embedder, num_rows=images.num_rows, num_clusters=clusters, epoch=epoch, warm_cd=None
    )
    return found.metrics(
        images.labels, embedder, fold(config.seed, "scores", epoch), label_free=True
    )


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Correlations over runs of which `rows` are the last epochs' metrics."""
    from conr_ray.metric_names import LABEL_FREE_SCORES

    accuracies = [row["acc"] for row in rows]
    print(f"{title}, {len(rows)} runs, ACC {min(accuracies):.3f} to {max(accuracies):.3f}\n")
    print("| score | Spearman with ACC | with NMI | ACC of the run it chooses |")
    print("| --- | --- | --- | --- |")
    for name in LABEL_FREE_SCORES:
        scores = [row[name] for row in rows]
        with_acc = spearmanr(scores, accuracies).statistic
        with_nmi = spearmanr(scores, [row["nmi"] for row in rows]).statistic
        chosen = accuracies[scores.index(max(scores))]
        print(f"| {name} | {with_acc:.2f} | {with_nmi:.2f} | {chosen:.3f} |")


def main() -> None:
    """Parse, train the runs, print the table."""
    from conr_ray.config import load_preset, parse_overrides

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--processes", type=int, default=usable_cores())
    parser.add_argument("--out", help="folder that keeps the runs")
    parser.add_argument("--searches", nargs="+", help="folders of searches to look at instead")
    args = parser.parse_args()
    if args.searches:
        tables = [pq.read_table(f"{folder}/trials.parquet").to_pylist() for folder in args.searches]
        trials = [row for table in tables for row in table if row["state"] == "complete"]
        print_table("searches", trials)
        return
    fixed = parse_overrides(args.settings)
    # Scores of the last epoch alone are of interest.
    fixed |= {"checkpoint.every": 10_000, "evaluation.every": 10_000}
    config = load_preset(args.preset, fixed)
    runs = [
        {**fixed, **drawn(number, config)} for number in range(args.first, args.first + args.runs)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        one_run = partial(trained, args.preset, folder=Path(args.out or temporary))
        with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
            rows = list(pool.map(one_run, runs))
    print_table(args.preset, rows)


if __name__ == "__main__":
    main()
