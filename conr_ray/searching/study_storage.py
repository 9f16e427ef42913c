"""Where a search's study is kept: a journal in its folder, in a bucket too, or a database."""

from __future__ import annotations

from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage

from conr_ray.searching.bucket_journal import BucketJournal
from conr_ray.searching.file_journal import FileJournal
from conr_ray.storage.files import Folder

# SQLite's own limit is 5 s; a dashboard may hold a file for longer.
_BUSY_S = 120


def journal(folder: Folder, name: str) -> BaseStorage:
    """The storage of studies in the file `name` of a folder, which a bucket holds in pieces."""
    if folder.is_local:
        return journal_file(Path(folder.uri) / name)
    return JournalStorage(BucketJournal(folder, name))


def journal_file(path: Path) -> BaseStorage:
    """The storage of studies in a file."""
    return JournalStorage(FileJournal(path))


def database(url: str) -> BaseStorage:
    """The storage of studies in a database; one in a file waits while other programs hold it."""
    if not url.startswith("sqlite"):
        return get_storage(url)
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _BUSY_S}})
