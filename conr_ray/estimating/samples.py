"""What users hand over as X: arrays, lists of pictures, vectors, or a path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from conr_ray.config import DataConfig, RunConfig, build
from conr_ray.data.arrays import as_images, from_pictures, pixel_range
from conr_ray.data.sources.files import locate
from conr_ray.data.store import DataSet, open_data
from conr_ray.data.subset import ALL_SAMPLES
from conr_ray.errors import UserError, one_line

# Of squares, unless a network asks for others.
_SIDE = 32


def is_path(samples: Any) -> bool:
    """Whether these are samples in files."""
    return isinstance(samples, str | os.PathLike)


def is_pictures(samples: Any) -> bool:
    """Whether these are PIL images."""
    listed = isinstance(samples, list | tuple)
    return listed and bool(samples) and all(isinstance(one, Image.Image) for one in samples)


def is_images(samples: Any) -> bool:
    """Whether these are images in memory; else they are vectors."""
    return is_pictures(samples) or len(getattr(samples, "shape", ())) in (3, 4)


def as_array(samples: Any) -> NDArray[Any]:
    """A NumPy or torch array as NumPy's."""
    if hasattr(samples, "detach"):
        samples = samples.detach().cpu().numpy()
    return np.asarray(samples)


def image_rows(
    samples: Any, brightest: int | None, side: int = _SIDE
) -> tuple[NDArray[np.uint8], int]:
    """Images in memory as bytes (n, c, h, w), and the value of the brightest possible pixel.

    Pictures of several sizes become squares of `side` pixels.

    Raises:
        UserError: they are no images.
    """
    if is_pictures(samples):
        one_size = len({picture.size for picture in samples}) == 1
        return from_pictures(samples, None if one_size else side), 255
    images = as_array(samples)
    brightest = pixel_range(images) if brightest is None else brightest
    return as_images(images, brightest), brightest


def finite(vectors: NDArray[Any], argument: str = "X") -> NDArray[np.float32]:
    """Vectors (n, d), given as `argument`, as float32.

    Raises:
        UserError: one of them has NaN or inf, or a number beyond float32.
    """
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        what = "NaN" if np.isnan(rows[row]).any() else "inf"
        raise UserError(f"{argument}: row {row} holds {what} as float32: leave it out or repair it")
    return rows


def source_of(path: str, argument: str = "X") -> dict[str, Any]:
    """The fields of `data` that read what is at `path`, given as `argument`.

    A Parquet file with a column of lists of floats called `embedding` holds vectors.

    Raises:
        UserError: it is no Parquet file.
    """
    # Runs elsewhere find it too.
    text = path if "://" in path else str(Path(os.path.expanduser(path)).absolute())
    if not path.endswith(".parquet"):
        return {"data.source": "auto", "data.path": text}
    location = locate(text)
    try:
        with location.filesystem.open_input_file(location.path) as file:
            names = pq.read_schema(file).names
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{argument}={path}: {one_line(error)}: name a Parquet file or a folder"
        ) from None
    column = DataConfig.default_of("vector_column")
    source = "vectors" if column in names else "parquet"
    return {"data.source": source, "data.path": text}


def rows_in_files(path: str, config: RunConfig, shape: tuple[int, ...]) -> DataSet:
    """New samples in files, as a run of `config` on samples of `shape` takes them.

    Raises:
        UserError: they cannot be read.
    """
    source = source_of(path)
    held = "vectors" if source["data.source"] == "vectors" else "images"
    taken = "vectors" if len(shape) == 1 else "images"
    if held != taken:
        raise UserError(f"X={path}: holds {held}, the clusters are of {taken}: give {taken}")
    changes = {**source, **ALL_SAMPLES, "data.label_column": None}
    if taken == "images":
        changes["data.stored_size"] = config.data.stored_size or min(shape[1:])
    if source["data.source"] == config.data.source == "parquet":
        changes["data.image_column"] = config.data.image_column
    return open_data(build({"data": {}}, {**changes, **_network_of(held)}).data)


def _network_of(held: str) -> dict[str, str]:
    """A config of vectors must name a network of vectors."""
    return {"model.backbone": "identity"} if held == "vectors" else {}
