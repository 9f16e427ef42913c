"""The decoded copy: what it holds, who makes it, and what a killed builder leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conr_ray.config import DataConfig
from conr_ray.data.prepared import prepared_data
from conr_ray.data.sources import make_source
from conr_ray.data.statistics import statistics_of
from conr_ray.data.store import DataSet, default_cache_dir, open_data
from conr_ray.errors import UserError
from conr_ray.storage.sealed import seal, unseal
from tests.waiting import HANG_S

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
DIGITS = DataConfig(source="digits")


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def snapshot(cache_dir: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every whole file of the cache."""
    files = [path for path in cache_dir.glob("*/*")]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def write_raw(path: Path, num_images: int, **columns: Any) -> DataConfig:
    """A Parquet file of 4x4 grey images, image i filled with i."""
    rows = [bytes([i % 256] * 16) for i in range(num_images)]
    table = pa.table({"image": rows, **columns}).replace_schema_metadata({"shape": "4,4"})
    pq.write_table(table, path, row_group_size=100)
    return DataConfig(source="parquet", path=str(path))


class TestOpenImages:
    def test_holds_what_the_source_gives(self, cache_dir: Path) -> None:
        images = open_data(DIGITS, cache_dir)
        expected = np.concatenate(list(make_source(DIGITS).blocks()))
        assert isinstance(images.rows, np.memmap) and not images.rows.flags.writeable
        np.testing.assert_array_equal(images.rows, expected)
        assert images.rows.dtype == np.uint8
        assert (images.num_rows, images.row_shape[0], images.num_classes) == (1797, 1, 10)
        assert images.labels is not None and images.labels.dtype == np.int64
        assert images.class_names == tuple("0123456789") and images.names is None
        np.testing.assert_array_equal(images.sample_ids, np.arange(1797))
        np.testing.assert_allclose(images.mean, expected.mean() / 255, rtol=1e-12)
        np.testing.assert_allclose(images.std, expected.std() / 255, rtol=1e-12)

    def test_the_second_time_nothing_is_written(self, cache_dir: Path) -> None:
        first = open_data(DIGITS, cache_dir)
        before = snapshot(cache_dir)
        second = open_data(DIGITS, cache_dir)
        assert snapshot(cache_dir) == before and len(before) == 3
        assert first.fingerprint == second.fingerprint and first.mean == second.mean
        assert not list(cache_dir.glob("*.partial"))

    def test_other_settings_and_files_are_other_copies(
        self, cache_dir: Path, tmp_path: Path
    ) -> None:
        config = write_raw(tmp_path / "f.parquet", 300, label=pa.array([1, 7, 7] * 100))
        images = open_data(config, cache_dir)
        assert images.class_names is None and images.num_classes == 2
        without = open_data(config.model_copy(update={"label_column": None}), cache_dir)
        assert without.labels is None and without.num_classes is None
        assert without.fingerprint != images.fingerprint
        write_raw(tmp_path / "f.parquet", 301)
        assert open_data(config, cache_dir).num_rows == 301
        assert len(list(cache_dir.glob("*/meta.json"))) == 3

    def test_equal_content_has_an_equal_fingerprint(self, cache_dir: Path, tmp_path: Path) -> None:
        one = open_data(write_raw(tmp_path / "1.parquet", 50), cache_dir)
        other = open_data(write_raw(tmp_path / "2.parquet", 50), cache_dir)
        assert one.fingerprint == other.fingerprint

    def test_names_of_a_folder(self, cache_dir: Path, tmp_path: Path, encode: Any) -> None:
        for name in ("b/1.png", "a/2.png", "a/1.png"):
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(encode(np.zeros((3, 4, 4), np.uint8)))
        config = DataConfig(source="folder", path=str(tmp_path / "set"))
        for _ in range(2):
            images = open_data(config, cache_dir)
            assert images.names is not None
            assert list(images.names) == ["a/1.png", "a/2.png", "b/1.png"]
            assert images.class_names == ("a", "b") and images.std == (0.0, 0.0, 0.0)

    def test_labels_of_which_none_is_known_are_none(self, cache_dir: Path, tmp_path: Path) -> None:
        config = write_raw(tmp_path / "f.parquet", 9, label=pa.array([-1] * 9))
        assert open_data(config, cache_dir).labels is None

    def test_default_cache_dir(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CONR_RAY_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert default_cache_dir() == Path.home() / ".cache" / "conr_ray"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_cache_dir() == tmp_path / "conr_ray"
        monkeypatch.setenv("CONR_RAY_CACHE", str(tmp_path / "own"))
        open_data(DIGITS)
        assert len(list((tmp_path / "own").glob("*/meta.json"))) == 1

    def test_a_cache_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="set CONR_RAY_CACHE to a writable folder") as caught:
            open_data(DIGITS, tmp_path / "file" / "cache")
        assert "\n" not in str(caught.value)

    def test_a_copy_that_has_no_room_is_refused_before_it_is_begun(
        self, cache_dir: Path, tmp_path: Path
    ) -> None:
        # A hundred KB that would be 48 TB.
        config = write_raw(tmp_path / "f.parquet", 3_000_000)
        big = config.model_copy(update={"stored_size": 4096})
        told = (
            "the decoded samples take 48,000,000 MiB, and .* MiB free; lower data.stored_size, or"
        )
        with pytest.raises(UserError, match=told):
            open_data(big, cache_dir)
        assert [path.suffix for path in cache_dir.iterdir()] == [".lock"]

    def test_a_source_that_fails_leaves_nothing(self, cache_dir: Path, tmp_path: Path) -> None:
        table = pa.table({"image": [b"1234"] * 600 + [b"123"]})
        pq.write_table(table.replace_schema_metadata({"shape": "2,2"}), tmp_path / "f.parquet")
        with pytest.raises(UserError, match="row 600 cannot be decoded"):
            open_data(DataConfig(source="parquet", path=str(tmp_path / "f.parquet")), cache_dir)
        assert [path.suffix for path in cache_dir.iterdir()] == [".lock"]


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


class TestDamage:
    @pytest.mark.parametrize("harm", [flipped, cut, emptied, Path.unlink])
    @pytest.mark.parametrize("name", ["images.npy", "labels.npy", "names.parquet", "meta.json"])
    def test_a_damaged_copy_is_made_anew_with_a_line(
        self,
        cache_dir: Path,
        tmp_path: Path,
        encode: Any,
        capsys: pytest.CaptureFixture[str],
        name: str,
        harm: Callable[[Path], None],
    ) -> None:
        for number, image in enumerate(("a/1.png", "a/2.png", "b/1.png")):
            (tmp_path / "set" / image).parent.mkdir(parents=True, exist_ok=True)
            picture = encode(np.full((3, 40, 40), number * 9, np.uint8))
            (tmp_path / "set" / image).write_bytes(picture)
        config = DataConfig(source="folder", path=str(tmp_path / "set"))
        whole = open_data(config, cache_dir)
        rows = np.array(whole.rows)
        [file] = cache_dir.glob(f"*/{name}")
        harm(file)
        assert prepared_data(config, cache_dir) is None
        for _ in range(2):
            again = open_data(config, cache_dir)
            np.testing.assert_array_equal(again.rows, rows)
            assert again.labels is not None and again.labels.tolist() == [0, 0, 1]
            assert (again.names, again.class_names) == (whole.names, whole.class_names)
            assert (again.mean, again.fingerprint) == (whole.mean, whole.fingerprint)
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and told[0].startswith(f"the cache {file.parent} is damaged (")
        assert told[0].endswith("): it is made anew")

    def test_a_copy_of_another_format_is_made_anew(
        self, cache_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        open_data(DIGITS, cache_dir)
        [meta] = cache_dir.glob("*/meta.json")
        facts = unseal(meta.parent, meta.name)
        meta.unlink()
        seal(meta.parent, meta.name, {**facts, "format": 1})
        assert open_data(DIGITS, cache_dir).num_rows == 1797
        assert "is damaged (format 1 instead of 4): it is made anew" in capsys.readouterr().err


class TestLimit:
    @staticmethod
    def limited(limit: int, cache_dir: Path) -> DataSet:
        return open_data(DIGITS.model_copy(update={"limit": limit}), cache_dir)

    def test_a_subset_is_random_rows_in_their_order(self, cache_dir: Path) -> None:
        whole, subset = open_data(DIGITS, cache_dir), self.limited(300, cache_dir)
        rows = subset.sample_ids
        assert subset.num_rows == 300 and (np.diff(rows) > 0).all() and rows.dtype == np.int64
        assert np.bincount(rows // 300, minlength=6)[:5].min() > 30
        np.testing.assert_array_equal(subset.rows, whole.rows[rows])
        assert whole.labels is not None and subset.labels is not None
        np.testing.assert_array_equal(subset.labels, whole.labels[rows])
        np.testing.assert_allclose(subset.mean, subset.rows.mean() / 255, rtol=1e-12)
        assert subset.fingerprint != whole.fingerprint

    def test_a_smaller_subset_is_part_of_a_larger_one(self, cache_dir: Path) -> None:
        small, large = self.limited(100, cache_dir), self.limited(101, cache_dir)
        assert set(small.sample_ids) < set(large.sample_ids)
        assert small.fingerprint != large.fingerprint

    def test_the_subset_never_changes(self, cache_dir: Path) -> None:
        assert self.limited(5, cache_dir).sample_ids.tolist() == [45, 53, 104, 1381, 1787]

    def test_bounds(self, cache_dir: Path) -> None:
        assert self.limited(1797, cache_dir).fingerprint == open_data(DIGITS, cache_dir).fingerprint
        with pytest.raises(UserError, match=r"data.limit=1798: there are 1797 images; lower it"):
            self.limited(1798, cache_dir)

    def test_an_unlabelled_subset_has_no_labels(self, cache_dir: Path, tmp_path: Path) -> None:
        labels = pa.array([-1] * 999 + [0])
        config = write_raw(tmp_path / "f.parquet", 1000, label=labels)
        assert open_data(config, cache_dir).labels is not None
        assert open_data(config.model_copy(update={"limit": 3}), cache_dir).labels is None


class TestImbalance:
    @staticmethod
    def long_tail(ratio: float, cache_dir: Path, **more: Any) -> DataSet:
        return open_data(DIGITS.model_copy(update={"imbalance": ratio, **more}), cache_dir)

    @pytest.mark.parametrize("ratio", [10, 100])
    def test_sizes_fall_exponentially_from_the_first_class_on(
        self, ratio: float, cache_dir: Path
    ) -> None:
        whole, tail = open_data(DIGITS, cache_dir), self.long_tail(ratio, cache_dir)
        assert whole.labels is not None and tail.labels is not None
        before, counts = np.bincount(whole.labels), np.bincount(tail.labels)
        for i, (count, most) in enumerate(zip(counts.tolist(), before.tolist(), strict=True)):
            assert count == min(most, max(1, int(before.max() * ratio ** (-i / 9))))
        np.testing.assert_array_equal(tail.rows, whole.rows[tail.sample_ids])
        assert tail.class_names == whole.class_names and tail.fingerprint != whole.fingerprint

    def test_a_longer_tail_is_part_of_a_shorter_one(self, cache_dir: Path) -> None:
        short, long = self.long_tail(10, cache_dir), self.long_tail(100, cache_dir)
        assert set(long.sample_ids) < set(short.sample_ids)

    def test_the_limit_is_of_what_it_leaves(self, cache_dir: Path) -> None:
        tail, part = self.long_tail(10, cache_dir), self.long_tail(10, cache_dir, limit=50)
        assert part.num_rows == 50 and set(part.sample_ids) < set(tail.sample_ids)
        with pytest.raises(UserError, match=rf"data.limit=1797: there are {tail.num_rows} images"):
            self.long_tail(10, cache_dir, limit=1797)

    def test_without_labels_there_are_no_rare_classes(self, cache_dir: Path) -> None:
        with pytest.raises(UserError, match=r"data.imbalance=10: the images have no labels"):
            self.long_tail(10, cache_dir, label_column=None)


def _statistics(blocks: list[Any]) -> Any:
    sums = statistics_of(blocks[0].shape)
    for block in blocks:
        sums.add(block)
    return sums.mean_and_std()


def test_statistics_do_not_depend_on_blocks(random_images: Callable[..., Any]) -> None:
    images = random_images(40, 3, 9, 8)
    whole = _statistics([images])
    assert _statistics(np.array_split(images, 7)) == whole
    np.testing.assert_allclose(whole[0], images.mean((0, 2, 3)) / 255, rtol=1e-12)
    np.testing.assert_allclose(whole[1], images.std((0, 2, 3)) / 255, rtol=1e-12)


@pytest.mark.parametrize("side", [256, 257])
def test_statistics_of_large_white_images_do_not_overflow(side: int) -> None:
    assert _statistics([np.full((2, 3, side, side), 255, np.uint8)]) == ((1.0,) * 3, (0.0,) * 3)


def test_statistics_of_vectors_are_a_mean_for_each_feature_and_one_deviation() -> None:
    vectors = np.random.default_rng(0).normal(3, 2, (50, 6)).astype(np.float32)
    mean, std = _statistics(np.array_split(vectors, 7))
    np.testing.assert_allclose(mean, vectors.mean(0), rtol=1e-5)
    deviation = np.sqrt(np.square(vectors - vectors.mean(0)).mean())
    np.testing.assert_allclose(std, [deviation], rtol=1e-5)


# A builder whose first block comes at once and whose second one takes `sys.argv[2]` seconds.
SLOW_BUILDER = """
import logging, sys, time
from pathlib import Path
from conr_ray.config import DataConfig
from conr_ray.data.sources import SOURCES
from conr_ray.data.sources.digits import DigitsSource
from conr_ray.data.store import open_data

class SlowDigits(DigitsSource):
    def blocks(self):
        images = next(super().blocks())
        yield images[:900]
        time.sleep(float(sys.argv[2]))
        yield images[900:]

logging.basicConfig(level=logging.INFO)
SOURCES["digits"] = SlowDigits
images = open_data(DataConfig(source="digits"), Path(sys.argv[1]))
print(images.fingerprint, int(images.rows.sum()))
assert "torch" not in sys.modules, "the store works without torch"
"""


def start_builder(cache_dir: Path, seconds: float) -> subprocess.Popen[str]:
    project = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILDER, str(cache_dir), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": project},
    )


@pytest.mark.slow
class TestProcesses:
    def test_two_processes_build_once(self, cache_dir: Path) -> None:
        builders = [start_builder(cache_dir, 1) for _ in range(2)]
        ended = [builder.communicate(timeout=HANG_S) for builder in builders]
        assert [builder.returncode for builder in builders] == [0, 0], ended
        assert ended[0][0] == ended[1][0]
        assert sum(errors.count("decoding 1797 samples") for _, errors in ended) == 1
        images = open_data(DIGITS, cache_dir)
        assert ended[0][0].split() == [images.fingerprint, str(int(images.rows.sum()))]

    def test_a_killed_build_is_made_anew(self, cache_dir: Path) -> None:
        builder = start_builder(cache_dir, 600)
        deadline = time.monotonic() + HANG_S
        while not list(cache_dir.glob("*.partial/images.npy")):
            assert builder.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        builder.send_signal(signal.SIGKILL)
        builder.communicate(timeout=HANG_S)
        assert builder.returncode == -signal.SIGKILL
        assert list(cache_dir.glob("*.partial")) and not list(cache_dir.glob("*/meta.json"))
        images = open_data(DIGITS, cache_dir)
        np.testing.assert_array_equal(images.rows, next(make_source(DIGITS).blocks()))
        assert not list(cache_dir.glob("*.partial"))

    def test_a_copy_without_its_last_file_is_made_anew(self, cache_dir: Path) -> None:
        open_data(DIGITS, cache_dir)
        (meta,) = cache_dir.glob("*/meta.json")
        images = meta.with_name("images.npy")
        meta.unlink()
        images.write_bytes(images.read_bytes()[:1000])
        assert open_data(DIGITS, cache_dir).rows[-1].any()
        assert json.loads(meta.read_text())["num_rows"] == 1797


# Published per-channel means and deviations of the training splits.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
FASHION_MNIST = ((0.2860,), (0.3530,))


def shared_file(name: str) -> str:
    path = SHARED_DATA / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{name}.parquet is not in the shared data beside the project")
    return str(path)


class TestSharedData:
    @pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
    def test_the_first_rows(self, name: str) -> None:
        source = make_source(DataConfig(source="parquet", path=shared_file(name)))
        contents, block = source.contents(), next(source.blocks())
        assert contents.num_rows in (60_000, 70_000)
        assert block.shape[1:] == contents.row_shape and block.std() > 20

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "label_column", "num_images", "num_classes", "statistics"),
        [
            pytest.param("cifar10", "label", 50_000, 10, CIFAR10, marks=pytest.mark.long),
            pytest.param("cifar100", "coarse_label", 50_000, 20, CIFAR100, marks=pytest.mark.long),
            ("fashion_mnist", "label", 60_000, 10, FASHION_MNIST),
        ],
    )
    def test_training_splits(
        self,
        name: str,
        label_column: str,
        num_images: int,
        num_classes: int,
        statistics: tuple[tuple[float, ...], tuple[float, ...]],
        cache_dir: Path,
    ) -> None:
        config = DataConfig(
            source="parquet", path=shared_file(name), label_column=label_column, splits=("train",)
        )
        images = open_data(config, cache_dir)
        assert images.labels is not None and images.num_classes == num_classes
        counts = np.bincount(images.labels).tolist()
        assert counts == [num_images // num_classes] * num_classes
        np.testing.assert_allclose(images.mean, statistics[0], atol=2e-4)
        np.testing.assert_allclose(images.std, statistics[1], atol=2e-4)

    @pytest.mark.long
    def test_all_rows(self, cache_dir: Path) -> None:
        config = DataConfig(source="parquet", path=shared_file("cifar100"), limit=1000)
        images = open_data(config, cache_dir)
        assert images.num_rows == 1000 and images.sample_ids.max() > 55_000
        assert images.class_names is not None and images.class_names[0] == "apple"
