"""Samples in memory are the same data set as a source of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from conr_ray.config import DataConfig
from conr_ray.data.arrays import (
    as_images,
    as_table,
    data_set,
    from_pictures,
    pixel_range,
)
from conr_ray.data.sources.label_column import labels_of
from conr_ray.data.store import DataSet, open_data
from conr_ray.errors import UserError


def same(left: DataSet, right: DataSet) -> None:
    np.testing.assert_array_equal(left.rows, right.rows)
    assert (left.fingerprint, left.mean, left.std) == (right.fingerprint, right.mean, right.std)
    np.testing.assert_array_equal(left.sample_ids, right.sample_ids)


def test_digits_in_memory_are_those_of_their_source() -> None:
    digits = load_digits()
    rows = as_images(digits.images, pixel_range(digits.images))
    same(data_set(rows, labels_of(digits.target, "y")[0]), open_data(DataConfig(source="digits")))
    same(data_set(rows), open_data(DataConfig(source="digits", label_column=None)))


def test_a_table_of_samples_is_a_source_of_them(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    colour = data_set(draw.integers(0, 256, (5, 3, 6, 7), np.uint8), np.array([0, 1, -1, 0, 1]))
    vectors = data_set(draw.normal(size=(5, 4)).astype(np.float32))
    for data, source in ((colour, "parquet"), (vectors, "vectors")):
        path = tmp_path / f"{source}.parquet"
        pq.write_table(as_table(data), path)
        same(data, open_data(DataConfig(source=source, path=str(path))))


def test_all_layouts_and_ranges_of_images_become_the_same_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), np.uint8)
    pixels[0, 0, 0, 0] = 255
    assert pixel_range(pixels) == 255
    np.testing.assert_array_equal(as_images(pixels.transpose(0, 2, 3, 1), 255), pixels)
    shares = pixels / 255
    assert pixel_range(shares) == 1
    np.testing.assert_array_equal(as_images(shares, 1), pixels)
    assert pixel_range(pixels.astype(np.int64)) == 255
    np.testing.assert_array_equal(as_images(pixels[:, 0], 255), pixels[:, :1])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 3, 8, 3), np.uint8), "channels could be first or last"),
        (np.zeros((4, 8, 8, 4), np.uint8), "give 1 channel"),
        (np.full((4, 8, 8), 2.0), "scale them alike"),
        (np.zeros((4, 8), np.uint8), "give n x height x width"),
    ],
)
def test_doubtful_images_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_images(images, 1)


@pytest.mark.parametrize("pixel", [-1.0, 300.0, np.nan])
def test_pixels_out_of_range_are_refused(pixel: float) -> None:
    with pytest.raises(UserError, match="give uint8 from 0 to 255"):
        pixel_range(np.array([[[0.5, pixel]]]))


def test_pictures_are_fitted_to_the_first() -> None:
    grey, colour = Image.new("L", (6, 5), 9), Image.new("RGB", (12, 10), (1, 2, 3))
    assert from_pictures([grey, grey]).shape == (2, 1, 5, 6)
    rows = from_pictures([grey, colour])
    assert rows.shape == (2, 3, 5, 6)
    assert (rows[0] == 9).all() and rows[1, :, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("classes", "labels", "names"),
    [
        (["cat", "ant", "cat"], [1, 0, 1], ("ant", "cat")),
        (["cat", None, "ant"], [1, -1, 0], ("ant", "cat")),
        ([3, -1], [3, -1], None),
        ([3, None], [3, -1], None),
        (np.array([3, 0], np.uint64), [3, 0], None),
        (torch.tensor([2.0, float("nan")]), [2, -1], None),
        (np.array([b"b", b"a"]), [1, 0], ("a", "b")),
        ([True, False], [1, 0], ("false", "true")),
    ],
)
def test_classes_of_any_kind_are_labels(
    classes: Any, labels: list[int], names: tuple[str, ...] | None
) -> None:
    found, found_names = labels_of(classes, "y")
    assert found.tolist() == labels and found_names == names


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([1, "a", None], "y: holds values of several kinds: give integers or strings"),
        ([0.5, 1.0], "y: holds double, such as 0.5, which is no class; give integers or strings"),
        ([-2, 1], "y: holds -2; write -1 for an unlabelled image"),
        ([{"a": 1}], "y: holds struct<a: int64>; give integers or strings"),
    ],
)
def test_what_is_no_class_is_refused(classes: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        labels_of(classes, "y")
