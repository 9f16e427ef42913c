r"""How fast pictures are prepared: decoded once into the copy that runs train on.

    python benchmarks/preparing.py --parquet ../shared/data/cifar10.parquet
    python benchmarks/preparing.py --folders ../shared/data/cifar10.parquet
    python benchmarks/preparing.py --folders ../shared/data/cifar10.parquet --side 224 \
        --kind JPEG --count 6000

--parquet prints the seconds of the first use of a file, when its images are decoded, checked and
written, and of the second, each in a process of its own, beside those of a plain loop over PIL. On
another commit it prints that one's.

--folders writes --count images of the file, of --side pixels, as a folder and as tar files. The
same images are then decoded in turn, --rounds times, by this package (which also checks, sums and
stores them), by torchvision's ImageFolder and by webdataset, both in a loader of torch with a
process for each core, and by Ray Data. It prints images a second, medians, and the ratio of this
package to the fastest other one, also without a store of pixels (data.stream=always). What it
takes to write and sync as many bytes, and nothing else, stands below. What is not installed is left
out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.cores import usable_cores
from conr_ray.data.store import open_data

_BATCH = 256
_OURS, _OUR_STREAM = "this package", "this package, a stream"
_SHARDS = 8
_USE = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
from conr_ray.config import DataConfig
from conr_ray.data.store import open_data
imported = time.perf_counter()
data = open_data(DataConfig(source="parquet", path=sys.argv[1]), Path(sys.argv[2]))
end = time.perf_counter()
print(json.dumps([data.num_rows, imported - start, end - imported]))
"""


def used(path: str, cache: Path) -> tuple[int, float, float]:
    """Rows of a file, and seconds of imports and of opening it, in a process of its own."""
    command = [sys.executable, "-c", _USE, path, str(cache)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    num_rows, import_s, open_s = json.loads(done.stdout)
    return int(num_rows), float(import_s), float(open_s)


def plain_loop_s(path: str) -> float:
    """Seconds that PIL takes for all images of a file on one core, and nothing else."""
    start = time.perf_counter()
    for batch in pq.ParquetFile(path).iter_batches(_BATCH, columns=["image"]):
        for encoded in batch.column("image").to_pylist():
            np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    return time.perf_counter() - start


def of_parquet(path: str, rounds: int) -> None:
    """Print first and second use."""
    first, second, loop = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as place:
            rows, import_s, first_s = used(path, Path(place))
            second.append(used(path, Path(place))[2])
        first.append(first_s)
        loop.append(plain_loop_s(path))
        print(f"  first {first_s:.2f} s, second {second[-1]:.3f} s, loop {loop[-1]:.2f} s")
    median = statistics.median
    print(f"{rows:,} images of {path}, medians of {rounds}, beside {import_s:.1f} s of imports")
    print(f"first use {median(first):.2f} s, {rows / median(first):,.0f} images/s")
    print(f"second use {median(second):.3f} s")
    print(f"PIL alone on one core {median(loop):.2f} s")


def write(path: str, place: Path, count: int, side: int, kind: str) -> None:
    """Write images as a folder of ten classes, and the same files as tar files."""
    ending = "jpg" if kind == "JPEG" else kind.lower()
    done = 0
    with ExitStack() as stack:
        shards = [
            stack.enter_context(tarfile.open(place / f"{number}.tar", "w"))
            for number in range(_SHARDS)
        ]
        for encoded, label in _rows(path, count):
            image = Image.open(io.BytesIO(encoded)).convert("RGB")
            if side != image.width:
                image = image.resize((side, side), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            image.save(buffer, kind)
            file = place / "folder" / str(label) / f"{done:06}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(buffer.getvalue())
            for name, data in ((file.name, buffer.getvalue()), (f"{done:06}.cls", b"%d" % label)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                shards[done * _SHARDS // count].addfile(member, io.BytesIO(data))
            done += 1


def _rows(path: str, count: int) -> Iterator[tuple[bytes, int]]:
    """Files and labels of the first images."""
    left = count
    for batch in pq.ParquetFile(path).iter_batches(_BATCH, columns=["image", "label"]):
        columns = (batch.column(name).to_pylist()[:left] for name in ("image", "label"))
        yield from zip(*columns, strict=True)
        left -= min(left, len(batch))
        if not left:
            return


def of_ours(place: Path, empty: Path) -> int:
    """This package, with an empty cache."""
    config = DataConfig(source="folder", path=str(place / "folder"), stream="never")
    return open_data(config, empty).num_rows


def of_our_stream(place: Path, empty: Path) -> int:
    """This package, which decodes whenever needed, with an empty cache."""
    config = DataConfig(source="folder", path=str(place / "folder"), stream="always")
    return open_data(config, empty).num_rows


def written_s(folder: Path, num_bytes: int) -> float:
    """Seconds that writing and syncing so many bytes takes."""
    block, start = bytes(range(256)) * 2**13, time.perf_counter()
    with (folder / "bytes").open("wb") as file:
        for begin in range(0, num_bytes, len(block)):
            file.write(block[: num_bytes - begin])
        os.fsync(file)
    return time.perf_counter() - start


def _loaded(data: Any) -> int:
    from torch.utils.data import DataLoader

    loader = DataLoader(data, batch_size=_BATCH, num_workers=usable_cores())
    return sum(len(images) for images, _ in loader)


def of_image_folder(place: Path, _: Path) -> int:
    """ImageFolder of torchvision in torch's loader, uint8."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    return _loaded(ImageFolder(str(place / "folder"), transform=pil_to_tensor))


def of_webdataset(place: Path, _: Path) -> int:
    """The tar files by webdataset in torch's loader, uint8."""
    import webdataset
    from torchvision.transforms.functional import pil_to_tensor

    shards = [str(place / f"{number}.tar") for number in range(_SHARDS)]
    data = webdataset.WebDataset(shards, shardshuffle=False).decode("pil")
    data = data.to_tuple("jpg;png;webp", "cls").map_tuple(pil_to_tensor, int)
    return _loaded(data)


def of_ray_data(place: Path, _: Path) -> int:
    """Ray Data on all cores; Ray is started before."""
    import ray

    data = ray.data.read_images(str(place / "folder"), mode="RGB")
    batches = data.iter_batches(batch_size=_BATCH, batch_format="numpy")
    return sum(len(batch["image"]) for batch in batches)


WAYS: dict[str, tuple[str, Callable[[Path, Path], int]]] = {
    _OURS: ("conr_ray", of_ours),
    _OUR_STREAM: ("conr_ray", of_our_stream),
    "torchvision ImageFolder": ("torchvision", of_image_folder),
    "webdataset": ("webdataset", of_webdataset),
    "Ray Data": ("ray", of_ray_data),
}


def of_folders(path: str, count: int, side: int, kind: str, rounds: int) -> None:
    """Print images a second of each way."""
    ways = {name: way for name, (module, way) in WAYS.items() if importlib.util.find_spec(module)}
    if missing := [name for name in WAYS if name not in ways]:
        print(f"left out, not installed: {', '.join(missing)}")
    os.environ["RAY_LOGGER_LEVEL"] = "error"
    import ray

    ray.init(num_cpus=usable_cores(), include_dashboard=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rates: dict[str, list[float]] = {name: [] for name in ways}
    writing: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write(path, place, count, side, kind)
        for _ in range(rounds):
            for name, way in ways.items():
                # What is written there is removed when the time is taken.
                with tempfile.TemporaryDirectory() as empty:
                    start = time.perf_counter()
                    seen = way(place, Path(empty))
                    rates[name].append(seen / (time.perf_counter() - start))
                assert seen == count, f"{name}: {seen} of {count}"
            with tempfile.TemporaryDirectory() as empty:
                writing.append(written_s(Path(empty), count * 3 * side * side))
    ray.shutdown()
    middle = {name: statistics.median(found) for name, found in rates.items()}
    fastest = max(rate for name, rate in middle.items() if name not in (_OURS, _OUR_STREAM))
    print(f"{count:,} {kind} of {side} pixels, {usable_cores()} cores, medians of {rounds}")
    for name, rate in middle.items():
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        print(f"{name:<24} {rate:>8,.0f} images/s ({spread})")
    for name in (_OURS, _OUR_STREAM):
        print(f"{name}, to the fastest other: {middle[name] / fastest:.2f}")
    spread = f"{min(writing):.2f} to {max(writing):.2f}"
    print(f"{_OURS} took {count / middle[_OURS]:.2f} s;", end=" ")
    print(f"to write its bytes takes {statistics.median(writing):.2f} s ({spread})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parquet", help="file whose first and second use are measured")
    parser.add_argument("--folders", help="file with columns image and label to write images of")
    parser.add_argument("--count", type=int, default=30_000, help="images (default: 30,000)")
    parser.add_argument("--side", type=int, default=32, help="pixels (default: 32)")
    parser.add_argument("--kind", default="PNG", choices=("PNG", "JPEG", "WEBP"))
    parser.add_argument("--rounds", type=int, default=3, help="of each (default: 3)")
    args = parser.parse_args()
    if args.parquet:
        of_parquet(args.parquet, args.rounds)
    if args.folders:
        of_folders(args.folders, args.count, args.side, args.kind, args.rounds)


if __name__ == "__main__":
    main()
