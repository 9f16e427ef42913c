"""A decoded copy of a source's samples, memory-mapped and shared by all processes of a node.

The copy's folder is named by a hash of everything that determines it, so a changed file or setting
gets a new copy. It is built once, under a lock, in a folder next to it, and moved when complete.
Its files are listed with checksums in meta.json; a damaged or incomplete copy is made anew.

Shapes: n samples, c channels (1 grey or 3 RGB), h and w pixels, d features.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conr_ray.config import DataConfig
from conr_ray.data.pictures import as_picture
from conr_ray.data.sources import Contents, Source, make_source
from conr_ray.data.sources.base import Int64Array
from conr_ray.data.sources.files import locked
from conr_ray.data.statistics import statistics_of
from conr_ray.data.subset import BESIDE_THE_COPY, chosen_part
from conr_ray.errors import UserError, one_line
from conr_ray.storage import disk
from conr_ray.storage.sealed import Damaged, seal, unseal

logger = logging.getLogger(__name__)

# Part of every copy's name, and in it: increase it when the format of the files below changes.
_FORMAT_VERSION = 3
_META = "meta.json"


@dataclass(frozen=True, eq=False)
class DataSet:
    """Samples, images or vectors, and their metadata.

    `rows` is uint8 (n, c, h, w) or float32 (n, d), read-only if memory-mapped. `labels` is int64
    (n,), None if no sample is labelled; -1 marks unlabelled samples, which no metric counts.
    `names` are the images' paths inside a folder source. `sample_ids` is int64 (n,): each sample's
    row in the whole set, of which this may be a subset. For images, `mean` and `std` are per
    channel, of values scaled to 0..1; for vectors, `mean` is per feature, and `std` one number for
    all. `std` is 0 if all values are equal. `fingerprint` depends only on samples, labels and
    subset, not on the kind of source, and `rows_fingerprint` not on the labels either.

    Where a backbone that does not train has embedded images, the vectors are `rows`, those of
    random views `stored_views`, float32 (n, v, d), None without; `images` is what was embedded,
    `backbone` tells by what, and `embedded_in` is the folder in the cache: see `conr_ray.frozen`.
    """

    rows: NDArray[Any]
    labels: Int64Array | None
    class_names: tuple[str, ...] | None
    names: Sequence[str] | None
    sample_ids: Int64Array
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    rows_fingerprint: str
    stored_views: NDArray[Any] | None = None
    images: DataSet | None = None
    backbone: Mapping[str, Any] | None = None
    embedded_in: Path | None = None

    @property
    def num_rows(self) -> int:
        """Number of samples."""
        return len(self.rows)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a sample: (c, h, w), or (d,)."""
        return tuple(self.rows.shape[1:])

    @property
    def what(self) -> str:
        """The word "images" or "vectors", for messages: what the user has."""
        return "vectors" if self.rows.ndim == 2 and self.images is None else "images"

    def picture(self, row: int) -> bytes | None:
        """The image of a row as a small PNG or JPEG file; None for vectors that are of no image."""
        if self.images is not None:
            return self.images.picture(row)
        return None if self.rows.ndim == 2 else as_picture(self.rows[row])

    @property
    def num_classes(self) -> int | None:
        """Number of classes by name, else of distinct labels; None without labels."""
        if self.labels is None:
            return None
        if self.class_names is not None:
            return len(self.class_names)
        return len(np.unique(self.labels[self.labels >= 0]))


def open_data(config: DataConfig, cache_dir: Path | None = None) -> DataSet:
    """The samples of `config`, from the copy in `cache_dir`, which is made if missing.

    `cache_dir` defaults to $CONR_RAY_CACHE, else conr_ray in $XDG_CACHE_HOME, else in ~/.cache.
    Any number of processes may call it at once: one decodes, the others wait. With `data.limit` or
    `data.imbalance` they are `chosen_part` of it.

    Raises UserError if the source cannot be read, `data.limit` exceeds it, or the cache cannot
    be written.
    """
    source = make_source(config)
    identity = json.dumps({"format": _FORMAT_VERSION, **source.identity()}, sort_keys=True)
    root = default_cache_dir() if cache_dir is None else cache_dir
    folder = root / hashlib.sha256(identity.encode()).hexdigest()
    if (data := _load_whole(folder)) is None:
        try:
            data = _build_once(source, folder)
        except OSError as error:
            raise UserError(
                f"the cache {root} cannot hold the decoded samples ({one_line(error)}); set "
                f"CONR_RAY_CACHE to a writable folder with space"
            ) from error
    return chosen_part(data, config)


def default_cache_dir() -> Path:
    """The default folder of decoded copies.

    Raises UserError if this user has no home.
    """
    own, base = os.environ.get("CONR_RAY_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own or f"{base or '~/.cache'}/conr_ray").expanduser()
    except RuntimeError:
        raise UserError(
            "this user has no home for a cache of decoded samples: set CONR_RAY_CACHE to a folder"
        ) from None


def _rows_file(shape: Sequence[int]) -> str:
    return "vectors.npy" if len(shape) == 2 else "images.npy"


def _load_whole(folder: Path) -> DataSet | None:
    """The copy in `folder`, None if it is not there or not whole."""
    try:
        return _load(folder)
    except (Damaged, OSError) as error:
        if folder.exists():
            disk.tell(f"the cache {folder} is damaged ({one_line(error)}): it is made anew")
        return None


def _build_once(source: Source, folder: Path) -> DataSet:
    """Make the copy in `folder` unless another process has done so meanwhile."""
    disk.make_folders(folder.parent)
    with locked(folder.with_suffix(".lock")):
        with suppress(Damaged, OSError):
            return _load(folder)
        # Only the lock holder builds: anything here was left by a killed process.
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        partial.mkdir()
        try:
            _build(source, partial)
            partial.rename(folder)
            disk.sync_folder(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return _load(folder)


def _build(source: Source, folder: Path) -> None:
    contents = source.contents()
    shape = (contents.num_rows, *contents.row_shape)
    _check_room(folder, shape)
    if contents.note:
        disk.tell(contents.note)
    logger.info("decoding %d samples of %s into %s", shape[0], source.config.source, folder.parent)
    labels, class_names = contents.labels, contents.class_names
    if labels is not None and (labels == -1).all():
        labels, class_names = None, None
    digest = hashlib.sha256(str(shape).encode())
    sums = statistics_of(shape)
    with (folder / _rows_file(shape)).open("wb") as file:
        for block in _written(source.blocks(), file, shape):
            digest.update(block.data)
            sums.add(block)
    rows_fingerprint = digest.hexdigest()
    if labels is not None:
        np.save(folder / "labels.npy", labels)
        digest.update(labels.data)
    if contents.names is not None:
        pq.write_table(pa.table({"name": contents.names}), folder / "names.parquet")
    mean, std = sums.mean_and_std()
    meta = {
        "format": _FORMAT_VERSION,
        "num_rows": contents.num_rows,
        "shape": shape,
        "class_names": class_names,
        "mean": mean,
        "std": std,
        "fingerprint": digest.hexdigest(),
        "rows_fingerprint": rows_fingerprint,
        "source": _description(source, contents),
    }
    seal(folder, _META, meta)


def _check_room(folder: Path, shape: tuple[int, ...]) -> None:
    """Raise UserError if the file system of `folder` has no room for samples of `shape`."""
    needed = math.prod(shape) * (4 if len(shape) == 2 else 1)
    free = shutil.disk_usage(folder).free
    if needed > free:
        smaller = "" if len(shape) == 2 else "lower data.stored_size, or "
        raise UserError(
            f"the decoded samples take {needed >> 20:,} MiB, and {folder.parent} has "
            f"{free >> 20:,} MiB free; {smaller}set CONR_RAY_CACHE to a folder with more"
        )


def _written(
    blocks: Iterator[NDArray[Any]], file: BinaryIO, shape: tuple[int, ...]
) -> Iterator[NDArray[Any]]:
    """Append blocks to the .npy file of an array of `shape`, and yield them.

    Writes a file, not a memory map: a full disk raises OSError for the file, but kills the process
    with SIGBUS for the map.
    """
    descr = "<f4" if len(shape) == 2 else "|u1"
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    rows = 0
    for block in blocks:
        whole = np.ascontiguousarray(block)
        file.write(whole.data)
        rows += len(whole)
        yield whole
    assert rows == shape[0], f"{rows} rows where {shape[0]} were announced"


def _description(source: Source, contents: Contents) -> dict[str, Any]:
    """What the copy was made from: for people, and for `prepared_data` to find it by."""
    config = source.config.model_dump(mode="json", exclude=BESIDE_THE_COPY)
    return {**config, "has_names": contents.names is not None}


def _load(folder: Path) -> DataSet:
    """The copy in `folder`.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is not as it was written.
    """
    meta = unseal(folder, _META)
    if meta["format"] != _FORMAT_VERSION:
        raise Damaged(f"format {meta['format']} instead of {_FORMAT_VERSION}")
    class_names, labels, names = meta["class_names"], folder / "labels.npy", None
    if (path := folder / "names.parquet").exists():
        names = pq.read_table(path).column("name").to_pylist()
    return DataSet(
        rows=np.load(folder / _rows_file(meta["shape"]), mmap_mode="r"),
        labels=np.load(labels) if labels.exists() else None,
        class_names=None if class_names is None else tuple(class_names),
        names=names,
        sample_ids=np.arange(meta["num_rows"], dtype=np.int64),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        fingerprint=meta["fingerprint"],
        rows_fingerprint=meta["rows_fingerprint"],
    )
