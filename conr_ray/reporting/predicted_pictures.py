"""Small pictures of images that were predicted, read from where the images are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from conr_ray.config import DataConfig, load_preset
from conr_ray.data.decoding import open_encoded
from conr_ray.data.pictures import small_file
from conr_ray.data.prepared import prepared_data
from conr_ray.data.sources import BY_ROW, make_source
from conr_ray.data.sources.by_row import ImagesByRow
from conr_ray.data.sources.files import Location, locate
from conr_ray.data.store import DataSet
from conr_ray.errors import UserError
from conr_ray.reporting.blocks import Picture
from conr_ray.reporting.parquet_pictures import parquet_pictures
from conr_ray.reporting.predictions_data import Predicted
from conr_ray.reporting.sample_names import file_at, local_folder

# Most bytes of a file that is read for its picture.
_MOST_BYTES = 64 * 2**20


class PredictedPictures:
    """Reads pictures of a folder's images or of Parquet, local or in a bucket, or of a data set.

    What cannot be reached has no picture. After a bucket's first failure no more are read from it.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        """Find the images of prediction.json; none is read yet."""
        what, images = str(told["what"]), str(told["images"])
        self._root, self._folder = images.rstrip("/"), None
        self._location: Location | None = None
        self._data: DataSet | None = None
        self._parquet = images if what == "parquet" else None
        self._rows: Mapping[Any, int] = {}
        self._source: ImagesByRow | None = None
        if what in BY_ROW:
            self._find(what, images)
        if what == "folder":
            self._folder = local_folder(images)
            if "://" in images:
                try:
                    self._location = locate(self._root)
                except UserError:
                    self._location = None
        elif what.startswith("dataset"):
            try:
                self._data = prepared_data(load_preset(what.split()[-1]).data)
            except UserError:
                self._data = None

    def _find(self, what: str, images: str) -> None:
        """The images of an archive, a list or an array, by their paths or rows."""
        path, _, column = images.rpartition("#")
        # What is not there, or damaged, has no pictures.
        with suppress(Exception):
            source = make_source(DataConfig(source=what, path=path, image_column=column))
            assert isinstance(source, ImagesByRow)
            rows = range(source.num_rows)
            self._rows = dict(zip(source.names or rows, rows, strict=True))
            self._source = source

    def read(self, images: Iterable[Predicted]) -> dict[Predicted, bytes]:
        """The pictures of those images that can be reached."""
        wanted = list(dict.fromkeys(images))
        if self._parquet is not None:
            return parquet_pictures(self._parquet, wanted)
        with ThreadPoolExecutor(8) as pool:
            found = dict(zip(wanted, pool.map(self._picture, wanted), strict=True))
        return {image: data for image, data in found.items() if data is not None}

    def file(self, image: Predicted) -> str | None:
        """The absolute path of an image's file, if it is on this machine."""
        return file_at(self._folder, image.path)

    def shown(self, image: Predicted, alt: str, data: bytes) -> Picture:
        """The picture with its name and a link to its file."""
        return Picture(data, f"{alt}: {image.name}", "", self.file(image))

    def _picture(self, image: Predicted) -> bytes | None:
        try:
            if self._data is not None:
                within = image.row is not None and 0 <= image.row < self._data.num_rows
                return self._data.picture(image.row or 0) if within else None
            if self._source is not None:
                row = self._rows.get(image.row if image.path is None else image.path)
                return None if row is None else small_file(self._source.at(row).open())
            data = self._bytes(image)
            return None if data is None else small_file(open_encoded(data))
        # Decoders raise errors of many kinds.
        except Exception:
            return None

    def _bytes(self, image: Predicted) -> bytes | None:
        if (file := self.file(image)) is not None:
            with open(file, "rb") as opened:
                data = opened.read(_MOST_BYTES + 1)
            return data if len(data) <= _MOST_BYTES else None
        if self._location is None or image.path is None:
            return None
        try:
            return self._location.read(image.path.removeprefix(f"{self._root}/"))
        except OSError:
            self._location = None
            return None
