"""The recipe in a given number of minutes: its curve, assignments and weights."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from conr_ray.config import RunConfig, load_preset, override
from conr_ray.data.store import DataSet, open_data
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.loop import train
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observers
from conr_ray.engine.precision import chosen_precision
from conr_ray.engine.run_directory import RunDirectory
from on_gpu.paths import small_config
from on_gpu.stepper import Stepper, step_of
from on_gpu.times import _seconds

# Of the time given, kept for compiling, evaluation and the end.
_RESERVE = 0.12
_PIECE_BYTES = 15 * 2**20


def train_for(args: argparse.Namespace, device: torch.device) -> None:
    """Train `args.preset` in `args.minutes`, and print the last figures."""
    started = time.monotonic()
    config = _config(args)
    data = open_data(config.data)
    epoch_s = {grouped: _epoch_seconds(config, data, device, grouped=grouped) for grouped in (0, 1)}
    left_s = (60 * args.minutes - (time.monotonic() - started)) * (1 - _RESERVE)
    config = fitted(config, left_s, epoch_s[0], epoch_s[1])
    print(
        f"{epoch_s} s an epoch: {config.schedule.epochs} epochs, groups from "
        f"{config.schedule.group_start}",
        flush=True,
    )
    directory = RunDirectory(args.out.parent / f"{args.out.name}_run")
    directory.claim(config, resume=True)
    (args.out / "config.yaml").write_text(config.to_yaml())
    deadline = started + 60 * args.minutes
    observer = _Curve(args.out, directory, deadline)
    try:
        train(config, data, directory, observer, device)
    except KeyboardInterrupt:
        print("the time is up before the last epoch", flush=True)
    _bring_back(args.out, directory)
    last = observer.rows[-1]
    print(
        json.dumps(
            {k: last[k] for k in ("epoch", "acc", "nmi", "ari", "train_time_s") if k in last}
        )
    )


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
    }
    if schedule.group_start != "never":
        changed["schedule.group_start"] = min(epochs - 1, round(start * scale))
    return override(config, changed)


def _config(args: argparse.Namespace) -> RunConfig:
    if args.tiny:
        return small_config(seed=args.seed, optim__precision="auto")
    file = args.out.parent / "cifar10.parquet"
    parts = sorted(args.data.glob("*.parquet")) if args.data.is_dir() else [args.data]
    if not file.exists():
        pq.write_table(pa.concat_tables(pq.read_table(part) for part in parts), file)
    changes = {"data.source": "parquet", "data.path": str(file), "seed": args.seed}
    return load_preset(args.preset, changes)


def _epoch_seconds(
    config: RunConfig, data: DataSet, device: torch.device, *, grouped: int
) -> float:
    """What an epoch's steps will take, from a few of them."""
    precision = config.optim.precision
    if precision == "auto":
        precision = chosen_precision(config, data.row_shape, device)
    settled = override(config, {"optim.precision": precision})
    how = Acceleration.of(settled.optim, device)
    with how.applied():
        stepper = Stepper(settled, data, how, grouped=bool(grouped))
        step = step_of(device, config.optim.batch_size, config.model.embedding_dim)
        step_s = _seconds(device, lambda: stepper.train(stepper.views(), step), 10)
    return step_s * (data.num_rows // config.optim.batch_size)


class _Curve(Observers):
    """Writes curve.json after each epoch, and ends the run when its time is up."""

    def __init__(self, out: Path, directory: RunDirectory, deadline: float) -> None:
        super().__init__()
        self.rows: list[MetricRow] = []
        self._out, self._directory, self._deadline = out, directory, deadline

    def epoch(self, row: MetricRow) -> None:
        self.rows.append(row)
        (self._out / "curve.json").write_text(json.dumps(self.rows) + "\n")
        if "acc" in row:
            print({k: row[k] for k in ("epoch", "stage", "loss", "acc", "nmi")}, flush=True)
        if time.monotonic() > self._deadline:
            raise KeyboardInterrupt

    def end(self, error: BaseException | None) -> None: ...


def _bring_back(out: Path, directory: RunDirectory) -> None:
    """Weights of what embeds, bfloat16, in pieces; assignments; nothing else of the run."""
    epochs = directory.checkpoint_epochs()
    if epochs:
        state = directory.load_checkpoint(epochs[-1], torch.device("cpu"))
        network = state["framework"]
        kept = {k: v for k, v in network.items() if k.startswith("target.")} or network
        words = [v.detach().to(torch.bfloat16).flatten().view(torch.int16) for v in kept.values()]
        flat = torch.cat(words).numpy()
        for place, start in enumerate(range(0, len(flat), _PIECE_BYTES // 2)):
            np.save(out / f"weights-{place}.npy", flat[start : start + _PIECE_BYTES // 2])
        shapes = {name: list(tensor.shape) for name, tensor in kept.items()}
        about = {"epoch": epochs[-1], "dtype": "bfloat16", "shapes": shapes}
        (out / "weights.json").write_text(json.dumps(about) + "\n")
    assignments = directory.read_bytes("assignments.parquet")
    if assignments is not None:
        (out / "assignments.parquet").write_bytes(assignments)
