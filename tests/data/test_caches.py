"""The cache: what it holds, who has it open, what goes first, and the command that shows it."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import stat
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
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data import cache, store
from conr_ray.data.cache import Hold, cache_limit, entries, make_room, remove
from conr_ray.data.progress import Lines
from conr_ray.data.store import open_data
from conr_ray.data_commands import main
from conr_ray.errors import RunFailed, UserError
from tests.waiting import HANG_S

DIGITS = DataConfig(source="digits")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONR_RAY_CACHE_LIMIT", raising=False)
    return tmp_path / "cache"


def table(path: Path, num_images: int) -> DataConfig:
    """A Parquet file of grey images of 100 x 100 pixels: 10 KB each when they are decoded."""
    rows = [bytes([i % 256] * 10_000) for i in range(num_images)]
    data = pa.table({"image": rows}).replace_schema_metadata({"shape": "100,100"})
    pq.write_table(data, path)
    return DataConfig(source="parquet", path=str(path))


def make(config: DataConfig, age_s: float = 0.0) -> Path:
    """Decode, as if it had been used last so long ago; returns the folder of the copy."""
    before = {entry.path for entry in entries(cache.default_cache_dir())}
    open_data(config)
    gc.collect()
    [folder] = {e.path for e in entries(cache.default_cache_dir())} - before
    then = time.time() - age_s
    os.utime(folder.with_suffix(".used"), (then, then))
    return folder


# Opens the digits, says so, and keeps them until it is told to end.
HOLDER = """
import sys
from conr_ray.config import DataConfig
from conr_ray.data.store import open_data
data = open_data(DataConfig(source="digits"))
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(root: Path) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    yield process
    process.kill()
    process.communicate(timeout=HANG_S)


class TestHold:
    def test_a_copy_is_in_use_while_its_rows_are_mapped(self, root: Path) -> None:
        data = open_data(DIGITS)
        [entry] = entries(root)
        assert entry.in_use and not remove(entry) and entry.path.is_dir()
        view = np.asarray(data.rows)[5:]
        del data
        gc.collect()
        assert entries(root)[0].in_use
        del view
        gc.collect()
        [entry] = entries(root)
        assert not entry.in_use and remove(entry)
        assert list(root.iterdir()) == []
        assert open_data(DIGITS).num_rows == 1797

    def test_another_process_keeps_it_until_it_is_killed(self, root: Path, holder: Any) -> None:
        [entry] = entries(root)
        assert entry.in_use and not remove(entry)
        holder.send_signal(signal.SIGKILL)
        holder.wait(HANG_S)
        assert remove(entries(root)[0]) and not entry.path.exists()

    def test_who_waits_for_what_is_removed_makes_it_anew(self, root: Path) -> None:
        folder = make(DIGITS)
        used = folder.with_suffix(".used")
        remover = cache.locked_file(used, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        try:
            assert process.stdout is not None
            deadline = time.monotonic() + HANG_S
            # It has the file open, and waits for the lock.
            while not any(
                os.path.realpath(link) == str(used)
                for link in Path(f"/proc/{process.pid}/fd").iterdir()
            ):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            folder.rename(folder.with_suffix(".gone"))
            used.unlink()
            os.close(remover)
            assert process.stdout.readline() == "open\n"
            [entry] = [entry for entry in entries(root) if entry.path == folder]
            assert entry.in_use
        finally:
            process.kill()
            process.communicate(timeout=HANG_S)

    @pytest.mark.parametrize("stream", ["always", "never"])
    def test_a_copy_is_in_use_while_it_is_made(
        self, root: Path, stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for i in range(12):
            Image.new("L", (20, 20), i).save(tmp_path / f"{i:02}.png")
        # Less than what is made now.
        monkeypatch.setenv("CONR_RAY_CACHE_LIMIT", "1KB")
        seen = []

        class Watched(Lines):
            def worked(self, num: int) -> None:
                [entry] = entries(root)
                seen.append((entry.is_whole, entry.in_use, remove(entry)))
                assert cache.clean(root, deep=True) == []
                super().worked(num)

        monkeypatch.setattr(store, "Lines", Watched)
        data = open_data(DataConfig(source="folder", path=str(tmp_path), stream=stream))
        assert set(seen) == {(False, True, False)}
        assert data.num_rows == 12 and np.asarray(data.rows[3]).max() == 3

    def test_where_nothing_can_be_written_nothing_is_held(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        hold = Hold(tmp_path / "file" / "00112233445566778899")
        hold.release()


def test_only_its_user_can_read_it(root: Path) -> None:
    old = os.umask(0o022)
    try:
        folder = make(DIGITS)
    finally:
        os.umask(old)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (root, folder)] == [0o700, 0o700]


class TestLimit:
    def test_the_least_recently_used_go_first(
        self,
        root: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        older = make(table(tmp_path / "b.parquet", 100), age_s=7200)
        oldest = make(table(tmp_path / "a.parquet", 100), age_s=3 * 86400)
        newest = make(table(tmp_path / "c.parquet", 100))
        monkeypatch.setenv("CONR_RAY_CACHE_LIMIT", "3.5 MB")
        make(table(tmp_path / "d.parquet", 10))
        assert oldest.exists() and older.exists() and newest.exists()
        capsys.readouterr()
        monkeypatch.setenv("CONR_RAY_CACHE_LIMIT", "2MB")
        last = make(table(tmp_path / "e.parquet", 20))
        assert not oldest.exists() and not older.exists()
        assert newest.exists() and last.exists()
        told = capsys.readouterr().err.splitlines()
        assert told == [
            f"the cache {root} may take 2.0 MB: removed decoded copy {folder.name[:12]}, 100 "
            f"images 100x100 grey of {tmp_path}/{name}.parquet (1.0 MB, last used {ago} ago)"
            for folder, name, ago in ((oldest, "a", "3 days"), (older, "b", "2 hours"))
        ]

    def test_what_is_in_use_stays(
        self,
        root: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        kept = open_data(table(tmp_path / "a.parquet", 100))
        monkeypatch.setenv("CONR_RAY_CACHE_LIMIT", "1.5MB")
        data = open_data(table(tmp_path / "b.parquet", 100))
        assert len(entries(root)) == 2 and kept.num_rows == data.num_rows == 100
        assert (
            "it now takes 2.0 MB, since what is in use or made now stays" in capsys.readouterr().err
        )

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("10", 10), ("2kb", 2000), ("1.5 GB", 1.5e9), ("3T", 3e12), ("none", None)],
    )
    def test_sizes(
        self, text: str, expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CONR_RAY_CACHE_LIMIT", text)
        assert cache_limit(tmp_path) == expected

    def test_half_of_the_file_system_is_usual(self, tmp_path: Path, root: Path) -> None:
        limit = cache_limit(tmp_path / "not" / "there")
        assert limit is not None
        whole = os.statvfs(tmp_path)
        assert abs(limit - whole.f_blocks * whole.f_frsize / 2) <= whole.f_frsize

    @pytest.mark.parametrize("text", ["", "much", "-1", "101%", "1e9", "5 PB", "9" * 99])
    def test_no_size(self, text: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONR_RAY_CACHE_LIMIT", text)
        with pytest.raises(UserError, match=r"CONR_RAY_CACHE_LIMIT=.*: no size; give one such as"):
            make_room(root, 0)


class TestCommand:
    def test_it_lists(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["caches"])
        assert capsys.readouterr().out.startswith(f"0 in all, 0 KB; the cache {root} may take ")
        folder = make(table(tmp_path / "a.parquet", 100), age_s=86400)
        (root / "backbones").mkdir()
        (root / "backbones" / "facts.json").write_text("{}")
        data = open_data(DIGITS)
        main(["caches", "list"])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 5 and lines[4].startswith("3 in all, 1.")
        [line] = [line for line in lines if folder.name[:12] in line]
        assert f"100 images 100x100 grey of {tmp_path}/a.parquet" in line and "1 day ago" in line
        [line] = [line for line in lines if "1,797 images 8x8 grey of digits" in line]
        assert line.rstrip().endswith("in use") and data.num_rows
        main(["caches", "list", "--json"])
        told = json.loads(capsys.readouterr().out)
        assert told["cache"] == str(root) and len(told["entries"]) == 3
        by_kind = {entry["kind"]: entry for entry in told["entries"]}
        assert by_kind["backbones"]["bytes"] == 2 and by_kind["decoded copy"]["whole"]

    def test_it_removes_by_name_path_kind_and_age(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        one = make(table(tmp_path / "a.parquet", 100), age_s=3 * 86400)
        other = make(table(tmp_path / "b.parquet", 100))
        third = make(table(tmp_path / "c.parquet", 100), age_s=86400)
        (root / "precision").mkdir()
        (root / "precision" / "choice").write_text("fp32")
        main(["caches", "remove", str(tmp_path / "b.parquet")])
        assert not other.exists() and capsys.readouterr().out.endswith("1 removed, 1.0 MB\n")
        main(["caches", "remove", "--unused-for", "2d"])
        assert not one.exists() and third.exists()
        main(["caches", "remove", third.name[:12], "precision"])
        assert not third.exists() and not list((root / "precision").iterdir())
        assert entries(root) == []

    def test_what_is_in_use_is_kept_and_told(
        self, root: Path, holder: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(RunFailed, match="1 in use were kept: end the processes"):
            main(["caches", "remove", "--all"])
        out = capsys.readouterr().out
        assert out.startswith("kept decoded copy ") and "0 removed" in out
        assert len(entries(root)) == 1

    def test_it_cleans_what_killed_processes_have_left(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = make(DIGITS)
        names = ["a" * 64, "embeddings/" + "b" * 64]
        for name in names:
            (root / f"{name}.partial").mkdir(parents=True)
            (root / f"{name}.partial" / "images.npy").write_bytes(bytes(1000))
            (root / f"{name}.lock").touch()
        held = root / ("c" * 64 + ".partial")
        held.mkdir()
        lock = cache.locked_file(held.with_suffix(".lock"), fcntl.LOCK_EX)
        unfinished = [entry for entry in entries(root) if not entry.is_whole]
        assert len(unfinished) == 3 and unfinished[0].made_from == "unfinished"
        # A build removes what no later one goes on with.
        make(table(tmp_path / "a.parquet", 10))
        assert not (root / f"{names[0]}.partial").exists()
        assert (root / f"{names[1]}.partial").exists()
        main(["caches", "clean"])
        assert "1 left by killed processes removed" in capsys.readouterr().out
        assert not (root / f"{names[1]}.partial").exists() and held.exists()
        os.close(lock)
        main(["caches", "clean"])
        suffixes = {path.suffix for path in root.rglob("*") if path.name[0] in "abc"}
        assert whole.exists() and suffixes <= {"", ".npy", ".json", ".used", ".lock"}
        assert not list(root.glob("c*")) and not list((root / "embeddings").iterdir())

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["remove"], "name what to remove"),
            (["remove", "nothing"], "the cache holds nothing of that name or path"),
            (["remove", "--unused-for", "long"], "--unused-for long: give a number of days"),
            (["forget"], "invalid choice"),
        ],
    )
    def test_slips_are_told(self, words: list[str], told: str, root: Path) -> None:
        with pytest.raises(UserError, match=told) as caught:
            main(["caches", *words])
        assert "\n" not in str(caught.value)


def test_a_damaged_meta_file_is_no_obstacle(
    root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for number, text in enumerate(("[]", "{", '{"source": 3, "num_rows": "x", "shape": 1}', "")):
        folder = root / f"{number:064x}"
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text(text)
    assert len(entries(root)) == 4
    main(["caches"])
    main(["caches", "remove", "--all"])
    assert "4 removed" in capsys.readouterr().out


def test_a_source_that_is_read_twice_is_decoded_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encode: Callable[..., bytes]
) -> None:
    from conr_ray.data.sources.folder import FolderSource

    (tmp_path / "set").mkdir()
    for number in range(3):
        picture = encode(np.full((3, 4, 4), number, np.uint8))
        (tmp_path / "set" / f"{number}.png").write_bytes(picture)
    config = DataConfig(source="folder", path=str(tmp_path / "set"))
    first = np.array(open_data(config).rows)

    def decoded_again(source: FolderSource) -> Any:
        raise AssertionError("decoded again")

    monkeypatch.setattr(FolderSource, "blocks", decoded_again)
    np.testing.assert_array_equal(open_data(config).rows, first)
