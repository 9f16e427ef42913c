"""Folders: what is written is read back, listed and deleted, here and in an object store."""

from __future__ import annotations

import pickle
from collections.abc import Callable
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


def test_a_uri_that_names_no_storage_is_told() -> None:
    with pytest.raises(StorageError, match=r"^foo://bucket cannot be opened: "):
        Folder("foo://bucket")
