"""A Parquet table of the vectors that a pre-trained backbone makes of images.

Columns

path, or file and row    of the image: the path in its folder, or its row in a Parquet file
embedding                fixed_size_list<float>, finite
label                    of the image where one is known: the folder it is in, or a column

The schema's metadata tell by `conr_ray.embed`, as JSON, of backbone, weights, licence and
preparation. While the table is made, the folder beside it that ends in .parts holds what is done:
the same command goes on with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch

from conr_ray.config import DataConfig
from conr_ray.data.sources import make_source
from conr_ray.data.sources.files import locate
from conr_ray.data.sources.layout import Layout, folder_of
from conr_ray.data.sources.walk import as_text, from_text
from conr_ray.data.store import open_data
from conr_ray.errors import UserError, one_line
from conr_ray.frozen import FrozenBackbone
from conr_ray.prediction.progress import PredictionProgress
from conr_ray.prediction.samples import NewSamples, SampleForm
from conr_ray.storage.patience import PatientFolder

ABOUT = b"conr_ray.embed"
_JSON = "about.json"
_ROW_GROUP = 8192

Worked = Callable[[Iterable[pa.Table]], Iterator[pa.Table]]
"""From the pieces that are left to batches with an embedding, in any order."""


@dataclass(frozen=True)
class BatchEmbedding:
    """From batches of images to their vectors; the columns `keys` and the like stay."""

    backbone: FrozenBackbone
    form: SampleForm

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of the batch; of an image that could not be read, null but for the reason."""
        sound = batch.column("reason").is_null().to_numpy(zero_copy_only=False)
        values = np.require(self.form.values(batch)[sound], requirements="W")
        found = np.zeros((len(batch), self.backbone.pretrained.out_features), np.float32)
        found[sound] = self.backbone.plain(torch.from_numpy(values)).numpy()
        if not np.isfinite(found).all():
            raise UserError(
                f"--backbone {self.backbone.pretrained.name}: a vector is not finite: give other "
                "--weights"
            )
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), found.shape[1])
        return batch.drop_columns("samples").append_column("embedding", vectors)


@dataclass(frozen=True)
class Labels:
    """Where the labels of samples are.

    Attributes:
        text: path or URI of the images; None for a data set.
        image_column: of Parquet files.
        label_column: of Parquet files; None ignores labels.
        data: the data set.
        layout: of a folder of images.
        by_row: of archives, lists and arrays.
    """

    text: str | None
    image_column: str
    label_column: str | None
    data: DataConfig | None = None
    layout: Layout | None = None
    by_row: DataConfig | None = None
    _known: dict[str, list[Any]] = field(default_factory=dict)

    def of(self, rows: pa.Table) -> pa.Array | None:
        """The labels of some rows of a table; None if none are known."""
        if self.label_column is None:
            return None
        names = rows.column_names
        if self.by_row is not None:
            known = self._of_rows
            of_rows = [known.get(one) for one in rows.column(names[0]).to_pylist()]
            return _as_array(of_rows) if known else None
        if "path" in names:
            classes = None if self.layout is None else self.layout.classes
            if classes is None:
                return None
            folders = [folder_of(from_text(path)) for path in rows.column("path").to_pylist()]
            names = [classes.get(folder) for folder in folders]
            return pa.array([name and as_text(name) for name in names], pa.string())
        files = rows.column("file").to_pylist() if "file" in names else [""] * len(rows)
        found = [
            self._of_file(file)[row]
            for file, row in zip(files, rows.column("row").to_pylist(), strict=True)
        ]
        return _as_array(found)

    @cached_property
    def _of_rows(self) -> dict[Any, Any]:
        """The labels of images that are opened by row, by their paths or rows; empty without."""
        assert self.by_row is not None
        contents = make_source(self.by_row).contents()
        if contents.labels is None:
            return {}
        keys = range(contents.num_rows) if contents.names is None else contents.names
        told = _named(contents.labels, contents.class_names, contents.num_rows)
        return dict(zip(keys, told, strict=True))

    @property
    def told(self) -> str:
        """Whether folders are classes, for a line; empty where there are no folders."""
        if self.layout is None or self.label_column is None:
            return ""
        names = set((self.layout.classes or {}).values()) - {None}
        if names:
            return f", labels from folders: {len(names):,} classes"
        return ", no labels" + (f" ({self.layout.why})" if self.layout.why else "")

    def _of_file(self, file: str) -> list[Any]:
        if file not in self._known:
            self._known[file] = self._read(file)
        return self._known[file]

    def _read(self, file: str) -> list[Any]:
        if self.data is not None:
            data = open_data(self.data)
            told = _named(data.labels, data.class_names, data.num_rows)
            rows = dict(zip(data.sample_ids.tolist(), told, strict=True))
            return [rows.get(row) for row in range(1 + max(rows))]
        assert self.text is not None
        path = f"{self.text.rstrip('/')}/{file}" if file else self.text
        config = DataConfig(
            source="parquet",
            path=path,
            image_column=self.image_column,
            label_column=self.label_column,
        )
        contents = make_source(config).contents()
        return _named(contents.labels, contents.class_names, contents.num_rows)


def _as_array(labels: list[Any]) -> pa.Array:
    text = any(isinstance(label, str) for label in labels)
    return pa.array(labels, pa.string() if text else pa.int64())


def _named(labels: Any, names: tuple[str, ...] | None, num_rows: int) -> list[Any]:
    """Labels as their names, if they have some; None for unknown ones."""
    if labels is None:
        return [None] * num_rows
    return [
        None if label < 0 else label if names is None else names[label] for label in labels.tolist()
    ]


@dataclass
class Table:
    """The table `out`, a path or URI, of `samples`; `about` tells what it is made by."""

    out: str
    samples: NewSamples
    about: Mapping[str, Any]
    labels: Labels
    num_rows: int = 0
    num_errors: int = 0
    first_reason: str = ""

    def check_free(self) -> None:
        """Raise UserError if there is something at `out`."""
        location = locate(self.out)
        if location.filesystem.get_file_info(location.path).type != pafs.FileType.NotFound:
            raise UserError(f"--out {self.out}: it exists: choose another, or remove it")

    def write(self, worked: Worked, progress: PredictionProgress) -> None:
        """Embed what is not done yet, and write the table.

        Raises:
            UserError: it cannot be written.
        """
        parts = PatientFolder(f"{self.out}.parts")
        told = {
            **self.about,
            "what": self.samples.what,
            "images": self.samples.place,
            "column": self.labels.image_column,
        }
        if parts.read_json(_JSON) != json.loads(json.dumps(told)):
            # Of other images, or by another backbone.
            parts.delete_folder("")
            parts.write_text(_JSON, json.dumps(told) + "\n")
        done = set(parts.file_names(""))
        lengths: dict[int, tuple[str, int]] = {}

        def left() -> Iterator[pa.Table]:
            for number, piece in enumerate(self.samples.pieces()):
                name = _part_name(number, piece)
                lengths[number] = name, len(piece)
                if name in done:
                    progress.passed(len(piece))
                    continue
                yield piece.append_column("piece", pa.array([number] * len(piece), pa.int64()))

        begun: dict[int, list[pa.Table]] = {}
        for rows in worked(left()):
            progress.worked(len(rows))
            number = rows.column("piece")[0].as_py()
            begun.setdefault(number, []).append(rows.drop_columns("piece"))
            name, length = lengths[number]
            if sum(map(len, begun[number])) == length:
                found = pa.concat_tables(begun.pop(number))
                # Actors end the batches of a piece in any order.
                if "row" in self.samples.keys:
                    found = found.sort_by("row")
                parts.write_table(name, found)
        self._join(parts, [lengths[number][0] for number in sorted(lengths)])
        parts.delete_folder("")

    def _join(self, parts: PatientFolder, names: list[str]) -> None:
        location = locate(self.out)
        if location.is_local:
            Path(location.path).parent.mkdir(parents=True, exist_ok=True)
        unfinished = f"{location.path}.part" if location.is_local else location.path
        writer: pq.ParquetWriter | None = None
        try:
            for rows in self._groups(parts, names):
                if writer is None:
                    about = {ABOUT: json.dumps(self.about)}
                    schema = rows.schema.with_metadata(about)
                    writer = pq.ParquetWriter(
                        unfinished, schema, filesystem=location.filesystem, compression="zstd"
                    )
                writer.write_table(rows.cast(writer.schema))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"--out {self.out}: cannot be written ({one_line(error)})") from None
        finally:
            if writer is not None:
                writer.close()
        if writer is not None and location.is_local:
            location.filesystem.move(unfinished, location.path)

    def _groups(self, parts: PatientFolder, names: list[str]) -> Iterator[pa.Table]:
        """The rows of the table in its order, in row groups."""
        some: list[pa.Table] = []
        for name in names:
            table = parts.read_table(name)
            assert table is not None
            some.append(self._finished(table))
            if sum(map(len, some)) >= _ROW_GROUP:
                yield pa.concat_tables(some)
                some = []
        if some and sum(map(len, some)):
            yield pa.concat_tables(some)

    def _finished(self, rows: pa.Table) -> pa.Table:
        failed = pc.is_valid(rows.column("reason"))
        if bool(pc.any(failed).as_py()):
            reasons = rows.filter(failed).column("reason")
            self.first_reason = self.first_reason or reasons[0].as_py()
            self.num_errors += len(reasons)
            rows = rows.filter(pc.invert(failed))
        self.num_rows += len(rows)
        rows = rows.select([*self.samples.keys, "embedding"])
        if (labels := self.labels.of(rows)) is not None:
            rows = rows.append_column("label", labels)
        return rows


def _part_name(number: int, piece: pa.Table) -> str:
    """Of a piece of these samples, as their files are now."""
    text = json.dumps(piece.to_pydict(), default=str)
    return f"part-{number:08d}-{blake2b(text.encode(), digest_size=8).hexdigest()}.parquet"


def form_of(backbone: FrozenBackbone) -> SampleForm:
    """Colour pictures of the side that the backbone takes."""
    side = backbone.pretrained.preparation.size
    return SampleForm((3, side, side), side)


def on_device(backbone: FrozenBackbone, device: str) -> FrozenBackbone:
    """The same, elsewhere."""
    return replace(backbone, device=torch.device(device))
