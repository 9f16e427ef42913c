"""The recipe in a given number of minutes: its curve, assignments and weights."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from conr_ray.config import RunConfig, load_preset, override
from conr_ray.data.store import DataSet, open_data
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.evaluation import DataClustering, cluster_data
from conr_ray.engine.loop import train
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observers
from conr_ray.engine.precision import best_precision
from conr_ray.engine.run_directory import RunDirectory
from on_gpu.paths import small_config
from on_gpu.stepper import Stepper, step_of
from on_gpu.times import _seconds

# Of the time given, kept for compiling, checkpoints and the end.
_RESERVE = 0.2
_PIECE_BYTES = 15 * 2**20
_CHECKPOINTS = 8


def train_for(args: argparse.Namespace, device: torch.device) -> None:
    """Train `args.preset` in `args.minutes`, and print the last figures."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        config = _config(args, Path(folder))
        data = open_data(config.data)
        instance_s = _epoch_seconds(config, data, device, grouped=False)
        group_s = _epoch_seconds(config, data, device, grouped=True)
        left_s = (60 * args.minutes - (time.monotonic() - started)) * (1 - _RESERVE)
        config = fitted(config, left_s, instance_s, group_s)
        schedule = config.schedule
        print(
            f"{instance_s:.2f} and {group_s:.2f} s an epoch: {schedule.epochs} epochs", flush=True
        )
        directory = RunDirectory(Path(folder) / "run")
        directory.claim(config, resume=False)
        (args.out / "config.yaml").write_text(config.to_yaml())
        # A rehearsal ends where it should, however busy its machine is.
        deadline = math.inf if args.tiny else started + 60 * args.minutes
        curve = _Curve(args.out, directory, deadline, schedule.epochs)
        try:
            train(config, data, directory, curve, device)
        except KeyboardInterrupt:
            print("the time was up before the last epoch", flush=True)
        curve.bring_back()
    told = ("epoch", "acc", "nmi", "ari", "train_time_s")
    print(json.dumps({name: curve.rows[-1].get(name) for name in told}))


def fitted(config: RunConfig, seconds: float, instance_s: float, group_s: float) -> RunConfig:
    """`config` with its epochs scaled to `seconds`, in the proportions of its schedule."""
    schedule = config.schedule
    start = schedule.epochs if schedule.group_start == "never" else schedule.group_start
    share = start / schedule.epochs
    epochs = max(3, int(seconds / (share * instance_s + (1 - share) * group_s)))
    scale = epochs / schedule.epochs
    changed: dict[str, Any] = {
        "schedule.epochs": epochs,
        "schedule.warmup_epochs": round(schedule.warmup_epochs * scale),
        "schedule.relax_epochs": round(schedule.relax_epochs * scale),
        # Of two that fall on one epoch, the later one counts.
        "views.sizes": tuple(
            {round(first * scale): size for first, size in config.views.sizes}.items()
        ),
        "checkpoint.every": max(1, epochs // _CHECKPOINTS),
    }
    if schedule.group_start != "never":
        changed["schedule.group_start"] = min(epochs - 1, round(start * scale))
    if schedule.cosine_epochs is not None:
        changed["schedule.cosine_epochs"] = round(schedule.cosine_epochs * scale)
    return override(config, changed)


def _config(args: argparse.Namespace, folder: Path) -> RunConfig:
    if args.tiny:
        return small_config(seed=args.seed, optim__precision="auto", evaluation__every=10)
    parts = sorted(args.data.glob("*.parquet")) if args.data.is_dir() else [args.data]
    file = folder / "cifar10.parquet"
    pq.write_table(pa.concat_tables(pq.read_table(part) for part in parts), file)
    changes = {"data.source": "parquet", "data.path": str(file), "seed": args.seed}
    return load_preset(args.preset, changes)


def _epoch_seconds(
    config: RunConfig, data: DataSet, device: torch.device, *, grouped: bool
) -> float:
    """What an epoch will take, from a few steps and, in the group stage, a warm clustering."""
    precision: str = config.optim.precision
    if precision == "auto":
        precision = best_precision(config, data.row_shape, device)
    settled = override(config, {"optim.precision": precision})
    how = Acceleration.of(settled.optim, device)
    with how.applied():
        stepper = Stepper(settled, data, how, grouped=grouped)
        step = step_of(device, config.optim.batch_size, config.model.embedding_dim)
        step_s = _seconds(device, lambda: stepper.train(stepper.views(), step), 10)
        evaluation_s = 0.0
        if grouped:
            embedder = Embedder(stepper.framework, stepper.inputs, how)

            def cluster(warm_cd: Tensor | None) -> DataClustering:
                return cluster_data(
                    settled,
                    embedder,
                    num_rows=data.num_rows,
                    num_clusters=10,
                    epoch=1,
                    warm_cd=warm_cd,
                )

            centers_cd = cluster(None).centers_cd
            evaluation_s = _seconds(device, lambda: cluster(centers_cd), 1)
    return step_s * (data.num_rows // config.optim.batch_size) + evaluation_s


class _Curve(Observers):
    """Writes curve.json after each epoch, and ends the run when its time is up.

    Whatever has been trained until then is in its folder: weights of the newest checkpoint, those
    of what embeds, bfloat16, in pieces; assignments after the last epoch.
    """

    def __init__(self, out: Path, directory: RunDirectory, deadline: float, epochs: int) -> None:
        super().__init__()
        self.rows: list[MetricRow] = []
        self._out, self._directory = out, directory
        self._deadline, self._epochs, self._kept_epoch = deadline, epochs, 0

    def epoch(self, row: MetricRow) -> None:
        self.rows.append(row)
        (self._out / "curve.json").write_text(json.dumps(self.rows) + "\n")
        if "acc" in row:
            print({k: row[k] for k in ("epoch", "stage", "loss", "acc", "nmi")}, flush=True)
        self.bring_back()
        if time.monotonic() > self._deadline and len(self.rows) < self._epochs:
            raise KeyboardInterrupt

    def end(self, error: BaseException | None) -> None: ...

    def bring_back(self) -> None:
        """Copy what is new."""
        newest = max(self._directory.checkpoint_epochs(), default=0)
        if newest > self._kept_epoch:
            self._kept_epoch = newest
            self._write_weights(newest)
        assignments = self._directory.read_bytes("assignments.parquet")
        if assignments is not None:
            (self._out / "assignments.parquet").write_bytes(assignments)

    def _write_weights(self, epoch: int) -> None:
        network = self._directory.load_checkpoint(epoch, torch.device("cpu"))["framework"]
        kept = {k: v for k, v in network.items() if k.startswith("target.")} or network
        words = [v.to(torch.bfloat16).flatten().view(torch.int16) for v in kept.values()]
        flat = torch.cat(words).numpy()
        for place, start in enumerate(range(0, len(flat), _PIECE_BYTES // 2)):
            np.save(self._out / f"weights-{place}.npy", flat[start : start + _PIECE_BYTES // 2])
        shapes = {name: list(tensor.shape) for name, tensor in kept.items()}
        about = {"epoch": epoch, "dtype": "bfloat16", "shapes": shapes}
        (self._out / "weights.json").write_text(json.dumps(about) + "\n")
