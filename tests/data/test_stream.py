"""Images that stay encoded: decoded to what the copy holds, from wherever they are."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data.cache import entries
from conr_ray.data.encoded_rows import EncodedRows
from conr_ray.data.prepared import prepared_data
from conr_ray.data.records import INDEX, RECORDS
from conr_ray.data.store import DataSet, open_data
from conr_ray.errors import SampleLost, UserError

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
Write = Callable[[Path], dict[str, Any]]


def _smooth(seed: int, height: int = 24, width: int = 32) -> Any:
    """Pixels (h, w, 3) that files of are smaller than."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.sin(rows / (5 + seed % 3)) + np.cos(columns / (4 + seed % 5))
    return ((waves[..., None] + [2, 2.5, 1.5]) * (40 + seed % 20)).astype(np.uint8)


def _files(folder: Path, num_images: int = 24) -> list[Path]:
    """JPEG, PNG with alpha, grey and turned ones, of several sizes, in two folders."""
    paths = []
    for number in range(num_images):
        image = Image.fromarray(_smooth(number, 24 + number % 3, 32 - number % 2))
        name = folder / "ab"[number % 2] / f"{number:03}"
        name.parent.mkdir(parents=True, exist_ok=True)
        if number % 4 == 0:
            image.putalpha(number * 10)
            image.save(path := name.with_suffix(".png"))
        elif number % 4 == 1:
            turned = Image.Exif()
            turned[0x0112] = 6
            image.save(path := name.with_suffix(".jpg"), exif=turned, quality=90)
        else:
            image.convert("L" if number % 4 == 2 else "RGB").save(path := name.with_suffix(".webp"))
        paths.append(path)
    return paths


def _folder(place: Path) -> dict[str, Any]:
    _files(place / "set")
    return {"source": "folder", "path": str(place / "set")}


def _parquet(place: Path) -> dict[str, Any]:
    files = [path.read_bytes() for path in _files(place / "set")]
    table = pa.table({"image": files, "label": [i % 3 for i in range(len(files))]})
    pq.write_table(table, place / "set.parquet", row_group_size=7)
    return {"source": "parquet", "path": str(place / "set.parquet")}


def _raw_pixels(place: Path) -> dict[str, Any]:
    rows = [_smooth(number).tobytes() for number in range(20)]
    table = pa.table({"image": rows}).replace_schema_metadata({"shape": "24,32,3"})
    pq.write_table(table, place / "raw.parquet")
    return {"source": "parquet", "path": str(place / "raw.parquet")}


def _tensors(place: Path) -> dict[str, Any]:
    pixels = np.stack([_smooth(number) for number in range(20)])
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    pq.write_table(pa.table({"image": column}), place / "tensors.parquet")
    return {"source": "parquet", "path": str(place / "tensors.parquet")}


def _digits(place: Path) -> dict[str, Any]:
    return {"source": "digits"}


def _resized(place: Path) -> dict[str, Any]:
    return {**_folder(place), "stored_size": 17}


SOURCES = [_folder, _resized, _parquet, _raw_pixels, _tensors, _digits]


def _both(settings: dict[str, Any], cache: Path, **more: Any) -> tuple[DataSet, DataSet]:
    """The samples decoded once, and those that are whenever needed."""
    decoded = open_data(DataConfig(**settings, **more, stream="never"), cache)
    assert isinstance(decoded.rows, np.ndarray) and not decoded.is_streamed
    streamed = open_data(DataConfig(**settings, **more, stream="always"), cache)
    assert isinstance(streamed.rows, EncodedRows) and streamed.is_streamed
    return decoded, streamed


def _assert_equal(decoded: DataSet, streamed: DataSet) -> None:
    np.testing.assert_array_equal(streamed.rows[:], decoded.rows[:])
    assert streamed.rows.shape == decoded.rows.shape
    assert streamed.rows.nbytes == decoded.rows.nbytes
    for name in ("fingerprint", "rows_fingerprint", "mean", "std", "names", "class_names"):
        assert getattr(streamed, name) == getattr(decoded, name), name
    np.testing.assert_array_equal(streamed.sample_ids, decoded.sample_ids)
    np.testing.assert_equal(streamed.labels, decoded.labels)
    assert streamed.line == decoded.line + "; decoded whenever needed"
    assert streamed.inventory == decoded.inventory
    assert streamed.picture(3) == decoded.picture(3)


@pytest.mark.parametrize("write", SOURCES)
def test_the_same_samples_as_decoded_once(write: Write, tmp_path: Path) -> None:
    settings = write(tmp_path)
    decoded, streamed = _both(settings, tmp_path / "cache")
    _assert_equal(decoded, streamed)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/*")}
    again = open_data(DataConfig(**settings, stream="always"), tmp_path / "cache")
    _assert_equal(decoded, again)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/*")}


def test_they_are_read_as_an_array_is(tmp_path: Path) -> None:
    decoded, streamed = _both(_parquet(tmp_path), tmp_path / "cache")
    whole, rows = decoded.rows[:], streamed.rows
    mask = np.arange(len(whole)) % 5 == 0
    asked: list[Any] = [0, -1, slice(3, 9), slice(None, None, -2), [5, 5, -2], [], mask]
    asked += [np.array([7, 0, 23]), np.int64(4)]
    for key in asked:
        np.testing.assert_array_equal(rows[key], whole[key], strict=True)
    for wrong in (len(whole), [0, len(whole)], np.zeros((2, 2), int), "a"):
        with pytest.raises(IndexError):
            rows[wrong]
    np.testing.assert_array_equal(np.asarray(rows), whole)
    np.testing.assert_array_equal(np.stack(list(rows)), whole)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(rows))[:], whole)


def test_what_is_expected_changes_nothing(tmp_path: Path) -> None:
    decoded, streamed = _both(_folder(tmp_path), tmp_path / "cache")
    rows, whole = streamed.rows, decoded.rows[:]
    assert isinstance(rows, EncodedRows)
    order = np.random.default_rng(0).permutation(len(whole)).reshape(6, 4)
    for threads in (1, 3):
        rows.use_threads(threads)
        for batch in (*order, order[0]):
            rows.expect(batch)
        # In another order, some of them twice, one that nobody expected, and one never.
        for batch in (order[2], order[0], order[0], np.array([1, 1, 2]), *order[3:]):
            np.testing.assert_array_equal(rows[batch], whole[batch])
        rows.forget()
        np.testing.assert_array_equal(rows[order[1]], whole[order[1]])


@pytest.mark.parametrize("write", [_folder, _digits])
def test_a_subset_is_no_copy(write: Write, tmp_path: Path) -> None:
    settings, parts = write(tmp_path), ({"limit": 10}, {"imbalance": 2.0})
    for more in (*parts, {"imbalance": 2.0, "limit": 8}):
        _assert_equal(*_both(settings, tmp_path / "cache", **more))
        # What took a pass over the samples is known the next time.
        known = list((tmp_path / "cache").glob("*/part-*.json"))
        assert known
        times = [path.stat().st_mtime_ns for path in known]
        _assert_equal(*_both(settings, tmp_path / "cache", **more))
        assert times == [path.stat().st_mtime_ns for path in known]
        for path in known:
            path.write_text("[]")
        _assert_equal(*_both(settings, tmp_path / "cache", **more))


def test_files_of_a_folder_are_not_copied_and_those_in_tables_are(tmp_path: Path) -> None:
    _, streamed = _both(_folder(tmp_path), tmp_path / "cache")
    assert isinstance(streamed.rows, EncodedRows)
    paths = (streamed.rows.folder / RECORDS).read_bytes()
    assert paths.count(str(tmp_path / "set").encode()) == 24 and len(paths) < 24 * 200
    other = tmp_path / "other"
    other.mkdir()
    _, streamed = _both(_parquet(other), other / "cache")
    assert isinstance(streamed.rows, EncodedRows)
    files = [path.read_bytes() for path in _files(other / "set")]
    assert (streamed.rows.folder / RECORDS).read_bytes() == b"".join(files)
    (other / "set.parquet").unlink()
    assert streamed.rows[:].any()


class TestChoice:
    """By the room that there is."""

    @pytest.fixture
    def room(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        def leave(num_bytes: float) -> None:
            monkeypatch.setattr(
                shutil, "disk_usage", lambda _: SimpleNamespace(free=int(num_bytes), total=10**15)
            )

        return leave

    def test_auto_streams_where_the_decoded_copy_has_no_room(
        self, tmp_path: Path, room: Any, capfd: pytest.CaptureFixture[str]
    ) -> None:
        config = DataConfig(**_parquet(tmp_path), stored_size=64)
        needed = 24 * 3 * 64 * 64
        room(1.1 * needed)
        assert not open_data(config, tmp_path / "roomy").is_streamed
        assert capfd.readouterr().err == ""
        room(1.01 * needed)
        data = open_data(config, tmp_path / "full")
        assert data.is_streamed
        assert capfd.readouterr().err == (
            f"data.stream=auto: decoded, the images take 0 MiB, and the cache {tmp_path}/full has "
            "room for 0 MiB: they are decoded whenever needed\n"
        )
        np.testing.assert_array_equal(data.rows[:], open_data(config, tmp_path / "roomy").rows[:])
        # What there is goes on to be used, whatever room there is.
        room(1e12)
        assert open_data(config, tmp_path / "full").is_streamed
        assert capfd.readouterr().err == ""
        room(0)
        assert not open_data(config, tmp_path / "roomy").is_streamed

    def test_the_limit_of_the_cache_decides_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = DataConfig(**_parquet(tmp_path), stored_size=64)
        needed = 24 * 3 * 64 * 64
        monkeypatch.setenv("CONR_RAY_CACHE_LIMIT", str(needed - 1))
        data = open_data(config, tmp_path / "small")
        assert data.is_streamed
        # It is in use, so it stays.
        assert isinstance(data.rows, EncodedRows)
        assert [entry.in_use for entry in entries(tmp_path / "small")] == [True]
        part = data.rows.part(np.array([1]))
        del data
        assert [entry.in_use for entry in entries(tmp_path / "small")] == [True]
        del part
        assert [entry.in_use for entry in entries(tmp_path / "small")] == [False]
        monkeypatch.setenv("CONR_RAY_CACHE_LIMIT", str(2 * needed))
        assert not open_data(config, tmp_path / "large").is_streamed

    def test_sizes_decide_by_what_all_become(self, tmp_path: Path, room: Any) -> None:
        # By the first one alone, they would take 4 MB.
        (tmp_path / "set").mkdir()
        for number in range(12):
            sides = (360, 320) if number == 0 else (36, 32)
            Image.fromarray(_smooth(number, *sides)).save(tmp_path / "set" / f"{number:02}.png")
        room(500_000)
        config = DataConfig(source="folder", path=str(tmp_path / "set"))
        data = open_data(config, tmp_path / "cache")
        assert not data.is_streamed and data.row_shape == (3, 32, 32)

    def test_never_and_pixels_are_refused_as_ever(self, tmp_path: Path, room: Any) -> None:
        config = DataConfig(**_parquet(tmp_path), stored_size=64)
        room(1000)
        remedy = "lower data.stored_size, set data.stream=auto, or set CONR_RAY_CACHE"
        with pytest.raises(UserError, match=f"^the decoded samples take 0 MiB, and .*{remedy}"):
            open_data(config.model_copy(update={"stream": "never"}), tmp_path / "cache")
        with pytest.raises(
            UserError, match=r"free; lower data\.stored_size, or set CONR_RAY_CACHE"
        ):
            open_data(DataConfig(**_raw_pixels(tmp_path)), tmp_path / "cache")
        with pytest.raises(UserError, match=r"as files, and .* set CONR_RAY_CACHE to a folder"):
            open_data(config, tmp_path / "cache")
        assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


class TestWhatCannotBeRead:
    """Found when the data are opened, or lost after that."""

    def _broken(self, tmp_path: Path) -> dict[str, Any]:
        paths = _files(tmp_path / "set")
        for number in (0, 9, 23):
            paths[number].write_bytes(paths[number].read_bytes()[:60])
        return {"source": "folder", "path": str(tmp_path / "set")}

    def test_is_left_out_or_named_at_once(self, tmp_path: Path) -> None:
        settings = self._broken(tmp_path)
        _assert_equal(*_both(settings, tmp_path / "cache", on_error="skip"))
        with pytest.raises(UserError, match=r"cannot be decoded .* nor can .*; all 3, with"):
            open_data(DataConfig(**settings, stream="always"), tmp_path / "cache")

    @pytest.mark.parametrize("how", ["gone", "changed", "cut"])
    def test_a_file_that_is_lost_is_named(self, tmp_path: Path, how: str) -> None:
        _, streamed = _both(_folder(tmp_path), tmp_path / "cache")
        name = "a/010.webp"
        path = tmp_path / "set" / name
        content = path.read_bytes()
        assert streamed.names is not None
        row = streamed.names.index(name)
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(content[:-9] if how == "cut" else content[:-1] + b"?")
        streamed.rows.expect(np.array([row]))
        reason = "No such file or directory" if how == "gone" else "it has changed"
        with pytest.raises(SampleLost) as caught:
            streamed.rows[np.array([row])]
        assert str(caught.value) == (
            f"image {row} ({name}) was read before, and cannot be any more ({reason}): put back "
            "the file as it was, or start anew"
        )
        # Once it is there again, all is well.
        path.write_bytes(content)
        assert streamed.rows[:].any()

    def test_a_damaged_record_is_noticed(self, tmp_path: Path) -> None:
        _, streamed = _both(_parquet(tmp_path), tmp_path / "cache")
        assert isinstance(streamed.rows, EncodedRows)
        path = streamed.rows.folder / RECORDS
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(SampleLost, match=f"changed.*: delete {streamed.rows.folder}, and it"):
            streamed.rows[:]

    @pytest.mark.parametrize("name", [RECORDS, INDEX, "labels.npy"])
    def test_a_copy_that_is_not_whole_is_made_anew(self, tmp_path: Path, name: str) -> None:
        settings = _parquet(tmp_path)
        decoded, streamed = _both(settings, tmp_path / "cache")
        assert isinstance(streamed.rows, EncodedRows)
        path = streamed.rows.folder / name
        path.write_bytes(path.read_bytes()[:-1])
        _assert_equal(
            decoded, open_data(DataConfig(**settings, stream="always"), tmp_path / "cache")
        )

    def test_another_decoder_finds_out_anew(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = DataConfig(**_parquet(tmp_path), stream="always")
        made = open_data(config, tmp_path / "cache")
        found = prepared_data(config, tmp_path / "cache")
        assert found is not None and found.fingerprint == made.fingerprint
        monkeypatch.setattr(PIL, "__version__", "0.1")
        assert prepared_data(config, tmp_path / "cache") is None
        again = open_data(config, tmp_path / "cache")
        assert isinstance(made.rows, EncodedRows) and isinstance(again.rows, EncodedRows)
        assert again.rows.folder != made.rows.folder


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the shared data sets")
@pytest.mark.slow
def test_real_images_in_random_order_hold_no_more_memory(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    path = str(SHARED_DATA / "cifar10.parquet")
    config = DataConfig(source="parquet", path=path, splits=("test",), stream="always")
    rows = open_data(config, tmp_path / "cache").rows
    assert isinstance(rows, EncodedRows)
    order = np.random.default_rng(0).permutation(len(rows))[:9984].reshape(-1, 256)
    held = []
    for place, batch in enumerate(order):
        for ahead in order[place + 1 : place + 4]:
            rows.expect(ahead)
        assert rows[batch].shape == (256, *rows.shape[1:])
        held.append(psutil.Process().memory_info().rss)
    # All of them would take 30 MB; the first batches have made what is kept.
    assert max(held[8:]) - held[8] < 8 * 2**20
