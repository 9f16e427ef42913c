"""Columns of every Arrow type, as labels and as images: accepted, or refused in one line."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conr_ray.config import DataConfig
from conr_ray.data.sources import make_source
from conr_ray.data.sources.encoded import SizesDiffer
from conr_ray.data.sources.label_column import labels_in
from conr_ray.data.store import open_data
from conr_ray.errors import UserError

_PLAIN = [
    pa.null(),
    pa.bool_(),
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
    *(pa.decimal32(5, 2), pa.decimal64(10, 0), pa.decimal128(20, 3), pa.decimal256(40, 0)),
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us")),
    *(pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.duration("ms")),
    pa.month_day_nano_interval(),
    *(pa.uuid(), pa.json_(), pa.bool8()),
]
_TYPES = [
    *_PLAIN,
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.binary()),
    pa.dictionary(pa.int16(), pa.int64()),
    pa.run_end_encoded(pa.int32(), pa.string()),
    pa.run_end_encoded(pa.int16(), pa.uint8()),
    *(pa.list_(pa.uint8()), pa.large_list(pa.int64()), pa.list_(pa.uint8(), 4)),
    *(pa.list_view(pa.uint8()), pa.large_list_view(pa.uint8())),
    *(pa.list_(pa.list_(pa.uint8())), pa.list_(pa.list_(pa.list_(pa.int32())))),
    *(pa.list_(pa.string()), pa.list_(pa.float32()), pa.list_(pa.list_(pa.float64()))),
    pa.list_(pa.list_(pa.list_(pa.list_(pa.uint8())))),
    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    pa.struct([("bytes", pa.list_(pa.uint8()))]),
    pa.struct([("bytes", pa.string())]),
    pa.struct([("bytes", pa.binary()), ("bytes", pa.binary())]),
    pa.struct([("x", pa.int64())]),
    pa.struct([]),
    pa.map_(pa.string(), pa.int64()),
    pa.dense_union([pa.field("a", pa.int64()), pa.field("b", pa.string())]),
    pa.sparse_union([pa.field("a", pa.int64())]),
    pa.fixed_shape_tensor(pa.uint8(), [2, 2]),
    pa.fixed_shape_tensor(pa.uint8(), [2, 2, 3]),
    pa.fixed_shape_tensor(pa.float32(), [2, 2]),
    pa.fixed_shape_tensor(pa.uint8(), [2]),
]


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values that Arrow may make an array of this type of; arrays of none where it cannot."""
    types = pa.types
    if isinstance(kind, pa.FixedShapeTensorType):
        return st.none()
    if isinstance(kind, pa.BaseExtensionType):
        return values_of(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return values_of(kind.value_type)
    if types.is_boolean(kind):
        return st.booleans()
    if types.is_integer(kind):
        bits, signed = kind.bit_width, not str(kind).startswith("u")
        low = -(2 ** (bits - 1)) if signed else 0
        # Those that are often labels, and any.
        every = st.integers(low, low + 2**bits - 1)
        return st.one_of(st.integers(max(low, -1), 9), every)
    if types.is_floating(kind):
        return st.one_of(st.integers(-1, 9).map(float), st.floats(width=16))
    if types.is_decimal(kind):
        return st.integers(-1, 99).map(Decimal)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    if types.is_fixed_size_binary(kind):
        return st.binary(min_size=kind.byte_width, max_size=kind.byte_width)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return st.one_of(st.just(b"a"), st.binary(max_size=5))
    if types.is_date(kind):
        return st.dates()
    if types.is_fixed_size_list(kind):
        return st.lists(
            values_of(kind.value_type), min_size=kind.list_size, max_size=kind.list_size
        )
    if types.is_map(kind):
        return st.just([("a", 1)])
    if types.is_nested(kind) and hasattr(kind, "value_type"):
        return st.lists(values_of(kind.value_type), max_size=4)
    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return st.fixed_dictionaries({field.name: values_of(field.type) for field in fields})
    return st.none()


@st.composite
def columns(draw: st.DrawFn) -> Any:
    """A column of any type, with gaps, in one or two chunks."""
    kind = draw(st.sampled_from(_TYPES))
    values = draw(st.lists(st.one_of(st.none(), values_of(kind)), min_size=1, max_size=6))
    try:
        array = pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        array = pa.nulls(len(values), kind)
    cut = draw(st.integers(0, len(values)))
    return pa.chunked_array([array.slice(0, cut), array.slice(cut)], kind)


def one_line(error: UserError, field: str) -> None:
    assert str(error).startswith((f"data.{field}=", "data.path=")) and "\n" not in str(error)


class TestLabels:
    @settings(max_examples=600, deadline=None)
    @given(columns())
    def test_any_column_is_labels_or_one_line(self, column: Any) -> None:
        try:
            labels, names = labels_in(column, "label")
        except UserError as error:
            one_line(error, "label_column")
            return
        assert labels.dtype == np.int64 and len(labels) == len(column) and labels.min() >= -1
        if names is not None:
            assert labels.max() < len(names) and all(isinstance(name, str) for name in names)
        # Equal values have equal labels, and others have others.
        for one, label in zip(column.to_pylist(), labels, strict=True):
            for other, its in zip(column.to_pylist(), labels, strict=True):
                if label >= 0 and its >= 0:
                    assert (one == other) == (label == its)

    @pytest.mark.parametrize(
        ("values", "kind", "labels", "names"),
        [
            ([3, None, 5, -1], pa.int8(), [3, -1, 5, -1], None),
            ([3, 9, 5, 3], pa.uint32(), [3, 9, 5, 3], None),
            ([3.0, None, float("nan"), 7.0], pa.float64(), [3, -1, -1, 7], None),
            ([3.0, None, 5.0, -1.0], pa.float16(), [3, -1, 5, -1], None),
            ([Decimal(3), None, Decimal(0)], pa.decimal128(9, 2), [3, -1, 0], None),
            ([2**63 + 1, 5, None], pa.uint64(), [1, 0, -1], ("5", str(2**63 + 1))),
            ([2**63 - 1, 5], pa.uint64(), [2**63 - 1, 5], None),
            ([True, None, False], pa.bool_(), [1, -1, 0], ("false", "true")),
            (["b", None, "a"], pa.string_view(), [1, -1, 0], ("a", "b")),
            ([b"b", None, "ä".encode()], pa.binary_view(), [0, -1, 1], ("b", "ä")),
            ([b"bb", b"aa"], pa.binary(2), [1, 0], ("aa", "bb")),
            ([None, None], pa.null(), [-1, -1], None),
        ],
    )
    def test_what_becomes_of_values(self, values: Any, kind: Any, labels: Any, names: Any) -> None:
        for column in (
            pa.chunked_array([pa.array(values, kind)]),
            pa.chunked_array([pa.array(values[:1], kind), pa.array(values[1:], kind)]),
        ):
            found = labels_in(column, "label")
            assert (found[0].tolist(), found[1]) == (labels, names)
            if not pa.types.is_null(kind) and not pa.types.is_binary_view(kind):
                if pa.types.is_string_view(kind):
                    continue
                found = labels_in(column.dictionary_encode(), "label")
                assert (found[0].tolist(), found[1]) == (labels, names)

    @pytest.mark.parametrize(
        ("values", "kind", "told"),
        [
            ([0.5, 1.0], pa.float64(), "holds double, such as 0.5, which is no class"),
            ([float("inf")], pa.float32(), "holds float, such as inf, which is no class"),
            ([1e300], pa.float64(), "holds double, such as 1e+300, which is no class"),
            ([Decimal("0.5")], pa.decimal128(3, 1), "holds decimal128(3, 1); name a column"),
            ([b"\xff"], pa.binary(), "holds binary; name a column"),
            ([-2], pa.int64(), "holds -2; write -1 for an unlabelled image"),
            ([[1]], pa.list_(pa.int64()), "holds list<"),
        ],
    )
    def test_what_is_refused(self, values: Any, kind: Any, told: str) -> None:
        with pytest.raises(UserError, match=r"data\.label_column=x: ") as caught:
            labels_in(pa.chunked_array([pa.array(values, kind)]), "x")
        assert told in str(caught.value)


def write(path: Path, images: Any, **columns: Any) -> DataConfig:
    table = pa.table({"image": images, **columns})
    pq.write_table(table, path, row_group_size=3)
    return DataConfig(source="parquet", path=str(path))


class TestImages:
    @settings(
        max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(column=columns())
    def test_any_column_is_images_or_one_line(self, column: Any, tmp_path: Path) -> None:
        path = tmp_path / "f.parquet"
        try:
            config = write(path, column)
        # Some types have no place in Parquet.
        except (pa.ArrowException, ValueError):
            return
        for on_error in ("stop", "skip"):
            source = make_source(config.model_copy(update={"on_error": on_error}))
            try:
                shape = source.contents().row_shape
                with suppress(SizesDiffer):
                    assert all(block.shape[1:] == shape for block in source.blocks())
                    continue
                source.look()
                shape = source.contents().row_shape
                assert all(block.shape[1:] == shape for block in source.blocks())
            except UserError as error:
                one_line(error, "image_column")

    @pytest.mark.parametrize(
        "kind",
        [
            pa.binary(),
            pa.large_binary(),
            pa.binary_view(),
            pa.dictionary(pa.int32(), pa.binary()),
            pa.list_(pa.uint8()),
            pa.large_list(pa.int32()),
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
            pa.struct([("bytes", pa.list_(pa.uint8()))]),
        ],
        ids=str,
    )
    def test_files_of_images(
        self, kind: Any, tmp_path: Path, random_images: Any, encode: Any, read: Any
    ) -> None:
        images = random_images(7, 3, 6, 5)
        rows: list[Any] = [encode(image) for image in images]
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            rows = [list(row) for row in rows]
        if pa.types.is_struct(kind):
            of_lists = pa.types.is_list(kind.field("bytes").type)
            rows = [{"bytes": list(row) if of_lists else row, "path": "x"} for row in rows]
        if pa.types.is_dictionary(kind):
            column = pa.array(rows, pa.binary()).dictionary_encode()
        else:
            column = pa.array(rows, kind)
        np.testing.assert_array_equal(read(write(tmp_path / "f.parquet", column))[1], images)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_pixels(self, channels: int, tmp_path: Path, random_images: Any, read: Any) -> None:
        images = random_images(7, channels, 6, 5)
        last = images.transpose(0, 2, 3, 1)
        lists = pa.list_(pa.list_(pa.list_(pa.uint8())))
        cases = {
            "lists": pa.array(last.tolist(), lists),
            "first": pa.array(images.tolist(), lists),
            "wide": pa.array(
                last.tolist(), pa.large_list(pa.list_(pa.list_(pa.int64(), channels)))
            ),
            "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(last.copy()),
        }
        if channels == 1:
            cases["flat"] = pa.array(last[..., 0].tolist(), pa.list_(pa.list_(pa.uint8())))
            flat = last[..., 0].copy()
            cases["flat tensor"] = pa.FixedShapeTensorArray.from_numpy_ndarray(flat)
        for name, column in cases.items():
            config = write(tmp_path / f"{name}.parquet", column)
            np.testing.assert_array_equal(read(config)[1], images, err_msg=name)

    def test_reasons(self, tmp_path: Path, message: Any) -> None:
        for column, told in (
            (pa.array([[[1, 2], [3]]]), "rows of pixels are not of one length"),
            (pa.array([[[1, 300]]]), "numbers from 1 to 300 are no bytes"),
            (pa.array([[[1, None]]]), "a number is missing"),
            (pa.array([[[[1, 2]] * 3] * 4]), "pixels of shape 4x3x2: 1, 3 or 4 channels are read"),
            (
                pa.array([{"bytes": None, "path": "a.png"}]).cast(
                    pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                ),
                "no bytes, only the path a.png",
            ),
        ):
            config = write(tmp_path / "f.parquet", column)
            assert f"row 0 cannot be decoded ({told}" in message(**config.model_dump())
        config = write(tmp_path / "f.parquet", pa.array([[[0.5]]]))
        assert "image_column=image: holds list<" in message(**config.model_dump())


@pytest.fixture
def png(encode: Any, random_images: Any) -> bytes:
    found: bytes = encode(random_images(1, 3, 4, 4)[0])
    return found


class TestManyFiles:
    def files(self, root: Path, png: bytes, *names: str, count: int = 3) -> None:
        for number, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, [png] * count, label=[number] * count)

    def labels(self, path: Any, **fields: Any) -> Any:
        contents = make_source(DataConfig(source="parquet", path=str(path), **fields)).contents()
        assert contents.labels is not None
        return contents.labels.tolist(), contents.class_names

    def test_folders_and_patterns(self, tmp_path: Path, png: bytes, read: Any) -> None:
        root = tmp_path / "data"
        self.files(root, png, "train-1.parquet", "train-2.parquet", "x/train-0.parquet", "t[1].pq")
        for note in ("_SUCCESS", "_metadata.parquet", ".hidden.parquet", "README.md"):
            (root / note).touch()
        for path, labels in (
            (root, [3, 0, 1, 2]),
            (f"{root}/*.parquet", [0, 1]),
            (f"{root}/**/train-*.parquet", [0, 1, 2]),
            (f"{root}/train-[2-9].parquet", [1]),
            (f"{root}/*/*.parquet", [2]),
            (root / "t[1].pq", [3]),
            (root.as_uri(), [3, 0, 1, 2]),
        ):
            expected = [label for label in labels for _ in range(3)]
            assert self.labels(path)[0] == expected, path
            assert len(read(DataConfig(source="parquet", path=str(path)))[1]) == len(expected)
        data = open_data(DataConfig(source="parquet", path=str(root)), tmp_path / "cache")
        told = "labels from column label: 4 classes; left out: 2 .parquet, 1 hidden"
        assert data.line.startswith("data: 12 images 4x4 RGB, ") and told not in data.line
        assert "1 .md" in data.line and "1 hidden" in data.line

    def test_a_file_that_is_added_is_another_identity(self, tmp_path: Path, png: bytes) -> None:
        self.files(tmp_path, png, "1.parquet")
        config = DataConfig(source="parquet", path=str(tmp_path))
        before = make_source(config).identity()
        self.files(tmp_path, png, "1.parquet", "2.parquet")
        assert make_source(config).identity() != before

    def test_nothing_there(self, tmp_path: Path, message: Any) -> None:
        for path in (tmp_path, f"{tmp_path}/*.parquet"):
            told = message(source="parquet", path=str(path))
            assert told == (
                f"data.path={path}: no Parquet files; name a Parquet file, or a folder of them"
            )

    def test_hive_partitions(self, tmp_path: Path, png: bytes) -> None:
        table = pa.table(
            {
                "image": [png] * 6,
                "label": ["cat", "dog/x", None, "cat", "dog/x", "cat"],
                "year": [2023, 2023, 2023, 2024, 2024, 2024],
            }
        )
        pq.write_to_dataset(table, tmp_path / "set", partition_cols=["year", "label"])
        labels, names = self.labels(tmp_path / "set")
        assert sorted(labels) == [-1, 0, 0, 0, 1, 1] and names == ("cat", "dog/x")
        years, none = self.labels(tmp_path / "set", label_column="year")
        assert years == [2023] * 3 + [2024] * 3 and none is None

    def test_splits_by_names_of_files(self, tmp_path: Path, png: bytes, message: Any) -> None:
        names = ("test-00000-of-00001.parquet", "train-00000-of-00002.parquet")
        self.files(tmp_path / "a", png, *names, "train-00001-of-00002.parquet")
        assert self.labels(tmp_path / "a", splits=("train",))[0] == [1] * 3 + [2] * 3
        self.files(tmp_path / "b", png, "test/0000.parquet", "train/0000.parquet")
        assert self.labels(tmp_path / "b", splits=("test",))[0] == [0] * 3
        told = message(source="parquet", path=str(tmp_path / "a"), splits=["val"])
        assert told == "data.splits=val: there is no split val; choose from test, train"
        self.files(tmp_path / "c", png, "train-0.parquet", "other.parquet")
        told = message(source="parquet", path=str(tmp_path / "c"), splits=["train"])
        assert "has no column split" in told

    def test_types_that_differ_between_files(
        self, tmp_path: Path, png: bytes, read: Any, message: Any
    ) -> None:
        write(tmp_path / "1.parquet", pa.array([png]), label=pa.array([3], pa.int8()))
        write(
            tmp_path / "2.parquet",
            pa.array([{"bytes": png, "path": "x"}]),
            label=pa.array([5.0, None][:1]),
        )
        assert self.labels(tmp_path)[0] == [3, 5]
        config = DataConfig(source="parquet", path=str(tmp_path))
        assert len(read(config)[1]) == 2
        write(tmp_path / "3.parquet", pa.array([png]), label=["cat"])
        assert "data.path=" in message(source="parquet", path=str(tmp_path))

    def test_errors_name_the_file(self, tmp_path: Path, png: bytes, message: Any) -> None:
        write(tmp_path / "1.parquet", [png] * 2)
        write(tmp_path / "2.parquet", [png, b"none"])
        told = message(source="parquet", path=str(tmp_path))
        assert "row 1 of 2.parquet cannot be decoded (unknown image format)" in told
        pq.write_table(pa.table({"x": [1]}), tmp_path / "2.parquet")
        told = message(source="parquet", path=str(tmp_path))
        assert "2.parquet has no column image, of which the first file has one" in told
        (tmp_path / "2.parquet").write_text("no Parquet")
        assert "2.parquet is not a Parquet file" in message(source="parquet", path=str(tmp_path))

    def test_class_names_of_which_few_occur(self, tmp_path: Path, png: bytes) -> None:
        names = [f"class {number}" for number in range(100)]
        feature = {"label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
        table = pa.table({"image": [png] * 6, "label": [10, 57, 99, None, 10, 57]})
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "f.parquet")
        config = DataConfig(source="parquet", path=str(tmp_path / "f.parquet"))
        data = open_data(config, tmp_path / "cache")
        assert data.class_names == ("class 10", "class 57", "class 99") and data.num_classes == 3
        assert data.labels is not None and data.labels.tolist() == [0, 1, 2, -1, 0, 1]
        assert data.line.endswith("labels from column label: 3 classes, 1 unlabelled")
