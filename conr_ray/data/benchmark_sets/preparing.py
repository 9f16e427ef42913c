"""A benchmark set as one Parquet table, out of its official files.

The table has the columns

image        files of images as they are, or raw pixels (the schema's metadata have their shape)
label        int64; null for an unlabelled image
split        train, test, val or unlabeled
name         path in the official set, if it has some

and of CIFAR-20 fine_label, of CIFAR-100 coarse_label. The schema's metadata have names of classes
(classes, and coarse_classes and the like), title, source, licence and counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from conr_ray.data.benchmark_sets.base import BenchmarkSet, Images, Options, Tally
from conr_ray.data.inventory import counted
from conr_ray.data.progress import Lines, Progress
from conr_ray.errors import UserError, one_line
from conr_ray.storage import disk

_SET = b"conr_ray_set"
# Of a row group, at most: rows, and bytes of images.
_GROUP_ROWS, _GROUP_BYTES = 4096, 64 * 2**20


@dataclass(frozen=True)
class Prepared:
    """A table that is there.

    Attributes:
        path: of the file.
        counts: rows of each split.
        is_new: whether it was made now.
    """

    path: Path
    counts: Mapping[str, int]
    is_new: bool

    def told(self, spec: BenchmarkSet) -> str:
        """What it is and how to train on it, for people."""
        parts = [f"{count:,} {split}" for split, count in self.counts.items()]
        classes = counted(next(iter(spec.classes.values())), "class", "classes")
        there = "" if self.is_new else " (it was there)"
        use = f"--set data.source=parquet --set data.path={self.path}"
        if spec.preset:
            use = f"--preset {spec.preset} {use}"
        return (
            f"{spec.title}: {', '.join(parts)} images, {classes}, {spec.licence}: "
            f"{self.path}{there}\nto train on it: python -m conr_ray.train {use}"
        )


def prepare(
    spec: BenchmarkSet,
    root: Path,
    out: Path,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Write the table of a set, unless it is there.

    Args:
        spec: the set, with the numbers of images that it is to have.
        root: folder of the official files, or where they are put when they are fetched.
        out: the table.
        options: by default, what is missing is fetched, without unlabelled images.
        progress: is told how many images are written; lines on standard error if None.

    Raises:
        UserError: official files are missing, damaged or incomplete, or `out` cannot be written or
            is something else. It then is as it was.
    """
    options = options or Options()
    if options.unlabelled and not spec.num_unlabelled:
        raise UserError(f"{spec.title} has no unlabelled images: leave --unlabelled out")
    if options.unlabelled:
        spec = replace(spec, counts={**spec.counts, "unlabeled": spec.num_unlabelled})
    if out.exists():
        return _there(spec, out, options)
    total = sum(spec.counts.values()) or None
    progress = progress or Lines("prepared", total)
    part, tally = out.with_name(f"{out.name}.{os.getpid()}.part"), Tally(spec)
    try:
        disk.make_folders(out.parent)
        _write(spec, root, part, options, tally, progress)
        with disk.opened(part, os.O_RDONLY) as file:
            os.fsync(file)
        os.replace(part, out)
        disk.sync_folder(out.parent)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written ({one_line(error)}); name a file in a folder with room"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink()
    return Prepared(out, tally.as_json(), is_new=True)


def _there(spec: BenchmarkSet, out: Path, options: Options) -> Prepared:
    """The table that is there, if it is of this set and whole."""
    told: dict[str, Any] = {}
    try:
        file = pq.ParquetFile(out)
        told = json.loads((file.metadata.metadata or {}).get(_SET, b"{}"))
        is_whole = sum(told.get("counts", {}).values()) == file.metadata.num_rows
    # Of what is no Parquet file Arrow raises errors of many kinds.
    except Exception:
        is_whole = False
    counts = told.get("counts", {})
    if (
        not is_whole
        or told.get("name") != spec.name
        or ("unlabeled" in counts) != (options.unlabelled)
    ):
        has = " with its unlabelled images" if options.unlabelled else ""
        raise UserError(
            f"--out {out}: there is a file that is not the table of {spec.title}{has}: name "
            "another, or remove it"
        )
    return Prepared(out, counts, is_new=False)


def _write(
    spec: BenchmarkSet,
    root: Path,
    path: Path,
    options: Options,
    tally: Tally,
    progress: Progress,
) -> None:
    writer: Any = None
    waiting: list[Any] = []
    try:
        for part in spec.read(spec, root, options):
            tally.add(part)
            table = _table(spec, part)
            # Of files of images, which are compressed, zstd saves nothing and costs little.
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            waiting.append(table)
            if _is_full(waiting):
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
            progress.worked(len(part.images))
        tally.check(root)
        assert writer is not None, "the tally knows that there are images"
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
        about = {"name": spec.name, "counts": tally.as_json()}
        writer.add_key_value_metadata({_SET.decode(): json.dumps(about)})
    finally:
        if writer is not None:
            writer.close()


def _is_full(waiting: list[Any]) -> bool:
    rows = sum(len(table) for table in waiting)
    return rows >= _GROUP_ROWS or sum(table.nbytes for table in waiting) >= _GROUP_BYTES


def _table(spec: BenchmarkSet, part: Images) -> Any:
    """Some rows; the schema's metadata tell of the set."""
    if isinstance(part.images, np.ndarray):
        files = [pixels.tobytes() for pixels in part.images]
    else:
        files = list(part.images)
    columns: dict[str, Any] = {"image": pa.array(files, pa.binary())}
    for column, labels in part.labels.items():
        columns[column] = pa.array(labels, pa.int64(), mask=labels < 0)
    columns["split"] = pa.array([part.split] * len(files)).dictionary_encode()
    if part.names is not None:
        columns["name"] = pa.array(part.names, pa.string())
    metadata = {
        "title": spec.title,
        "source": spec.archive.url,
        "licence": spec.licence,
        **{
            column.replace("label", "classes"): json.dumps(list(names))
            for column, names in part.class_names.items()
        },
    }
    if spec.shape:
        metadata["shape"] = ",".join(map(str, spec.shape))
    return pa.table(columns).replace_schema_metadata(metadata)
