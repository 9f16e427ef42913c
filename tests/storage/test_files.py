"""Folders: what is written is read back, listed and deleted, here and in an object store."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from conr_ray.errors import StorageError, UserError
from conr_ray.storage.files import Folder

OpenFolder = Callable[[], Folder]


@pytest.fixture
def open_folder(any_storage: str) -> OpenFolder:
    """Opens one and the same folder, anew at each call."""
    return lambda: Folder(f"{any_storage}/folder")


def test_local_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder("run").uri == Folder("./run/").uri == str(tmp_path / "run")


def test_a_folder_knows_its_parent_and_survives_pickling(open_folder: OpenFolder) -> None:
    folder = open_folder()
    folder.parent.write_text("beside.txt", "here")
    again = pickle.loads(pickle.dumps(folder))
    assert type(again) is Folder and again.uri == folder.uri
    assert again.is_local == folder.is_local
    assert again.parent.read_text("beside.txt") == "here"
    assert not again.has("beside.txt")


def test_files_are_read_as_they_were_written(open_folder: OpenFolder) -> None:
    table = pa.table({"sample": [0, 1], "cluster": [3, 4]})
    folder = open_folder()
    assert folder.read_text("notes.txt") is None and folder.read_table("t.parquet") is None
    folder.write_text("notes.txt", "übrig\n")
    folder.write_table("t.parquet", table)
    assert open_folder().read_text("notes.txt") == "übrig\n"
    assert open_folder().read_table("t.parquet") == table
    folder.write_text("notes.txt", "shorter")
    assert open_folder().read_text("notes.txt") == "shorter"


def test_what_is_there_is_listed_and_deleted(open_folder: OpenFolder) -> None:
    folder = open_folder()
    assert folder.paths_below("a") == folder.file_names("a") == folder.folder_names("a") == []
    folder.delete_folder("a")
    for name in ("a/2.txt", "a/1.txt", "a/b/c/3.txt", "ab/4.txt"):
        folder.write_bytes(name, b"content")
    assert open_folder().file_names("a") == ["1.txt", "2.txt"]
    assert open_folder().folder_names("a") == ["b"]
    assert open_folder().paths_below("a") == ["1.txt", "2.txt", "b/c/3.txt"]
    assert open_folder().has("a") and open_folder().has("a/1.txt")
    folder.delete_file("a/1.txt")
    assert open_folder().paths_below("a") == ["2.txt", "b/c/3.txt"]
    folder.delete_folder("a")
    assert not open_folder().has("a/2.txt")
    assert open_folder().read_bytes("ab/4.txt") == b"content"


def test_a_damaged_table_is_told(open_folder: OpenFolder) -> None:
    open_folder().write_bytes("t.parquet", b"PAR1")
    with pytest.raises(UserError, match=r"t\.parquet is damaged \(.*\): delete it$"):
        open_folder().read_table("t.parquet")


def test_every_changed_bit_of_a_tables_values_is_told(tmp_path: Path) -> None:
    folder, table = Folder(tmp_path), pa.table({"epoch": [0, 1], "loss": [0.25, 0.5]})
    folder.write_table("t.parquet", table)
    data = folder.read_bytes("t.parquet")
    assert data is not None
    # At the end are what columns there are, its length in four bytes, and four more.
    values = len(data) - int.from_bytes(data[-8:-4], "little") - 8
    for at in range(values):
        changed = bytearray(data)
        changed[at] ^= 4
        folder.write_bytes("t.parquet", changed)
        try:
            assert folder.read_table("t.parquet") == table
        except UserError as error:
            assert "\n" not in str(error)


def test_a_store_that_does_not_answer_is_told_by_what_lists_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    folder = Folder("s3://bucket/folder?region=us-east-1")
    with pytest.raises(StorageError, match="cannot be read: ") as caught:
        folder.has("a")
    assert "\n" not in str(caught.value)


def test_a_table_without_a_column_that_is_needed_is_damaged(open_folder: OpenFolder) -> None:
    open_folder().write_table("t.parquet", pa.table({"a": [1]}))
    assert open_folder().read_table("t.parquet", ["a"]) is not None
    with pytest.raises(UserError, match=r"t\.parquet is damaged \(no column b\): delete it$"):
        open_folder().read_table("t.parquet", ["a", "b"])


def test_damaged_json_and_text_are_told(open_folder: OpenFolder) -> None:
    folder = open_folder()
    assert folder.read_json("a.json") is None
    folder.write_text("a.json", '{"a": 1}')
    assert folder.read_json("a.json") == {"a": 1}
    for content in (b"", b"[1]", b'{"a": ', b"\xff\xfe"):
        folder.write_bytes("a.json", content)
        with pytest.raises(UserError, match=r"a\.json is damaged \(.*\): delete it$"):
            folder.read_json("a.json")


def test_a_folder_that_is_gone_or_replaced_is_not_written_to(tmp_path: Path) -> None:
    outer = Folder(tmp_path / "search")
    outer.keep()
    folder = Folder(tmp_path / "search/run", outer)
    folder.keep()
    folder.write_text("a.txt", "kept")
    others = [folder, pickle.loads(pickle.dumps(folder)), Folder(folder.uri)]
    new = Folder(tmp_path / "search/new", outer)

    def refused(*folders: Folder) -> None:
        for one in folders:
            changes: list[tuple[Callable[..., None], tuple[str, ...]]] = [
                (one.write_text, ("b.txt", "lost")),
                (one.delete_file, ("a.txt",)),
                (one.keep, ()),
            ]
            for change, arguments in changes:
                with pytest.raises(StorageError, match=r"is gone, or another folder is in its pla"):
                    change(*arguments)

    away = tmp_path / "away"
    (tmp_path / "search").rename(away)
    refused(*others, new, outer)
    assert not (tmp_path / "search").exists()
    # As under a mount point.
    (tmp_path / "search/run").mkdir(parents=True)
    refused(*others, new, outer)
    assert not list((tmp_path / "search/run").iterdir())
    (tmp_path / "search/run").rmdir()
    (tmp_path / "search").rmdir()
    away.rename(tmp_path / "search")
    for one in others:
        one.write_text("b.txt", "written")
    new.keep()


def test_a_uri_that_names_no_storage_is_told() -> None:
    with pytest.raises(StorageError, match=r"^foo://bucket cannot be opened: "):
        Folder("foo://bucket")


def test_an_object_that_is_replaced_while_it_is_read_is_the_old_or_the_new_one(
    s3_bucket: str,
) -> None:
    folder, written = (
        Folder(s3_bucket),
        [letter * (500 * number) for number, letter in enumerate("abcdef", 1)],
    )
    folder.write_text("file", written[0])
    done = threading.Event()

    def write() -> None:
        for text in itertools.cycle(written):
            folder.write_text("file", text)
            if done.wait(0.01):
                return

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            found = {folder.read_text("file") for _ in range(50)}
        finally:
            done.set()
        writing.result()
    assert len(found) > 1 and found <= set(written)
