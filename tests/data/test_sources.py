"""Every source against the conformance suite, and its own formats and errors."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from conr_ray.config import DataConfig
from conr_ray.config.samples import OWN_SOURCES
from conr_ray.data.sources import SOURCES, make_source
from conr_ray.data.store import open_data


class SourceConformance(ABC):
    """What holds for every source. A test class gives a config and what it should read."""

    dtype: ClassVar[type] = np.uint8

    @pytest.fixture
    @abstractmethod
    def case(self, **fixtures: Any) -> tuple[DataConfig, Any, list[int] | None]:
        """Config, expected samples, (n, c, h, w) or (n, d), and labels."""

    def test_reads_the_expected_images_and_labels(self, case: Any, read: Any) -> None:
        config, images, labels = case
        contents, found = read(config)
        np.testing.assert_array_equal(found, images)
        assert found.dtype == self.dtype
        if labels is None:
            assert contents.labels is None and contents.class_names is None
        else:
            assert contents.labels is not None and contents.labels.dtype == np.int64
            assert contents.labels.tolist() == list(labels)

    def test_contents_are_known_before_decoding(self, case: Any) -> None:
        config, images, _ = case
        contents = make_source(config).contents()
        assert (contents.num_rows, *contents.row_shape) == images.shape
        if contents.class_names is not None:
            assert contents.labels is not None
            assert contents.labels.max() < len(contents.class_names)
        if contents.names is not None:
            assert len(contents.names) == contents.num_rows

    def test_a_second_reader_sees_the_same(self, case: Any) -> None:
        config, _, _ = case
        first, second = make_source(config), make_source(config)
        assert json.dumps(first.identity()) == json.dumps(second.identity())
        for one, other in zip(first.blocks(), second.blocks(), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_labels_can_be_ignored(self, case: Any) -> None:
        config = case[0].model_copy(update={"label_column": None})
        contents = make_source(config).contents()
        assert contents.labels is None and contents.class_names is None
        assert make_source(config).identity() != make_source(case[0]).identity()

    def test_stored_size_makes_squares(self, case: Any, read: Any) -> None:
        config, images, _ = case
        config = config.model_copy(update={"stored_size": 5})
        contents, found = read(config)
        assert found.shape == (*images.shape[:2], 5, 5)
        assert contents.row_shape == found.shape[1:]
        assert make_source(config).identity() != make_source(case[0]).identity()

    def test_unknown_label_column(self, case: Any, message: Any) -> None:
        text = message(**{**case[0].model_dump(), "label_column": "wrong"})
        assert text.startswith("data.label_column=wrong: ") and "null to ignore" in text


class TestDigits(SourceConformance):
    @pytest.fixture
    def case(self) -> Any:
        from sklearn.datasets import load_digits

        digits = load_digits()
        expected = np.array([[round(v * 255 / 16) for v in row] for row in digits.data])
        return DataConfig(source="digits"), expected.reshape(-1, 1, 8, 8), digits.target


class TestCifar10(SourceConformance):
    @pytest.fixture
    def case(self, official_files: Any, random_images: Any) -> Any:
        images, labels = random_images(13, 3, 32, 32), [i % 10 for i in range(13)]
        official_files.cifar10(images, labels, test=3)
        config = DataConfig(source="torchvision", name="cifar10", path=str(official_files.root))
        return config, images, labels

    def test_splits_are_joined_in_their_own_order(self, case: Any, read: Any) -> None:
        config, images, _ = case
        _, test = read(config.model_copy(update={"splits": ("test",)}))
        np.testing.assert_array_equal(test, images[10:])
        _, both = read(config.model_copy(update={"splits": ("test", "train")}))
        np.testing.assert_array_equal(both, images)

    def test_errors(self, case: Any, tmp_path: Path, message: Any) -> None:
        settings = case[0].model_dump()
        assert "no split val; choose from train, test" in message(**settings | {"splits": ["val"]})
        assert "data.name=cifar: " in message(**settings | {"name": "cifar"})
        assert message(**settings | {"path": None}).startswith("data.path is not set")
        missing = message(**settings | {"path": str(tmp_path)})
        assert missing.startswith(f"data.path={tmp_path}: ") and "data.download=true" in missing
        batch = Path(settings["path"], "cifar-10-batches-py", "data_batch_1")
        batch.write_bytes(batch.read_bytes()[:-1])
        damaged = message(**settings)
        assert "corrupted" in damaged and "data.download=true" in damaged

    def test_a_download_that_fails(
        self, case: Any, monkeypatch: pytest.MonkeyPatch, message: Any
    ) -> None:
        import torchvision

        # Port 9 of this machine answers nobody.
        url = "http://127.0.0.1:9/cifar-10-python.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        settings = case[0].model_dump() | {"path": case[0].path + "/empty", "download": True}
        text = message(**settings)
        assert text.startswith(f"data.path={settings['path']}: ") and "check the network" in text


class TestCifar100(SourceConformance):
    @pytest.fixture(params=["label", "coarse_label"])
    def case(self, request: Any, official_files: Any, random_images: Any) -> Any:
        images = random_images(12, 3, 32, 32)
        labels = {"label": [99 - i for i in range(12)], "coarse_label": [i for i in range(12)]}
        official_files.cifar100(images, labels["label"], labels["coarse_label"], test=4)
        root = str(official_files.root)
        config = DataConfig(
            source="torchvision", name="cifar100", path=root, label_column=request.param
        )
        return config, images, labels[request.param]

    def test_class_names(self, case: Any) -> None:
        names = make_source(case[0]).contents().class_names
        coarse = case[0].label_column == "coarse_label"
        assert names is not None
        assert (len(names), names[0]) == ((20, "coarse0") if coarse else (100, "fine0"))


class TestMnistFamily(SourceConformance):
    @pytest.fixture(params=[("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
    def case(self, request: Any, official_files: Any, random_images: Any) -> Any:
        name, kind = request.param
        images, labels = random_images(11, 1, 28, 28), [i % 10 for i in range(11)]
        official_files.mnist(kind, images, labels, test=4)
        # The archives are there, so that fetching only checks and unpacks them.
        config = DataConfig(
            source="torchvision", name=name, path=str(official_files.root), download=True
        )
        return config, images, labels

    def test_fetched_files_need_no_download(self, case: Any, read: Any) -> None:
        fetched = make_source(case[0]).identity()
        config = case[0].model_copy(update={"download": False})
        assert make_source(config).identity() == fetched
        assert read(config)[0].num_rows == 11


class TestStl10(SourceConformance):
    @pytest.fixture
    def case(self, official_files: Any, random_images: Any) -> Any:
        images, labels = random_images(9, 3, 96, 96), [i % 10 for i in range(5)]
        official_files.stl10(images, labels, test=2, unlabeled=4)
        config = DataConfig(source="torchvision", name="stl10", path=str(official_files.root))
        return config, images, labels + [-1] * 4

    def test_labelled_splits(self, case: Any, read: Any) -> None:
        config = case[0].model_copy(update={"splits": ("train", "test")})
        contents, images = read(config)
        np.testing.assert_array_equal(images, case[1][:5])
        assert contents.labels is not None and contents.labels.tolist() == case[2][:5]
        assert contents.class_names is not None and contents.class_names[9] == "s9"


def write_parquet(path: Path, columns: dict[str, Any], **metadata: str) -> Path:
    """A Parquet file in row groups of four rows."""
    table = pa.table(columns).replace_schema_metadata(metadata or None)
    pq.write_table(table, path, row_group_size=4)
    return path


class TestParquet(SourceConformance):
    @pytest.fixture(params=["png", "webp", "struct", "raw_rgb", "raw_grey", "grey_png", "uri"])
    def case(self, request: Any, tmp_path: Path, random_images: Any, encode: Any) -> Any:
        kind, path = request.param, tmp_path / "images.parquet"
        images = random_images(10, 1 if "grey" in kind else 3, 7, 6)
        labels = [i % 3 for i in range(10)]
        metadata = {}
        if kind.startswith("raw"):
            metadata = {"shape": "7,6" if "grey" in kind else "7,6,3", "dtype": "uint8"}
            size = images[0].size
            rows = [image.transpose(1, 2, 0).tobytes() for image in images]
            column = pa.array(rows, pa.binary(size if "grey" in kind else -1))
        else:
            column = pa.array([encode(i, "WEBP" if kind == "webp" else "PNG") for i in images])
        if kind == "struct":
            column = pa.array([{"bytes": b.as_py(), "path": None} for b in column])
        write_parquet(path, {"image": column, "label": pa.array(labels, pa.uint8())}, **metadata)
        where = path.as_uri() if kind == "uri" else str(path)
        return DataConfig(source="parquet", path=where), images, labels

    def test_a_changed_file_is_another_identity(self, case: Any, tmp_path: Path) -> None:
        before = make_source(case[0]).identity()
        (tmp_path / "images.parquet").touch()
        assert make_source(case[0]).identity() != before


class TestParquetColumns:
    @pytest.fixture
    def columns(self, random_images: Any, encode: Any) -> dict[str, Any]:
        return {"image": [encode(image) for image in random_images(10, 3, 6, 6)]}

    @pytest.fixture
    def labels(self, tmp_path: Path, columns: dict[str, Any]) -> Any:
        def labels_of(values: Any, column: str = "label", **metadata: str) -> Any:
            path = write_parquet(tmp_path / "f.parquet", columns | {column: values}, **metadata)
            config = DataConfig(source="parquet", path=str(path), label_column=column)
            contents = make_source(config).contents()
            return contents.labels if contents.labels is None else contents.labels.tolist(), (
                contents.class_names
            )

        return labels_of

    def test_strings_are_numbered_in_sorted_order(self, labels: Any) -> None:
        values = ["dog", "cat", None, "dog", "ant", "cat", "ant", "ant", "ant", "ant"]
        expected = ([2, 1, -1, 2, 0, 1, 0, 0, 0, 0], ("ant", "cat", "dog"))
        assert labels(values) == expected
        assert labels(pa.array(values).dictionary_encode()) == expected
        assert labels(pa.array(values, pa.large_string())) == expected

    def test_integers_are_kept(self, labels: Any) -> None:
        values = [3, None, 5, -1, 3, 3, 3, 3, 3, 3]
        assert labels(values) == ([3, -1, 5, -1, *[3] * 6], None)

    def test_class_names_in_the_schema(self, labels: Any) -> None:
        names = json.dumps(["a", "b"])
        assert labels([0, 1] * 5, classes=names)[1] == ("a", "b")
        assert labels([0, 1] * 5, "coarse_label", coarse_classes=names)[1] == ("a", "b")
        assert labels([0, 2] * 5, classes=names)[1] is None
        feature = {"label": {"names": ["x", "y"], "_type": "ClassLabel"}}
        hugging_face = json.dumps({"info": {"features": feature}})
        assert labels([0, 1] * 5, huggingface=hugging_face)[1] == ("x", "y")

    @pytest.mark.parametrize(
        "metadata",
        [
            {b"classes": b"\xff\xfe"},
            {b"classes": b"[" * 5000},
            {b"huggingface": b'{"info": []}'},
            {b"huggingface": b'{"info": {"features": {"label": {"names": 3}}}}'},
        ],
    )
    def test_odd_metadata_names_no_classes(
        self, tmp_path: Path, columns: Any, metadata: Any
    ) -> None:
        table = pa.table(columns | {"label": [0, 1] * 5}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / "f.parquet")
        config = DataConfig(source="parquet", path=str(tmp_path / "f.parquet"))
        contents = make_source(config).contents()
        assert contents.class_names is None and contents.labels is not None

    @pytest.mark.parametrize("name", ["image", "label", "split"])
    def test_columns_of_one_name_are_refused(
        self, tmp_path: Path, columns: Any, message: Any, name: str
    ) -> None:
        columns |= {"label": [0, 1] * 5, "split": ["train"] * 10}
        table = pa.table(columns).append_column(name, pa.array(columns[name]))
        pq.write_table(table, tmp_path / "f.parquet")
        splits = ["train"] if name == "split" else None
        told = message(source="parquet", path=str(tmp_path / "f.parquet"), splits=splits)
        field = {"image": "image_column=image", "label": "label_column=label"}
        assert told == (
            f"data.{field.get(name, 'splits=train')}: {tmp_path}/f.parquet has 2 columns {name}; "
            "rename all but one"
        )

    def test_a_column_whose_name_begins_as_that_of_another_is_not_taken_for_it(
        self, tmp_path: Path, columns: Any, read: Any
    ) -> None:
        columns = {"image.small": [b"none"] * 10, **columns, "image.x": [b"none"] * 10}
        path = write_parquet(tmp_path / "f.parquet", columns)
        assert read(DataConfig(source="parquet", path=str(path)))[1].shape == (10, 3, 6, 6)

    def test_a_changed_bit_is_found_where_pages_have_checksums(
        self, tmp_path: Path, message: Any
    ) -> None:
        rows = [bytes(12)] * 9 + [b"\x55" * 12]
        table = pa.table({"image": rows}).replace_schema_metadata({"shape": "2,2,3"})
        path = tmp_path / "f.parquet"
        # Without statistics, which have copies of values.
        plain: Any = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        pq.write_table(table, path, write_page_checksum=True, **plain)
        data = bytearray(path.read_bytes())
        data[data.index(b"\x55" * 12) + 3] ^= 1
        path.write_bytes(data)
        told = message(source="parquet", path=str(path))
        assert told.startswith(f"data.path={path}: cannot be read (") and "repair" in told

    def test_the_default_label_column_may_be_absent(self, tmp_path: Path, columns: Any) -> None:
        path = write_parquet(tmp_path / "f.parquet", columns)
        contents = make_source(DataConfig(source="parquet", path=str(path))).contents()
        assert contents.labels is None and contents.num_rows == 10

    def test_splits_keep_file_order(
        self, tmp_path: Path, columns: Any, read: Any, message: Any
    ) -> None:
        # The second row group has no row of the split.
        split = pa.array(["test", "train", "test", None, *["train"] * 5, "test"])
        columns |= {"split": split.dictionary_encode(), "label": [str(i) for i in range(10)]}
        path = write_parquet(tmp_path / "f.parquet", columns)
        _, everything = read(DataConfig(source="parquet", path=str(path)))
        contents, test = read(DataConfig(source="parquet", path=str(path), splits=("test",)))
        np.testing.assert_array_equal(test, everything[[0, 2, 9]])
        assert contents.labels is not None and contents.labels.tolist() == [0, 1, 2]
        assert contents.class_names == ("0", "2", "9")
        text = message(source="parquet", path=str(path), splits=["val", "test"])
        assert "data.splits=val, test: " in text and "choose from test, train" in text

    def test_errors_name_field_value_and_remedy(
        self, tmp_path: Path, columns: Any, message: Any
    ) -> None:
        labels = {"label": [0.5] * 10, "low": [-2] * 10}
        path = str(write_parquet(tmp_path / "f.parquet", columns | labels))
        base: dict[str, Any] = {"source": "parquet", "path": path, "label_column": None}
        assert re.search(
            "image_column=x: .*choose from image, label", message(**base, image_column="x")
        )
        assert "data.image_column=low: holds int64" in message(**base, image_column="low")
        assert "leave data.splits out" in message(**base, splits=["train"])
        assert "data.label_column=label: holds double" in message(source="parquet", path=path)
        assert "write -1" in message(**base | {"label_column": "low"})
        assert message(**base | {"path": "nowhere:///x"}).startswith("data.path=nowhere:///x: ")

    def test_files_that_are_no_parquet_files(self, tmp_path: Path, message: Any) -> None:
        gone, text, empty = (tmp_path / name for name in ("gone", "text", "empty"))
        text.write_text("not Parquet, though long enough to have a footer")
        write_parquet(empty, {"image": pa.array([], pa.binary())})
        for path, problem in ((gone, "no such file"), (text, "not a Parquet"), (empty, "no rows")):
            told = message(source="parquet", path=str(path))
            assert told.startswith(f"data.path={path}: {problem}") and "; name a" in told

    def test_images_that_do_not_decode(self, tmp_path: Path, columns: Any, message: Any) -> None:
        images = columns["image"]
        for broken in (b"no image", images[7][:60], None):
            images[7] = broken
            path = write_parquet(tmp_path / "f.parquet", columns)
            text = message(source="parquet", path=str(path))
            assert f"data.path={path}: row 7 cannot be decoded" in text and "repair it" in text
        path = write_parquet(tmp_path / "f.parquet", {"image": [b"123456", b"12345"]}, shape="2,3")
        assert "row 1 cannot be decoded (5 bytes, not 2x3x1)" in message(
            source="parquet", path=str(path)
        )
        for shape in ("6", "2,3,2", "0,6", "1,2,3,1", "?"):
            write_parquet(path, {"image": [b"123456"]}, shape=shape)
            assert "write h,w or h,w,c" in message(source="parquet", path=str(path))

    def test_damaged_pages(self, tmp_path: Path, columns: Any, message: Any) -> None:
        path = write_parquet(tmp_path / "f.parquet", columns)
        content = bytearray(path.read_bytes())
        content[4:400] = bytes(396)
        path.write_bytes(content)
        text = message(source="parquet", path=str(path))
        assert text.startswith(f"data.path={path}: ") and "repair" in text


class TestFolder(SourceConformance):
    @pytest.fixture(params=["path", "uri"])
    def case(self, request: Any, tmp_path: Path, random_images: Any, encode: Any) -> Any:
        images = random_images(6, 3, 8, 7)
        names = ["a/1.png", "a/2.WEBP", "a/deep/0.png", "b/.x/../3.bmp", "b/4.tif", "c c/ü.png"]
        for image, name in zip(images, names, strict=True):
            path = (tmp_path / "images" / name).parent
            path.mkdir(parents=True, exist_ok=True)
            kind = {"tif": "TIFF"}.get(name[-3:], name.rpartition(".")[2].upper())
            (tmp_path / "images" / name).write_bytes(encode(image, kind))
        for hidden in ("a/.0.png", "b/.x/0.png", ".hidden/0.png", "notes.txt"):
            path = tmp_path / "images" / hidden
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no image")
        root = tmp_path / "images"
        where = root.as_uri() if request.param == "uri" else str(root)
        return DataConfig(source="folder", path=where), images, [0, 0, 0, 1, 1, 2]

    def test_names_and_classes(self, case: Any) -> None:
        contents = make_source(case[0]).contents()
        assert contents.class_names == ("a", "b", "c c")
        assert contents.names is not None and contents.names[2:4] == ["a/deep/0.png", "b/3.bmp"]

    def test_chosen_classes(self, case: Any, read: Any, message: Any) -> None:
        config, images, _ = case
        contents, found = read(config.model_copy(update={"classes": ("c c", "a")}))
        np.testing.assert_array_equal(found, images[[0, 1, 2, 5]])
        assert contents.class_names == ("a", "c c")
        assert make_source(config.model_copy(update={"classes": ("a",)})).contents().labels is None
        text = message(source="folder", path=config.path, classes=["a", "zebra"])
        assert text.startswith("data.classes=a, zebra: ") and "no sub-folder zebra" in text

    @pytest.mark.parametrize("classes", [None, ("a", "b")])
    def test_links_around_in_a_circle_multiply_nothing(
        self, case: Any, read: Any, classes: Any
    ) -> None:
        config, images, labels = case
        root = Path(config.path.removeprefix("file://"))
        for link, target in (("a/up", ".."), ("a/b", "../b"), ("b/a", "../a"), ("b/self", ".")):
            (root / link).symlink_to(target)
        num_rows = 6 if classes is None else 5
        contents, found = read(config.model_copy(update={"classes": classes}))
        np.testing.assert_array_equal(found, images[:num_rows])
        assert contents.labels is not None and contents.labels.tolist() == labels[:num_rows]

    def test_folders_that_are_links_are_read(self, case: Any, tmp_path: Path, read: Any) -> None:
        config, images, _ = case
        root = Path(config.path.removeprefix("file://"))
        (tmp_path / "linked").mkdir()
        for name in ("a", "c c"):
            (tmp_path / "linked" / name).symlink_to(root / name)
        contents, found = read(DataConfig(source="folder", path=str(tmp_path / "linked")))
        np.testing.assert_array_equal(found, images[[0, 1, 2, 5]])
        assert contents.class_names == ("a", "c c")

    def test_names_that_are_no_utf_8_are_escaped(
        self, case: Any, tmp_path: Path, read: Any
    ) -> None:
        config, images, _ = case
        root = os.fsencode(config.path.removeprefix("file://"))
        os.rename(root + b"/c c", root + b"/caf\xe9")
        contents, found = read(config)
        np.testing.assert_array_equal(found, images)
        assert contents.class_names == ("a", "b", "caf\\xe9")
        assert contents.names is not None and contents.names[-1] == "caf\\xe9/ü.png"
        assert open_data(config, tmp_path / "cache").names == contents.names


class TestList(SourceConformance):
    @pytest.fixture(params=["csv", "parquet"])
    def case(self, request: Any, tmp_path: Path, random_images: Any, encode: Any) -> Any:
        images, labels = random_images(7, 3, 8, 7), [3, 3, -1, 0, 5, 5, 0]
        for number, image in enumerate(images):
            (tmp_path / f"{number}.png").write_bytes(encode(image))
        names = [f"{number}.png" for number in range(7)]
        table = pa.table({"file": names, "label": labels, "split": ["a"] * 5 + ["b"] * 2})
        path = tmp_path / f"list.{request.param}"
        pq.write_table(table, path) if request.param == "parquet" else csv.write_csv(table, path)
        return DataConfig(source="list", path=str(path)), images, labels

    def test_splits_and_ids(self, case: Any, read: Any) -> None:
        config, images, labels = case
        contents, found = read(config.model_copy(update={"splits": ("b",)}))
        np.testing.assert_array_equal(found, images[5:])
        assert contents.names == ["5.png", "6.png"] and contents.labels is not None
        assert contents.labels.tolist() == labels[5:]

    def test_a_folder_of_lists(self, case: Any, tmp_path: Path, read: Any) -> None:
        contents, found = read(case[0].model_copy(update={"path": str(tmp_path)}))
        np.testing.assert_array_equal(found, case[1])
        assert contents.names == [f"{number}.png" for number in range(7)]

    def test_a_changed_image_is_another_identity(self, case: Any, tmp_path: Path) -> None:
        before = make_source(case[0]).identity()
        (tmp_path / "4.png").touch()
        assert make_source(case[0]).identity() != before

    def test_rows_that_name_no_image(self, case: Any, tmp_path: Path, message: Any) -> None:
        config = case[0]
        for line in ("gone.png", "", "/dev/zero", "..", "x\x00y"):
            path = tmp_path / "other.csv"
            path.write_text(f'path,n\n0.png,1\n"{line}",2\n1.png,3\n0.png,4\n')
            told = message(source="list", path=str(path))
            assert told.startswith(f"data.path={path}: row 1") and "cannot be decoded" in told
        source = make_source(config.model_copy(update={"path": str(path), "on_error": "skip"}))
        assert source.contents().num_rows == 3
        assert source.inventory().left_out == {"further rows of the same path": 1}

    def test_lists_that_are_none(self, tmp_path: Path, message: Any) -> None:
        path = tmp_path / "l.csv"
        for content, problem in (
            (b"a,b\n1,2\n", "data.image_column=image: "),
            (b"path\n\xff\n", "not "),
            (b"", "not a CSV file"),
            (b"path,n\nx.png,1,2\n", "not a CSV file"),
            (b"path\n", "no rows"),
        ):
            path.write_bytes(content)
            assert problem in message(source="list", path=str(path))
        told = message(source="list", path=str(tmp_path / "none.csv"))
        assert told == (
            f"data.path={tmp_path}/none.csv: no such file; name a CSV file, or a folder of them"
        )


class TestArchive(SourceConformance):
    @pytest.fixture(params=["folder.zip", "folder.tar", "samples.tar", "shards"])
    def case(self, request: Any, tmp_path: Path, random_images: Any, encode: Any) -> Any:
        images, labels = random_images(6, 3, 8, 7), [0, 0, 1, 1, 2, 2]
        files = {f"{'abc'[n // 2]}/{n}.png": encode(image) for n, image in enumerate(images)}
        beside = (
            {}
            if "folder" in request.param
            else {name.replace("png", "cls"): b"%d" % (n // 2) for n, name in enumerate(files)}
        )
        shown = {**files, **beside, "__MACOSX/0.png": b"", "a/.hidden.png": b"", "no.txt": b"x"}
        path = tmp_path / request.param
        if request.param == "shards":
            path.mkdir()
            names = sorted(shown)
            write_archive(path / "0.tar", {name: shown[name] for name in names if name < "b"})
            write_archive(path / "1.tar", {name: shown[name] for name in names if name >= "b"})
        else:
            write_archive(path, shown)
        return DataConfig(source="archive", path=str(path)), images, labels

    def test_what_is_left_out_is_told(self, case: Any) -> None:
        source = make_source(case[0])
        source.contents()
        assert source.inventory().left_out == {"__MACOSX/": 1, "hidden": 1, ".txt": 1}
        kind = "folders" if "folder" in case[0].path else ".cls"
        assert source.inventory().labels_from == kind

    def test_a_member_that_is_damaged(self, tmp_path: Path, case: Any, message: Any) -> None:
        path = tmp_path / "folder.zip"
        write_archive(path, {"a.png": b"no image", "b.png": b""})
        assert "row 0 (a.png) cannot be decoded" in message(source="archive", path=str(path))
        for content, problem in ((b"no archive", "as an archive"), (b"", "as an archive")):
            path.write_bytes(content)
            told = message(source="archive", path=str(path))
            assert told.startswith(f"data.path={path}: {path} cannot be read {problem} (")

    def test_an_archive_that_is_cut_off(self, case: Any, read: Any, message: Any) -> None:
        config, images, _ = case
        if not config.path.endswith("folder.tar"):
            pytest.skip("of a zip archive nothing can be read without its end")
        path = Path(config.path)
        path.write_bytes(path.read_bytes()[: 4 * 1024 + 100])
        told = message(source="archive", path=config.path)
        assert told.endswith(
            "is cut off; replace it, or set data.on_error=skip to read what is before"
        )
        config = config.model_copy(update={"on_error": "skip"})
        _, found = read(config)
        np.testing.assert_array_equal(found, images[: len(found)])
        assert 1 < len(found) < 6
        source = make_source(config)
        source.contents()
        assert source.inventory().left_out["archives that are cut off"] == 1

    def test_what_leads_out_of_an_archive_is_not_read(
        self, tmp_path: Path, encode: Any, random_images: Any
    ) -> None:
        data = encode(random_images(1, 3, 4, 4)[0])
        path = tmp_path / "x.tar"
        write_archive(path, {"../a.png": data, "/b.png": data, "c/./d.png": data})
        with tarfile.open(path, "a") as archive:
            link = tarfile.TarInfo("e.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        source = make_source(DataConfig(source="archive", path=str(path)))
        assert source.contents().names == ["b.png", "c/d.png"]
        assert source.inventory().left_out == {
            "paths that lead out of archives": 1,
            "links in archives": 1,
        }


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    """A zip or tar archive."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


class TestNumpy(SourceConformance):
    @pytest.fixture(params=["grey", "last", "first", "shares", "sixteen", "splits"])
    def case(self, request: Any, tmp_path: Path, random_images: Any) -> Any:
        kind, path = request.param, tmp_path / "x.npz"
        images, labels = random_images(9, 1 if kind == "grey" else 3, 8, 7), [2, 5, -1] * 3
        images[0, 0, 0, 0] = 255
        last = images.transpose(0, 2, 3, 1)
        if kind == "splits":
            np.savez(
                path,
                val_images=last[6:],
                val_labels=[[n] for n in labels[6:]],
                train_images=last[:6],
                train_labels=[[n] for n in labels[:6]],
            )
            images, labels = np.roll(images, 3, 0), labels
        else:
            given = {
                "grey": images[:, 0],
                "last": last,
                "first": images,
                "shares": last / 255.0,
                "sixteen": last.astype(np.uint16) * 257,
            }[kind]
            np.savez(path, images=given, labels=labels)
        return DataConfig(source="numpy", path=str(path)), images, labels

    def test_pixels_that_are_none_are_broken_images(
        self, tmp_path: Path, random_images: Any, message: Any
    ) -> None:
        images = random_images(4, 1, 6, 6)[:, 0] / 255.0
        images[1, 0, 0], images[2, 0, 0] = np.nan, -1
        np.save(tmp_path / "x.npy", images)
        told = message(source="numpy", path=str(tmp_path / "x.npy"))
        assert "row 1 cannot be decoded (its pixels go from nan" in told and "row 2" in told
        config = DataConfig(source="numpy", path=str(tmp_path / "x.npy"), on_error="skip")
        assert open_data(config, tmp_path / "cache").sample_ids.tolist() == [0, 3]

    def test_arrays_that_are_no_images(self, tmp_path: Path, message: Any) -> None:
        for array, problem in (
            (np.zeros((3, 4)), "give n x height x width"),
            (np.zeros((3, 2, 9, 9)), "give 1 channel"),
            (np.zeros((9, 3, 5, 3)), "could be first or last"),
            (np.zeros((0, 5, 5)), "give n x height x width"),
            (np.array(["a"]), "give n x height x width"),
            (np.array([None]), "save plain numbers"),
        ):
            np.save(tmp_path / "x.npy", array, allow_pickle=True)
            assert problem in message(source="numpy", path=str(tmp_path / "x.npy"))
        (tmp_path / "x.npy").write_bytes(b"no array")
        assert "save plain numbers" in message(source="numpy", path=str(tmp_path / "x.npy"))
        np.savez(tmp_path / "x.npz", a=np.zeros((3, 5, 5)), y=[1, 2])
        told = message(source="numpy", path=str(tmp_path / "x.npz"))
        assert told.startswith("data.image_column=image: ") and "choose from a, y" in told
        told = message(source="numpy", path=str(tmp_path / "x.npz"), image_column="a")
        assert told.startswith("data.label_column=y: 2 labels of 3 images")


class TestAuto:
    def test_files_without_an_ending_are_looked_into(
        self, tmp_path: Path, random_images: Any, encode: Any
    ) -> None:
        images = random_images(3, 3, 6, 6)
        files = {f"{n}.png": encode(image) for n, image in enumerate(images)}
        write_archive(tmp_path / "x.zip", files)
        write_archive(tmp_path / "x.tar", files)
        np.save(tmp_path / "x.npy", images)
        pq.write_table(pa.table({"image": list(files.values())}), tmp_path / "x.parquet")
        for ending, source in (
            ("zip", "archive"),
            ("tar", "archive"),
            ("npy", "numpy"),
            ("parquet", "parquet"),
        ):
            path = tmp_path / f"x.{ending}"
            found = make_source(DataConfig(source="auto", path=str(path)))
            assert found.config.source == source
            if ending != "npy":
                path.rename(tmp_path / "other")
                found = make_source(DataConfig(source="auto", path=str(tmp_path / "other")))
                assert found.config.source == source

    def test_most_files_of_a_folder_decide(self, tmp_path: Path, encode: Any) -> None:
        image = encode(np.zeros((3, 4, 4), np.uint8))
        for name in ("a.png", "b.png", "labels.csv", "more.npy", "one.tar"):
            (tmp_path / name).write_bytes(image)
        found = make_source(DataConfig(source="auto", path=str(tmp_path)))
        assert found.config.source == "folder"
        for number in range(3):
            write_archive(tmp_path / f"{number}.tar", {f"{number}.png": image})
        (tmp_path / "one.tar").unlink()
        source = make_source(DataConfig(source="auto", path=str(tmp_path)))
        assert source.config.source == "archive" and source.contents().num_rows == 3

    def test_errors_name_field_value_and_remedy(self, tmp_path: Path, message: Any) -> None:
        told = message(source="auto", path=str(tmp_path / "none"))
        assert told == f"data.path={tmp_path}/none: no such folder; name a folder of images"
        (tmp_path / "x").write_text("neither")
        assert "neither a folder nor a file" in message(source="auto", path=str(tmp_path / "x"))
        (tmp_path / "x.csv").write_text("path\na.png\n")
        told = message(source="auto", path=str(tmp_path / "x.csv"), classes=["a", "b"])
        assert told == (
            f"data.classes=a, b: {tmp_path}/x.csv is read as data.source=list, which does not use "
            "it: leave it out"
        )
        told = message(source="auto", path="sftp://127.0.0.1:9/x")
        assert told.startswith("data.path=sftp://127.0.0.1:9/x: ") and "paramiko" in told


def test_every_source_has_a_conformance_test() -> None:
    """The registry, the config and this file know the same sources."""
    tested = {"digits", "torchvision", "folder", "archive", "parquet", "list", "numpy", "vectors"}
    assert set(SOURCES) == tested == set(OWN_SOURCES) - {"auto"}
