"""Vectors as a source and as inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conr_ray.config import DataConfig
from conr_ray.data.store import open_data
from conr_ray.errors import UserError
from tests.data.test_sources import SourceConformance
from tests.tiny_runs import lists_of


def lists(vectors: Any, kind: str = "fixed") -> pa.Array:
    if kind == "fixed":
        return lists_of(vectors)
    item = pa.list_ if kind == "list" else pa.large_list
    return pa.array(vectors.tolist(), item(pa.from_numpy_dtype(vectors.dtype)))


def write(folder: Path, column: Any, **more: Any) -> DataConfig:
    path = folder / "vectors.parquet"
    pq.write_table(pa.table({"embedding": column, **more}), path, row_group_size=4)
    return DataConfig(source="vectors", path=str(path))


class TestVectors(SourceConformance):
    dtype = np.float32

    @pytest.fixture(params=["fixed", "list", "large", "float64", "float16", "column"])
    def case(self, request: Any, tmp_path: Path) -> Any:
        kind = request.param
        dtype = kind if kind.startswith("float") else "float32"
        vectors = np.random.default_rng(0).normal(size=(10, 5)).astype(dtype)
        labels = [i % 3 for i in range(10)]
        shape = kind if kind in ("list", "large") else "fixed"
        config = write(tmp_path, lists(vectors, shape), label=labels)
        if kind == "column":
            config = write(tmp_path, labels, other=lists(vectors), label=labels)
            config = config.model_copy(update={"vector_column": "other"})
        return config, vectors.astype(np.float32), labels

    def test_stored_size_makes_squares(self, case: Any, read: Any) -> None:
        """Vectors have no size to be changed; the config refuses it."""

    def test_splits_keep_their_rows(self, tmp_path: Path, read: Any) -> None:
        vectors = np.arange(20, dtype=np.float32).reshape(10, 2)
        config = write(tmp_path, lists(vectors), split=["train", "test"] * 5)
        _, found = read(config.model_copy(update={"splits": ("test",)}))
        np.testing.assert_array_equal(found, vectors[1::2])


def _broken(change: str) -> Any:
    rows: list[Any] = np.ones((6, 3), np.float32).tolist()
    if change == "missing":
        rows[4] = None
    elif change == "first missing":
        rows[0] = None
    elif change == "short":
        rows[4] = [1.0]
    elif change == "nan":
        rows[4][1] = float("nan")
    elif change == "infinite":
        rows[4][1] = float("inf")
    elif change == "empty":
        rows = [[] for _ in rows]
    return pa.array(rows, pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("missing", "row 4 of embedding has no vector, others have 3"),
        ("first missing", "row 0 of embedding has no vector"),
        ("short", "row 4 of embedding has 1 numbers, others have 3"),
        ("nan", "row 4 of embedding has a non-finite number"),
        ("infinite", "row 4 of embedding has a non-finite number"),
        ("empty", "data.vector_column=embedding: its vectors are empty"),
    ],
)
def test_broken_vectors_are_refused_with_their_row(
    tmp_path: Path, change: str, problem: str
) -> None:
    with pytest.raises(UserError) as caught:
        open_data(write(tmp_path, _broken(change)), tmp_path / "cache")
    assert problem in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("column", [["a"] * 3, [1, 2, 3], [b"x"] * 3, [["a"]] * 3, [[1]] * 3])
def test_columns_of_other_kinds_are_refused(tmp_path: Path, column: Any) -> None:
    with pytest.raises(UserError, match=r"data\.vector_column=embedding: holds .*; name a column"):
        open_data(write(tmp_path, column), tmp_path / "cache")


def test_an_absent_column_is_answered_with_those_there_are(tmp_path: Path) -> None:
    config = write(tmp_path, [1.0], label=[0]).model_copy(update={"vector_column": "vector"})
    with pytest.raises(UserError, match=r"no such column; choose from embedding, label"):
        open_data(config, tmp_path / "cache")


def test_a_data_set_of_vectors_knows_its_statistics_and_subsets(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(2, 3, size=(50, 4)).astype(np.float32)
    config = write(tmp_path, lists(vectors), label=[i % 2 for i in range(50)])
    whole = open_data(config, tmp_path / "cache")
    assert (whole.num_rows, whole.row_shape, whole.what) == (50, (4,), "vectors")
    np.testing.assert_allclose(whole.mean, vectors.mean(0), rtol=1e-5)
    assert whole.picture(0) is None
    part = open_data(config.model_copy(update={"limit": 20}), tmp_path / "cache")
    np.testing.assert_array_equal(part.rows, whole.rows[part.sample_ids])
    assert part.fingerprint != whole.fingerprint
