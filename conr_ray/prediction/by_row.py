"""New images in archives, lists and arrays, through the sources that training reads them by."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa

from conr_ray.config import DataConfig
from conr_ray.data.sources import make_source
from conr_ray.data.sources.by_row import ImagesByRow
from conr_ray.data.sources.files import locate
from conr_ray.prediction.samples import NewSamples, SampleForm


class ByRow(NewSamples):
    """The images of a source by row."""

    def __init__(self, form: SampleForm, config: DataConfig) -> None:
        """Those that `config` describes."""
        super().__init__(form)
        self.config = config
        self.keys = ("row",) if opened(config).names is None else ("path",)

    @property
    def what(self) -> str:
        """As `data.source`."""
        return self.config.source

    @property
    def place(self) -> str:
        """The absolute path or the URI, and the column."""
        return f"{locate(str(self.config.path)).uri}#{self.config.image_column}"

    def count(self) -> int:
        """How many images there are."""
        return opened(self.config).num_rows

    def line(self, count: int, more: str = "") -> str:
        """With what was left out."""
        return super().line(count, more) + opened(self.config).inventory().of_left_out()

    def pieces(self) -> Iterator[pa.Table]:
        """`index` is the row."""
        source = opened(self.config)
        names, num_rows = source.names, source.num_rows
        for start in range(0, num_rows, self.form.batch_rows):
            rows = np.arange(start, min(start + self.form.batch_rows, num_rows))
            keys = rows if names is None else names[start : start + len(rows)]
            yield pa.table({self.keys[0]: keys, "index": rows})

    def read(self, piece: pa.Table) -> Iterator[pa.Table]:
        """One batch."""
        source = opened(self.config)
        images = [source.at(row).open for row in piece.column("index").to_pylist()]
        yield self.decoded(piece.drop_columns("index"), images)


@lru_cache(4)
def opened(config: DataConfig) -> ImagesByRow:
    """The source of `config`, which lists its images once in a process."""
    source = make_source(config)
    assert isinstance(source, ImagesByRow), "forms that are read by row"
    return source
