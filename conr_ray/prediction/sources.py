"""Where new samples come from: a folder of images, Parquet, or a data set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data.decoding import batched
from conr_ray.data.inventory import Inventory, told_of
from conr_ray.data.sources.files import FoundFile, locate
from conr_ray.data.sources.forms import form_of
from conr_ray.data.sources.layout import Layout, folder_of, layout_of
from conr_ray.data.sources.picture_files import open_file
from conr_ray.data.sources.vectors import vectors_in
from conr_ray.data.sources.walk import as_text
from conr_ray.data.store import DataSet, open_data
from conr_ray.errors import UserError
from conr_ray.prediction.by_row import ByRow
from conr_ray.prediction.listing import Listing, is_parquet
from conr_ray.prediction.parquet_rows import ParquetRows, is_folder
from conr_ray.prediction.samples import NewSamples, SampleForm


class FolderImages(NewSamples):
    """The images below a folder, those in hidden folders left out."""

    keys = ("path",)

    def __init__(self, form: SampleForm, listing: Listing) -> None:
        """Those of the files of `listing`."""
        super().__init__(form)
        self._listing, self._location = listing, listing.location
        # What the sub-folders stand for; known when the images are counted.
        self.layout: Layout | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is read of a piece needs no folders."""
        return {**self.__dict__, "layout": None}

    @property
    def what(self) -> str:
        """A folder."""
        return "folder"

    @property
    def place(self) -> str:
        """The absolute path, or the URI."""
        return self._location.uri

    def count(self) -> int:
        """How many files are images."""
        folders = Counter(folder_of(file.name) for file in self._images())
        if not folders:
            left_out = told_of(self._listing.left_out)
            raise UserError(
                f"data.path={self._location.text}: no images; name a folder with images, or a "
                "Parquet file" + (f"; left out: {left_out}" if left_out else "")
            )
        config = DataConfig(source="folder", path=self._location.text)
        self.layout = layout_of(folders, config)
        return folders.total()

    def line(self, count: int, more: str = "") -> str:
        """With what was left out."""
        found = Inventory(left_out=self._listing.left_out, why_left_out=self._listing.why_left_out)
        return super().line(count, more) + found.of_left_out()

    def _images(self) -> Iterator[FoundFile]:
        return (file for file in self._listing if not is_parquet(file.name))

    def pieces(self) -> Iterator[pa.Table]:
        """`name` has the bytes of the path, which may be no text."""
        for files in batched(self._images(), self.form.batch_rows):
            yield pa.table(
                {
                    "path": [as_text(file.name) for file in files],
                    "size": [file.size for file in files],
                    "mtime_ns": [file.mtime_ns for file in files],
                    "name": pa.array([os.fsencode(file.name) for file in files], pa.binary()),
                }
            )

    def read(self, piece: pa.Table) -> Iterator[pa.Table]:
        """One batch."""
        names = piece.column("name").to_pylist()
        opened = [
            partial(open_file, self._location, self._found(name, size))
            for name, size in zip(names, piece.column("size").to_pylist(), strict=True)
        ]
        yield self.decoded(piece.drop_columns("name"), opened)

    def _found(self, name: bytes, size: int) -> FoundFile:
        return FoundFile(os.fsdecode(name), size, 0)


class DataSetRows(NewSamples):
    """The samples of a data set that a config describes, from its decoded copy."""

    keys = ("row",)

    def __init__(self, form: SampleForm, name: str, config: DataConfig) -> None:
        """Those of `config`, of the preset `name`."""
        super().__init__(form)
        self._name, self._config = name, config

    @property
    def _data(self) -> DataSet:
        return _copy_of(self._config)

    @property
    def what(self) -> str:
        """The data set of a preset."""
        return f"dataset {self._name}"

    @property
    def place(self) -> str:
        """A checksum of its samples."""
        return self._data.fingerprint

    def count(self) -> int:
        """How many samples there are, if they are of the run's kind."""
        if self._data.what != self.form.kind:
            raise UserError(
                f"--dataset {self._name}: holds {self._data.what}, the run takes {self.form.kind}: "
                "name another"
            )
        return self._data.num_rows

    def line(self, count: int, more: str = "") -> str:
        """That of the data set."""
        return self._data.line

    def pieces(self) -> Iterator[pa.Table]:
        """`index` is a row of the copy, `row` that of the whole data set."""
        ids = self._data.sample_ids
        for start in range(0, len(ids), self.form.batch_rows):
            some = ids[start : start + self.form.batch_rows]
            yield pa.table({"row": some, "index": np.arange(start, start + len(some))})

    def read(self, piece: pa.Table) -> Iterator[pa.Table]:
        """One batch."""
        values = self._data.rows[piece.column("index").to_numpy()]
        rows = piece.drop_columns("index")
        if values.shape[1:] == self.form.shape:
            yield self.form.batch(rows, values, [None] * len(values))
        elif self.form.kind == "vectors":
            lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
            yield self.form.batch(rows, *vectors_in(lists, self.form.shape[0]))
        else:
            yield self.decoded(rows, [partial(_picture, pixels) for pixels in values])


@cache
def _copy_of(config: DataConfig) -> DataSet:
    return open_data(config)


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def new_samples(form: SampleForm, text: str, column: str) -> NewSamples:
    """The samples at a path or URI: images in any form, or vectors in Parquet.

    Raises:
        UserError: there is nothing there, or not what the run takes.
    """
    source = ""
    if form.kind == "images":
        source = form_of(text, column)
        if source not in ("folder", "parquet"):
            config = DataConfig(source=source, path=text, image_column=column, label_column=None)
            return ByRow(form, config)
    if not is_folder(text):
        return ParquetRows(form, text, column)
    listing = Listing(locate(text))
    if source == "folder":
        return FolderImages(form, listing)
    if source == "parquet" or any(is_parquet(file.name) for file in listing):
        return ParquetRows(form, text, column, listing)
    raise UserError(
        f"data.path={text}: no Parquet files; the run takes vectors: name a Parquet file of them, "
        "and --column"
    )
