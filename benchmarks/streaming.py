"""Images that are decoded whenever they are needed, against those that are decoded once.

    python benchmarks/streaming.py --data cifar10.parquet
    python benchmarks/streaming.py --data cifar10.parquet --memory 1000000

The first command trains ResNet-18 on the same images both ways, in turn, each time in a process of
its own: --images of them for each side, for two epochs, of which the second one is timed without
its evaluation. At 32 pixels they are those of the file; at 96 pixels JPEG files of three by three
of them. Printed are images a second, the median over --rounds of the ratio of times, and whether
losses and scores are equal.

The second command writes a table of so many images, those of the file repeated, and goes through
all of them once in random order, as an epoch does. Printed is the memory that the process holds
itself after each tenth.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from conr_ray.config import DataConfig, RunConfig, load_preset
from conr_ray.cores import usable_cores
from conr_ray.data.inputs import make_inputs
from conr_ray.data.store import open_data
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.method import keyed_random

_WAYS = ("never", "always")
_TIMES = ("epoch_time_s", "train_time_s", "discovery_time_s", "images_per_s")
_TILES = 3
_ROW_GROUP = 5000


def config_of(file: Path, side: int, images: int, stream: str) -> RunConfig:
    """A run of two epochs, one of each stage."""
    return load_preset(
        "cifar10",
        {
            "data.source": "parquet",
            "data.name": None,
            "data.download": False,
            "data.path": str(file),
            "data.limit": images,
            "data.stream": stream,
            "views.size": side,
            "model.stem": "cifar" if side <= 64 else "imagenet",
            "optim.batch_size": 128,
            "optim.precision": "fp32",
            "schedule.epochs": 2,
            "schedule.group_start": 1,
            "schedule.warmup_epochs": 1,
            "evaluation.neighbors": False,
            "checkpoint.every": 2,
        },
    )


def trained(config: RunConfig) -> list[dict[str, Any]]:
    """Train here; the metrics of each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        data, directory = open_data(config.data), RunDirectory(folder)
        rows = train(config, data, directory, Observers(), torch.device("cpu"))
    return [dict(row) for row in rows]


def write_tiles(file: Path, source: Path, count: int) -> None:
    """A table of `count` JPEG files of 96 pixels, each of nine images of another table."""
    table = pq.read_table(source, columns=["image", "label"]).slice(0, count * _TILES**2)
    pictures = [
        np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        for encoded in table["image"].to_pylist()
    ]
    files = []
    for first in range(0, count * _TILES**2, _TILES**2):
        some = pictures[first : first + _TILES**2]
        rows = [np.hstack(some[row * _TILES : (row + 1) * _TILES]) for row in range(_TILES)]
        buffer = io.BytesIO()
        Image.fromarray(np.vstack(rows)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    labels = table["label"].to_numpy()[:: _TILES**2]
    pq.write_table(pa.table({"image": files, "label": labels}), file)


def compare(source: Path, side: int, images: int, rounds: int, threads: int) -> None:
    """Print a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        file = source
        if side == 96:
            file = Path(folder) / "tiles.parquet"
            write_tiles(file, source, images)
        found: dict[str, list[list[dict[str, Any]]]] = {way: [] for way in _WAYS}
        for number in range(rounds):
            # Each goes first as often, so that a machine that slows down favours none.
            for way in _WAYS if number % 2 == 0 else reversed(_WAYS):
                wanted = {"file": str(file), "side": side, "images": images, "stream": way}
                command = [sys.executable, __file__, "--one", json.dumps(wanted)]
                command += ["--threads", str(threads)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
    speeds = {way: [run[-1]["images_per_s"] for run in runs] for way, runs in found.items()}
    ratios = [a / b for a, b in zip(speeds["never"], speeds["always"], strict=True)]
    figures = [[_without_times(row) for row in run] for runs in found.values() for run in runs]
    equal = all(one == figures[0] for one in figures)
    medians = [f"{statistics.median(speeds[way]):.1f}" for way in _WAYS]
    ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    cells = [str(side), f"{images:,}", *medians, ratio, "yes" if equal else "NO"]
    print(f"| {' | '.join(cells)} |", flush=True)


def _without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _TIMES}


def write_repeated(file: Path, source: Path, count: int) -> None:
    """A table of `count` images, those of another one again and again."""
    real = pq.read_table(source, columns=["image"])["image"].combine_chunks()
    schema = pa.schema([("image", real.type)])
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, count, _ROW_GROUP):
            rows = np.arange(first, min(first + _ROW_GROUP, count)) % len(real)
            writer.write_table(pa.table([real.take(pa.array(rows))], schema=schema))


def held_mib() -> float:
    """Memory that this process holds itself, without files that are mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["RssAnon"].split()[0]) / 1024


def go_through(source: Path, count: int) -> None:
    """Print memory and speed, of opening and of each tenth of an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "repeated.parquet"
        write_repeated(file, source, count)
        before, began = held_mib(), time.perf_counter()
        config = config_of(file, 32, count, "always")
        data = open_data(DataConfig(**config.data.model_dump()), Path(folder) / "cache")
        print(f"| opened | {count / (time.perf_counter() - began):,.0f} | {held_mib():,.0f} |")
        inputs = make_inputs(config, data, torch.device("cpu"))
        order = torch.split(keyed_random.permutation(0, count), 512)
        tenth, seen, began = count // 10, 0, time.perf_counter()
        for rows in inputs.prefetched(order, lambda rows: [rows]):
            inputs.take(rows)
            seen += len(rows)
            if seen // tenth > (seen - len(rows)) // tenth:
                speed = seen / (time.perf_counter() - began)
                print(f"| {seen:,} | {speed:,.0f} | {held_mib():,.0f} |", flush=True)
        print(f"\nbefore anything was opened: {before:,.0f} MiB; decoded, all take", end=" ")
        print(f"{data.rows.nbytes >> 20:,} MiB")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="Parquet file of CIFAR-10")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 96], choices=[32, 96])
    parser.add_argument("--images", type=int, nargs="+", default=[1024, 1024], help="of each side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--memory", type=int, help="images to go through once")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        one = json.loads(args.one)
        config = config_of(Path(one["file"]), one["side"], one["images"], one["stream"])
        print(json.dumps(trained(config)))
        return
    if args.memory:
        print("| images | images/s | memory held, MiB |\n| --- | --- | --- |")
        go_through(args.data, args.memory)
        return
    print("| side | images | decoded once, images/s | streamed | ratio of times | equal |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for side, images in zip(args.sides, args.images, strict=True):
        compare(args.data, side, images, args.rounds, args.threads)


if __name__ == "__main__":
    main()
