"""A copy of a source's samples, shared by all processes of a node.

It is decoded and memory-mapped, or what images are decoded from when they are needed: see `copies`.
The copy's folder is named by a hash of everything that determines it, so a changed file or setting
gets a new copy. It is built once, under a lock, in a folder next to it, and moved when complete.
Its files are listed with checksums in meta.json; a damaged or incomplete copy is made anew.

Shapes: n samples, c channels (1 grey or 3 RGB), h and w pixels, d features.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conr_ray.config import DataConfig
from conr_ray.data import cache
from conr_ray.data.cache import Hold, default_cache_dir
from conr_ray.data.copies import Copy, DecodedCopy, EncodedCopy, decoder, num_bytes, opened
from conr_ray.data.data_set import DataSet
from conr_ray.data.decoders import in_order
from conr_ray.data.encoded_rows import EncodedRows
from conr_ray.data.inventory import Inventory, Skipped
from conr_ray.data.progress import Lines
from conr_ray.data.sources import Contents, Source, make_source
from conr_ray.data.sources.base import Int64Array
from conr_ray.data.sources.encoded import EncodedSource, SizesDiffer, Unreadable
from conr_ray.data.sources.files import locked
from conr_ray.data.statistics import statistics_of
from conr_ray.data.subset import BESIDE_THE_COPY, chosen_part
from conr_ray.errors import UserError, one_line, printable
from conr_ray.storage import disk
from conr_ray.storage.sealed import Damaged, seal, unseal

__all__ = ["DataSet", "default_cache_dir", "open_data"]

logger = logging.getLogger(__name__)

# Part of every copy's name, and in it: increase it when the format of the files below changes.
_FORMAT_VERSION = 4
_META = "meta.json"
_HASHED_ROWS = 1024
# A full disk harms others: what takes nearly all that is left does not fit.
_MOST_OF_THE_DISK = 0.95


def open_data(config: DataConfig, cache_dir: Path | None = None) -> DataSet:
    """The samples of `config`, from a copy in `cache_dir`, which is made if missing.

    `cache_dir` defaults to $CONR_RAY_CACHE, else conr_ray in $XDG_CACHE_HOME, else in ~/.cache.
    Any number of processes may call it at once: one decodes, the others wait. With `data.limit` or
    `data.imbalance` they are `chosen_part` of it.

    Raises UserError if the source cannot be read, `data.limit` exceeds it, or the cache cannot
    be written.
    """
    source = make_source(config)
    root = default_cache_dir() if cache_dir is None else cache_dir
    folders = _Folders.of(source, root)
    loaded = (_load_whole(folder) for folder in folders.read)
    data = next((one for one in loaded if one is not None), None)
    if data is None:
        try:
            data = _build_once(source, folders)
        except Unreadable as error:
            raise _told_of_unreadable(error, folders.decoded) from None
        except OSError as error:
            raise UserError(
                f"the cache {root} cannot hold the samples ({one_line(error)}); set "
                f"CONR_RAY_CACHE to a writable folder with space"
            ) from error
    # Files that are no samples come and go without a change of the copy.
    stored = data.inventory
    found = replace(source.inventory(), sizes=stored.sizes, skipped=stored.skipped)
    data = replace(data, inventory=found)
    return chosen_part(data, config)


@dataclass(frozen=True)
class _Folders:
    """Where the copies of a source are: the decoded one, and the one that is decoded when needed.

    `stream` is that of the config.
    """

    decoded: Path
    encoded: Path
    stream: str

    @classmethod
    def of(cls, source: Source, root: Path) -> _Folders:
        identity = {"format": _FORMAT_VERSION, **source.identity()}
        encoded = {**identity, "encoded": decoder()}
        return cls(_named(root, identity), _named(root, encoded), source.config.stream)

    @property
    def read(self) -> tuple[Path, ...]:
        """Those that may be read, the one that is preferred first."""
        chosen = {"always": (self.encoded,), "never": (self.decoded,)}
        return chosen.get(self.stream, (self.decoded, self.encoded))


def _named(root: Path, identity: Mapping[str, Any]) -> Path:
    return root / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _told_of_unreadable(error: Unreadable, folder: Path) -> UserError:
    """The error, and a file beside the copies that lists all images and reasons, if they are many.

    A line has no room for them.
    """
    if len(error.images) < 2:
        return error
    path = folder.with_suffix(".unreadable.csv")
    table = pa.table(
        {
            "place": [printable(one.place) for one in error.images],
            "reason": [printable(one.reason) for one in error.images],
        }
    )
    try:
        csv.write_csv(table, path)
    # The error is what matters.
    except OSError:
        return error
    return UserError(f"{error}; all {len(error.images):,}, with reasons, are in {path}")


def _load_whole(folder: Path) -> DataSet | None:
    """The copy in `folder`, None if it is not there or not whole."""
    try:
        return _load(folder)
    except (Damaged, OSError) as error:
        if folder.exists():
            disk.tell(f"the cache {folder} is damaged ({one_line(error)}): it is made anew")
        return None


def _build_once(source: Source, folders: _Folders) -> DataSet:
    """Make a copy unless another process has done so meanwhile."""
    disk.make_folders(folders.decoded.parent, cache.PRIVATE)
    with locked(folders.decoded.with_suffix(".lock")):
        for folder in folders.read:
            with suppress(Damaged, OSError):
                return _load(folder)
        kind, folder = _chosen(source, folders)
        lock = folder.with_suffix(".lock")
        # By its own lock others see that it is made now.
        with locked(lock) if folder != folders.decoded else nullcontext():
            _build_anew(source, folder, kind)
            return _load(folder)


def _build_anew(source: Source, folder: Path, kind: type[Copy]) -> None:
    """Make the copy in `folder`, whose lock is held."""
    # Only the lock holder builds: anything here was left by a killed process.
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    cache.clean(folder.parent, deep=False)
    partial.mkdir(cache.PRIVATE)
    try:
        _build(source, partial, kind)
        partial.rename(folder)
        disk.sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _chosen(source: Source, folders: _Folders) -> tuple[type[Copy], Path]:
    """Which copy is made, and where."""
    if folders.stream == "always":
        return EncodedCopy, folders.encoded
    decoded, root = (DecodedCopy, folders.decoded), folders.decoded.parent
    room = _room(root)
    if folders.stream == "never" or (needed := _needed(source, room)) is None:
        return decoded
    disk.tell(
        f"data.stream=auto: decoded, the images take {needed >> 20:,} MiB, and the cache {root} "
        f"has room for {room >> 20:,} MiB: they are decoded whenever needed"
    )
    return EncodedCopy, folders.encoded


def _room(root: Path) -> int:
    """Bytes that a copy may take, by the disk and by the limit of the cache."""
    free, limit = int(_MOST_OF_THE_DISK * shutil.disk_usage(root).free), cache.cache_limit(root)
    return free if limit is None else min(free, limit)


def _needed(source: Source, room: int) -> int | None:
    """Bytes of the decoded images, if they do not fit and are less as files; None otherwise."""
    if not isinstance(source, EncodedSource) or not source.has_files:
        return None

    def needed() -> int:
        contents = source.contents()
        return num_bytes((contents.num_rows, *contents.row_shape))

    if needed() <= room:
        return None
    # The first image may be larger than what all become.
    source.look()
    return found if (found := needed()) > room else None


def _build(source: Source, folder: Path, kind: type[Copy]) -> None:
    try:
        _build_as_told(source, folder, kind)
    except SizesDiffer:
        source.look()
        _build_as_told(source, folder, kind)


def _build_as_told(source: Source, folder: Path, kind: type[Copy]) -> None:
    """Make the copy as the contents of the source tell, which may be by its first samples."""
    contents = source.contents()
    shape = (contents.num_rows, *contents.row_shape)
    copy = kind(source, folder, shape)
    logger.info("decoding %d samples of %s into %s", shape[0], source.config.source, folder.parent)
    sums = statistics_of(shape)
    digest = hashlib.sha256(str(shape).encode())
    lines = Lines("decoded", shape[0], "images" if len(shape) == 4 else "vectors")

    def add(block: NDArray[Any]) -> int:
        digest.update(block.data)
        sums.add(block)
        return len(block)

    # Blocks are summed while the next ones are written.
    with ThreadPoolExecutor(1) as beside:
        for added in in_order(beside, add, copy.blocks(), 1):
            lines.worked(added)
    if skipped := list(source.skipped):
        contents, kept = _without(contents, skipped)
        shape = (len(kept), *contents.row_shape)
        np.save(folder / "sample_ids.npy", kept)
        digest = hashlib.sha256(str(shape).encode())
        rows = copy.written()
        for start in range(0, len(rows), _HASHED_ROWS):
            digest.update(np.ascontiguousarray(rows[start : start + _HASHED_ROWS]).data)
    labels, class_names = _occurring(contents.labels, contents.class_names)
    rows_fingerprint = digest.hexdigest()
    if labels is not None:
        np.save(folder / "labels.npy", labels)
        digest.update(labels.data)
    if contents.names is not None:
        pq.write_table(pa.table({"name": contents.names}), folder / "names.parquet")
    mean, std = sums.mean_and_std()
    meta = {
        "format": _FORMAT_VERSION,
        "num_rows": shape[0],
        "shape": shape,
        "class_names": class_names,
        "mean": mean,
        "std": std,
        "fingerprint": digest.hexdigest(),
        "rows_fingerprint": rows_fingerprint,
        "source": _description(source, contents),
        "inventory": replace(source.inventory(), skipped=tuple(skipped)).as_json(),
        **copy.facts(),
    }
    seal(folder, _META, meta, copy.unread, copy.sums)


def _without(contents: Contents, skipped: Sequence[Skipped]) -> tuple[Contents, Int64Array]:
    """The contents but for some rows, and the rows that are left."""
    left_out = {one.row for one in skipped}
    kept = np.array([row for row in range(contents.num_rows) if row not in left_out], np.int64)
    found = replace(
        contents,
        num_rows=len(kept),
        labels=None if contents.labels is None else contents.labels[kept],
        names=None if contents.names is None else [contents.names[row] for row in kept],
    )
    return found, kept


def _occurring(
    labels: Int64Array | None, class_names: tuple[str, ...] | None
) -> tuple[Int64Array | None, tuple[str, ...] | None]:
    """Labels that number the classes which occur, if these have names; None without labels."""
    if labels is None or (labels == -1).all():
        return None, None
    found = np.unique(labels[labels >= 0])
    if class_names is None or len(found) == len(class_names):
        return labels, class_names
    numbered = np.where(labels < 0, -1, np.searchsorted(found, labels)).astype(np.int64)
    return numbered, tuple(class_names[label] for label in found)


def _description(source: Source, contents: Contents) -> dict[str, Any]:
    """What the copy was made from: for people, and for `prepared_data` to find it by."""
    config = source.config.model_dump(mode="json", exclude=BESIDE_THE_COPY)
    return {**config, "has_names": contents.names is not None}


def _load(folder: Path) -> DataSet:
    """The copy in `folder`, which nobody removes while its rows are open.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is not as it was written.
    """
    hold = Hold(folder) if (folder / _META).exists() else None
    try:
        data = _loaded(folder)
    except BaseException:
        if hold is not None:
            hold.release()
        raise
    if hold is not None and isinstance(data.rows, EncodedRows):
        hold.while_there(data.rows.reader)
    elif hold is not None and isinstance(data.rows, np.memmap):
        hold.while_open(data.rows)
    return data


def _loaded(folder: Path) -> DataSet:
    meta = unseal(folder, _META)
    if meta["format"] != _FORMAT_VERSION:
        raise Damaged(f"format {meta['format']} instead of {_FORMAT_VERSION}")
    class_names, labels, names = meta["class_names"], folder / "labels.npy", None
    sample_ids = folder / "sample_ids.npy"
    if (path := folder / "names.parquet").exists():
        names = pq.read_table(path).column("name").to_pylist()
    return DataSet(
        rows=opened(folder, meta, names),
        labels=np.load(labels) if labels.exists() else None,
        class_names=None if class_names is None else tuple(class_names),
        names=names,
        sample_ids=(
            np.load(sample_ids)
            if sample_ids.exists()
            else np.arange(meta["num_rows"], dtype=np.int64)
        ),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        fingerprint=meta["fingerprint"],
        rows_fingerprint=meta["rows_fingerprint"],
        inventory=Inventory.from_json(meta["inventory"]),
    )
