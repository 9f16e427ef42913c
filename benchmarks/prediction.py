"""The rate of `predict` beside a plain PyTorch loop with a DataLoader, and its memory.

    python benchmarks/prediction.py --data ../shared/data/fashion_mnist.parquet
    python benchmarks/prediction.py --data ../shared/data/fashion_mnist.parquet --memory [--ray]

Both ways read the same folder of PNG files (kept in --folder), decode them by PIL, embed them with
the same network of the preset fashion_mnist in the same number of threads, and write a Parquet file
of clusters. Each round runs the network alone, the loop with each number of DataLoader workers, and
predict, in turn, all in the run's precision; rates are medians. The network has been trained for
one short epoch on 512 images: its weights do not matter for the rate.

With --memory it tells the peak memory of the command, and of it with all processes that it starts,
at --count images and at ten times as many, which are copies of the same files, with a tiny network.
Memory that processes share is counted once. With --ray one actor predicts, else the command itself.
All is listed before the first part, so that --parts shortens this without leaving the list out.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from conr_ray import TrainedRun
from conr_ray.config import RunConfig, load_preset
from conr_ray.data.inputs import inputs_from_state
from conr_ray.data.sources.files import locate
from conr_ray.data.store import open_data
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.prediction.here import placed_here
from conr_ray.prediction.listing import Listing
from conr_ray.prediction.placing import Placing
from conr_ray.prediction.predict import predict
from conr_ray.prediction.progress import PredictionProgress
from conr_ray.prediction.sources import FolderImages

ROOT = Path(__file__).resolve().parents[1]
SIDE = 28
# As `predict` embeds.
BATCH = 256


class Files(Dataset[Any]):
    """PNG files as tensors (1, h, w), uint8."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(str(path) for path in folder.rglob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.paths[row]) as image:
            return torch.from_numpy(np.array(image.convert("L")))[None]


def make_images(table: Path, folder: Path, count: int) -> None:
    """The first `count` Fashion-MNIST images as files, a thousand in a folder."""
    images = pq.read_table(table, columns=["image"]).column("image")[:count].to_pylist()
    for row, pixels in enumerate(images):
        place = folder / f"{row // 1000:03d}" / f"{row:06d}.png"
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.frombytes("L", (SIDE, SIDE), pixels).save(place)


def make_run(table: Path, folder: Path, *, tiny: bool) -> str:
    """A run of one epoch of each stage, with the network of the preset or a tiny one."""
    network = {"model.widths": [4, 8], "model.embedding_dim": 16} if tiny else {}
    config = load_preset(
        "fashion_mnist",
        {
            "data.source": "parquet",
            "data.path": str(table),
            "data.name": None,
            "data.download": False,
            "data.limit": 512,
            "bank.size": 256,
            "schedule.epochs": 2,
            "schedule.group_start": 1,
            "schedule.relax_epochs": 1,
            "schedule.warmup_epochs": 1,
            "evaluation.neighbors": False,
            "evaluation.on_collapse": "warn",
            **network,
        },
    )
    if not (folder / "assignments.parquet").exists():
        _train(config, folder)
    return str(folder)


def _train(config: RunConfig, folder: Path) -> None:
    directory = RunDirectory(folder)
    directory.claim(config, resume=True)
    train(config, open_data(config.data), directory, Observers(), torch.device("cpu"))


def by_predict(run: TrainedRun, images: Path) -> None:
    """As the command does with --local."""
    placing = Placing(run)
    samples = FolderImages(placing.form, Listing(locate(str(images))))
    with tempfile.TemporaryDirectory() as out:
        progress = PredictionProgress(samples.count(), Console(file=io.StringIO()))
        about = {"run": "", "what": "folder", "images": "", "state": "", "embeddings": False}
        placed = partial(placed_here, samples, placing=placing)
        predict(samples, {"format": 1, **about}, out, placed, progress)


def by_loop(run: TrainedRun, images: Path, workers: int) -> None:
    """As one would write it."""
    centers_cd = run.state.centers
    assert centers_cd is not None
    files = Files(images)
    clusters = []
    for batch in DataLoader(files, BATCH, num_workers=workers):
        clusters.append(_embedded(run, batch) @ centers_cd.T)
    clusters_n = torch.cat([products.argmax(1) for products in clusters])
    with tempfile.TemporaryDirectory() as out:
        table = pa.table({"path": files.paths, "cluster": clusters_n.numpy()})
        pq.write_table(table, f"{out}/clusters.parquet")


def by_network(run: TrainedRun, count: int) -> None:
    """The network alone, on images in memory."""
    batch = torch.zeros(BATCH, *run.sample_shape, dtype=torch.uint8)
    for start in range(0, count, BATCH):
        _embedded(run, batch[: count - start])


@torch.no_grad()
def _embedded(run: TrainedRun, batch: torch.Tensor) -> torch.Tensor:
    inputs = inputs_from_state(run.inputs_state, batch.numpy(), run.device)
    run.state.framework.eval()
    # Where the processor has it, a run is trained and applied in bf16.
    with torch.autocast("cpu", torch.bfloat16, enabled=run.config.optim.precision == "bf16"):
        return run.state.framework.embed(inputs.plain(batch))


def rates(run: TrainedRun, images: Path, count: int, rounds: int, loaders: Sequence[int]) -> None:
    """Print images a second of each way, and its share of that of the best loop."""
    ways: dict[str, Callable[[], None]] = {"network alone": lambda: by_network(run, count)}
    for workers in loaders:
        ways[f"loop, {workers} workers"] = partial(by_loop, run, images, workers)
    ways["predict --local"] = partial(by_predict, run, images)
    times_s: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times_s[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(times) for name, times in times_s.items()}
    best = min(time_s for name, time_s in middle.items() if name.startswith("loop"))
    network = middle["network alone"]
    precision, threads = run.config.optim.precision, torch.get_num_threads()
    print(f"{count:,} images, {threads} threads, {precision}, {rounds} rounds\n")
    print("| way | images/s | rate against the best loop | time that is not the network |")
    print("| --- | --- | --- | --- |")
    for name, time_s in middle.items():
        share = f"{1 - network / time_s:.1%}"
        print(f"| {name} | {count / time_s:,.0f} | {best / time_s:.2f} x | {share} |")


def peak_bytes(command: list[str], enough: Callable[[], bool]) -> tuple[int, int]:
    """The most memory of a command, and of it and its children together, sampled.

    It is interrupted once there is `enough`.
    """
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **_PATH})
    alone, together, ended = 0, 0, threading.Event()

    def watch() -> None:
        nonlocal alone, together
        while not ended.wait(0.5):
            if enough():
                process.send_signal(signal.SIGINT)
                return
            try:
                family = [process, *process.children(recursive=True)]
                each = [member.memory_full_info().pss for member in family]
            except psutil.Error:
                continue
            alone, together = max(alone, each[0]), max(together, sum(each))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    ended.set()
    watcher.join()
    if status not in (0, 128 + signal.SIGINT):
        raise SystemExit(f"predict has ended with status {status}")
    return alone, together


_PATH = {"PYTHONPATH": str(ROOT)}


def memory(
    run: str, images: Path, count: int, folder: Path, where: list[str], parts: int | None
) -> None:
    """Print the peak memory at `count` images and ten times as many."""
    many = folder / f"links-{count}"
    for copy in range(10):
        for path in images.rglob("*.png"):
            link = many / str(copy) / path.relative_to(images)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                shutil.copyfile(path, link)
    first: tuple[int, int] | None = None
    print("| images | the command, MiB | | all processes, MiB | |\n| --- | --- | --- | --- | --- |")
    for number, place in ((count, images), (10 * count, many)):
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)

        def enough(out: Path = out) -> bool:
            return parts is not None and len(list(out.rglob("part-*.parquet"))) >= parts

        words = ["--run", run, "--images", str(place), "--out", str(out), *where]
        peaks = peak_bytes([sys.executable, "-m", "conr_ray.predict", *words], enough)
        first = first or peaks
        cells = [
            f"{now / 2**20:,.0f} | {now / then:.2f} x"
            for now, then in zip(peaks, first, strict=True)
        ]
        print(f"| {number:,} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Make what is needed, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="fashion_mnist.parquet")
    parser.add_argument("--count", type=int, default=60_000, help="images (default: 60,000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--loaders", type=int, nargs="+", default=[0, 1, 2], help="workers of the DataLoaders"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch in each way")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of rates")
    parser.add_argument("--ray", action="store_true", help="with --memory: predict on Ray")
    parser.add_argument(
        "--parts", type=int, help="with --memory: stop after so many parts of 8,192 images"
    )
    parser.add_argument("--folder", type=Path, help="for files (default: one that is removed)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        images = folder / f"images-{args.count}"
        make_images(args.data, images, args.count)
        run = make_run(args.data.absolute(), folder / f"run-{args.memory}", tiny=args.memory)
        if args.memory:
            where = ["--workers", "1"] if args.ray else ["--local"]
            memory(run, images, args.count, folder, where, args.parts)
        else:
            rates(TrainedRun.load(run), images, args.count, args.rounds, args.loaders)


if __name__ == "__main__":
    main()
