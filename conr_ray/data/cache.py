"""The cache of what can be made anew: decoded copies, vectors, what is browsed.

Its entries are folders, named by a hash of what determines them, at the top (decoded copies) or in
a folder for their kind. Beside an entry there are

HASH.lock      held by who makes it
HASH.used      held by each process that has it open; its time is that of the last use
HASH.partial   what is made, until it is whole; and the like

Only their user can read them: they hold copies of what may be private.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conr_ray.data.inventory import counted, told_of_shape
from conr_ray.errors import UserError, printable
from conr_ray.fields import short
from conr_ray.storage import disk
from conr_ray.storage.locks import locked_file

DECODED, ENCODED = "decoded copy", "encoded copy"
LIMIT = "CONR_RAY_CACHE_LIMIT"
# Of the file system that the cache is on.
_DEFAULT_LIMIT = "50%"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_HASH = re.compile(r"[0-9a-f]{16,64}")
# What an entry is called while it is made, or removed.
_UNFINISHED = (".partial", ".joined", ".copy", ".part")
# Of folders that hold copies of what may be private.
PRIVATE = 0o700


def default_cache_dir() -> Path:
    """The default folder of the cache: $CONR_RAY_CACHE, or conr_ray in $XDG_CACHE_HOME.

    Raises UserError if this user has no home.
    """
    own, base = os.environ.get("CONR_RAY_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own or f"{base or '~/.cache'}/conr_ray").expanduser()
    except RuntimeError:
        raise UserError(
            "this user has no home for a cache of decoded samples: set CONR_RAY_CACHE to a folder"
        ) from None


class Hold:
    """Keeps an entry from being removed, in all processes, until it is released."""

    def __init__(self, folder: Path) -> None:
        """Hold the entry `folder`, which need not be there yet, and note that it is used now.

        Where the cache cannot be written nothing is held: nobody can remove anything either.
        """
        self._file: int | None = None
        with suppress(OSError):
            disk.make_folders(folder.parent, PRIVATE)
            self._file = locked_file(_used(folder), fcntl.LOCK_SH)
            disk.touch(self._file)

    def release(self) -> None:
        """Let it go."""
        # Closed, not unlocked: a fork of this process may have it open too.
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def while_open(self, mapped: np.memmap[Any, Any]) -> None:
        """Release it when the file of an array, or of parts of it, is no longer mapped."""
        self.while_there(mapped._mmap)  # type: ignore[attr-defined]

    def while_there(self, reader: object) -> None:
        """Release it when an object that reads it is gone."""
        weakref.finalize(reader, self.release)


@dataclass(frozen=True)
class Entry:
    """What the cache holds.

    Attributes:
        root: of the cache.
        path: of the folder.
        kind: what such folders hold, as decoded copies; by the folder that they are in.
        num_bytes: of all files.
        used_at: when it was last opened, in seconds since 1970.
        in_use: whether a process has it open, or makes it.
        meta: what its meta.json tells; empty without one.
    """

    root: Path
    path: Path
    kind: str
    num_bytes: int
    used_at: float
    in_use: bool
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called on the command line: the begin of its hash, or the folder's name."""
        stem = self.path.name.partition(".")[0]
        return stem[:12] if _HASH.fullmatch(stem) else self.path.name

    @property
    def is_whole(self) -> bool:
        """Whether it was made to its end."""
        return self.path.suffix not in _UNFINISHED

    @property
    def made_from(self) -> str:
        """What it was made from, for people; empty if it does not tell."""
        source, rows = self.meta.get("source"), self.meta.get("num_rows")
        told = ""
        if isinstance(rows, int):
            told = counted(rows, "sample", "samples")
        if isinstance(source, dict):
            shape = self.meta.get("shape", ())
            if isinstance(shape, list) and len(shape) in (2, 4):
                told = told_of_shape(shape[0], shape[1:])
            place = source.get("path") or source.get("name") or source.get("source")
            told += f" of {printable(str(place))}"
            if source.get("name") and source.get("path"):
                told += f" ({printable(str(source['name']))})"
        elif backbone := self.meta.get("backbone"):
            told += f" by {printable(str(backbone))}"
        return told if self.is_whole else f"unfinished {told}".rstrip()

    @property
    def source_path(self) -> str | None:
        """The absolute local path, or the URI, that it was made from; None if it does not tell."""
        source = self.meta.get("source")
        path = source.get("path") if isinstance(source, dict) else None
        return absolute(path) if isinstance(path, str) else None


def absolute(path: str) -> str:
    """A local path as an absolute one; a URI as it is."""
    return path if "://" in path else str(Path(os.path.expanduser(path)).absolute())


def entries(root: Path) -> list[Entry]:
    """What a cache holds, the least recently used first."""
    found = []
    for folder in _folders(root):
        if _is_entry(folder):
            found.append(_entry(root, folder, DECODED))
            continue
        inside = _folders(folder)
        found += [_entry(root, one, folder.name) for one in inside if _is_entry(one)]
        # Such as one small file for each backbone.
        if _loose_files(folder):
            found.append(_entry(root, folder, folder.name, alone=True))
    return sorted(found, key=lambda entry: entry.used_at)


def remove(entry: Entry) -> bool:
    """Remove what nobody has open; returns whether that could be done."""
    with _alone_with(_whole(entry.path)) as is_alone:
        if not is_alone:
            return False
        if entry.path.is_dir() and _is_entry(entry.path):
            disk.remove_folder(entry.path)
        else:
            for path in _loose_files(entry.path):
                disk.remove_file(path)
    return True


def clean(root: Path, *, deep: bool) -> list[Path]:
    """Remove what killed processes have left half made; returns what there was.

    Of an entry that is made now nothing is removed. If `deep`, that is also what would be gone on
    with (vectors of a part of the images), lists of what could not be read, and locks of nothing.
    """
    found = []
    kinds = [one for one in _folders(root) if not _is_entry(one)] if deep else []
    for path in [path for folder in (root, *kinds) for path in _in(folder)]:
        if not _is_entry(path):
            continue
        whole = _whole(path)
        if path.suffix in _UNFINISHED:
            with _alone_with(whole) as is_alone:
                if is_alone:
                    shutil.rmtree(path, ignore_errors=True)
                    found.append(path)
        elif deep and path.suffix == ".csv":
            disk.remove_file(path)
            found.append(path)
        elif deep and path.suffix in (".lock", ".used") and not whole.exists():
            with _alone_with(whole):
                pass
    return found


def make_room(root: Path, needed: int) -> None:
    """Remove entries until one of `needed` bytes fits into the cache's limit, and say which.

    The least recently used go first; those in use stay.

    Raises:
        UserError: CONR_RAY_CACHE_LIMIT is no size.
    """
    limit = cache_limit(root)
    if limit is None:
        return
    found = entries(root)
    total = sum(entry.num_bytes for entry in found) + needed
    for entry in found:
        if total <= limit:
            return
        if not entry.in_use and remove(entry):
            total -= entry.num_bytes
            disk.tell(f"{told_of_limit(root)}: removed {told(entry)}")
    if total > limit:
        disk.tell(
            f"{told_of_limit(root)}: it now takes {size_of(total)}, since what is in use or made "
            f"now stays; set {LIMIT} to more"
        )


def cache_limit(root: Path) -> int | None:
    """Bytes that the cache may take, None for any number: $CONR_RAY_CACHE_LIMIT, else half a disk.

    Raises:
        UserError: it is no size.
    """
    text = os.environ.get(LIMIT, _DEFAULT_LIMIT).strip()
    if text.lower() == "none":
        return None
    number = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*(%|[KMGT]?B?)", text, re.IGNORECASE)
    if number is None or (number[2] == "%" and float(number[1]) > 100):
        raise UserError(f"{LIMIT}={short(text)}: no size; give one such as 200GB, 30% or none")
    if number[2] == "%":
        there = next(one for one in (root, *root.absolute().parents) if one.is_dir())
        return int(float(number[1]) / 100 * shutil.disk_usage(there).total)
    unit = number[2].upper().removesuffix("B")
    return int(float(number[1]) * _UNITS[f"{unit}B" if unit else ""])


def told_of_limit(root: Path) -> str:
    """The limit of a cache, for people."""
    limit = cache_limit(root)
    return f"the cache {root} may take {'any size' if limit is None else size_of(limit)}"


def told(entry: Entry) -> str:
    """An entry in a few words: what it is, what of, its size and last use."""
    made_from = f", {entry.made_from}" if entry.made_from else ""
    return (
        f"{entry.kind} {entry.name}{made_from} ({size_of(entry.num_bytes)}, last used "
        f"{ago(entry.used_at)})"
    )


def size_of(num_bytes: int) -> str:
    """A size for people."""
    for unit in ("TB", "GB", "MB"):
        if num_bytes >= _UNITS[unit]:
            return f"{num_bytes / _UNITS[unit]:.1f} {unit}"
    return f"{num_bytes / 1000:.0f} KB"


def ago(at: float) -> str:
    """How long ago a time was, for people."""
    seconds = max(0.0, time.time() - at)
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            return f"{counted(int(seconds // length), unit, f'{unit}s')} ago"
    return "just now"


def _entry(root: Path, folder: Path, kind: str, *, alone: bool = False) -> Entry:
    """The entry of a folder; if `alone`, without the folders in it."""
    files = _loose_files(folder) if alone else folder.rglob("*")
    num_bytes, changed_at = 0, 0.0
    for path in files:
        # It may be removed meanwhile.
        with suppress(OSError):
            status = path.lstat()
            num_bytes += status.st_size if not path.is_dir() else 0
            changed_at = max(changed_at, status.st_mtime)
    whole = _whole(folder)
    meta: Any = None
    with suppress(OSError, ValueError, RecursionError):
        meta = json.loads((folder / "meta.json").read_bytes())
    with suppress(OSError):
        changed_at = _used(whole).stat().st_mtime
    in_use = _is_held(_used(whole)) or _is_held(whole.with_suffix(".lock"))
    facts = meta if isinstance(meta, dict) else {}
    if kind == DECODED and facts.get("encoded"):
        kind = ENCODED
    return Entry(root, folder, kind, num_bytes, changed_at, in_use, facts)


def _whole(path: Path) -> Path:
    """The folder of an entry, of what it is called while it is made, or of a file beside it."""
    return path.with_name(path.name.partition(".")[0])


def _loose_files(folder: Path) -> list[Path]:
    """Files in the folder of a kind that are of no entry in it."""
    files = [path for path in _in(folder) if path.is_file()]
    return [path for path in files if path.suffix not in (".lock", ".used")]


def _used(folder: Path) -> Path:
    return folder.with_suffix(".used")


def _in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _folders(folder: Path) -> list[Path]:
    return [path for path in _in(folder) if path.is_dir()]


def _is_entry(folder: Path) -> bool:
    return _HASH.fullmatch(folder.name.partition(".")[0]) is not None


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


@contextmanager
def _alone_with(folder: Path) -> Iterator[bool]:
    """Whether nobody has an entry open, or makes it; nobody else begins to until the end.

    Then its locks are gone too.
    """
    paths = _used(folder), folder.with_suffix(".lock")
    with ExitStack() as stack:
        for path in paths:
            try:
                file = locked_file(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            stack.callback(os.close, file)
        yield True
        for path in paths:
            path.unlink(missing_ok=True)
