"""Samples that a program holds: arrays of images or vectors, and lists of pictures.

Shapes: n samples, c channels (1 grey or 3 RGB), h and w pixels, d features.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from conr_ray.data.decoding import conformed, is_grey, reason_of, upright_size
from conr_ray.data.sources.base import Int64Array, UInt8Array
from conr_ray.data.statistics import statistics_of
from conr_ray.data.store import DataSet
from conr_ray.errors import UserError

# What pixels may be scaled to: shares, the grey levels of scikit-learn's digits, bytes.
_PIXEL_RANGES = (1, 16, 255)
_CHANNELS = (1, 3)


def data_set(
    rows: NDArray[Any],
    labels: Int64Array | None = None,
    class_names: tuple[str, ...] | None = None,
) -> DataSet:
    """Samples in memory as a data set, equal to that of a source that holds the same.

    Args:
        rows: images, uint8 (n, c, h, w), or vectors, float32 (n, d).
        labels: (n,), -1 for unlabelled samples; only for metrics.
        class_names: of the labels, if they have names.
    """
    rows = np.ascontiguousarray(rows)
    if labels is not None and (labels == -1).all():
        labels, class_names = None, None
    digest = hashlib.sha256(str(rows.shape).encode())
    digest.update(rows.data)
    rows_fingerprint = digest.hexdigest()
    if labels is not None:
        digest.update(np.ascontiguousarray(labels).data)
    sums = statistics_of(rows.shape)
    sums.add(rows)
    mean, std = sums.mean_and_std()
    ids = np.arange(len(rows), dtype=np.int64)
    fingerprint = digest.hexdigest()
    return DataSet(rows, labels, class_names, None, ids, mean, std, fingerprint, rows_fingerprint)


def pixel_range(images: NDArray[Any]) -> int:
    """Value of the brightest pixel that images of this kind may have.

    255 for bytes, else the least that fits of 1, 16 (scikit-learn's digits) and 255.

    Raises:
        UserError: some pixels are negative, above 255 or not finite.
    """
    if images.dtype == np.uint8:
        return 255
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if not (low >= 0 and high <= 255):
        raise UserError(
            f"images of {images.dtype} from {low:g} to {high:g}: give uint8 from 0 to 255, or "
            "floats from 0 to 1"
        )
    return next(most for most in _PIXEL_RANGES if high <= most)


def as_images(images: NDArray[Any], brightest: int) -> UInt8Array:
    """Images (n, h, w), (n, h, w, c) or (n, c, h, w) as bytes (n, c, h, w).

    Args:
        images: uint8, or numbers from 0 to `brightest`, which are spread over 0..255.
        brightest: value of the brightest pixel; see `pixel_range`.

    Raises:
        UserError: the shape is none of these or fits two of them, or a pixel is out of range.
    """
    shape = " x ".join(map(str, images.shape))
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise UserError(f"images of shape {shape}: give n x height x width (x channels)")
    if images.dtype != np.uint8:
        if not (images.min() >= 0 and images.max() <= brightest):
            raise UserError(
                f"images of {images.dtype} from {images.min():g} to {images.max():g}: those that "
                f"the clusters are of go from 0 to {brightest}: scale them alike, or give uint8"
            )
        images = np.round(images * 255 / brightest).astype(np.uint8)
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
    if first and last:
        raise UserError(
            f"images of shape {shape}: channels could be first or last: give more than 3 pixels "
            "a side"
        )
    if not (first or last):
        raise UserError(f"images of shape {shape}: give 1 channel (grey) or 3 (RGB)")
    return np.ascontiguousarray(images if first else images.transpose(0, 3, 1, 2))


def from_pictures(pictures: Sequence[Image.Image], side: int | None = None) -> UInt8Array:
    """PIL images as bytes (n, c, h, w), as a source of files stores them.

    Args:
        pictures: grey if all of them are, else made RGB.
        side: of the squares that they are made to fit; by default the size of the first one.

    Raises:
        UserError: a picture cannot be decoded.
    """
    channels = 1 if all(map(is_grey, pictures)) else 3
    width, height = upright_size(pictures[0])
    shape = (channels, side or height, side or width)
    rows = np.empty((len(pictures), *shape), np.uint8)
    for row, picture in enumerate(pictures):
        try:
            rows[row] = conformed(picture, shape, None)
        # Decoders raise many kinds of errors on broken bytes.
        except Exception as error:
            raise UserError(
                f"image {row} cannot be decoded ({reason_of(error)}): leave it out"
            ) from None
    return rows


def as_table(data: DataSet) -> pa.Table:
    """The samples as a table of which a Parquet file is a source of the same samples.

    Images are PNG files in the column `image`, vectors lists in `embedding`; labels are in `label`.
    """
    if data.rows.ndim == 2:
        flat = pa.array(np.asarray(data.rows).ravel())
        columns = {"embedding": pa.FixedSizeListArray.from_arrays(flat, data.rows.shape[1])}
    else:
        columns = {"image": pa.array([_png(image) for image in np.asarray(data.rows)], pa.binary())}
    if data.labels is not None:
        columns["label"] = pa.array(data.labels)
    return pa.table(columns)


def _png(image_chw: UInt8Array) -> bytes:
    pixels_hwc = np.ascontiguousarray(np.moveaxis(image_chw, 0, -1))
    buffer = io.BytesIO()
    Image.fromarray(pixels_hwc[..., 0] if len(image_chw) == 1 else pixels_hwc).save(buffer, "PNG")
    return buffer.getvalue()
