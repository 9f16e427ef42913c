"""Zip and tar archives as folders: their members are read at any place, from several threads."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import threading
import weakref
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

from pyarrow import fs

from conr_ray.data.sources.fetching import opened_here, temporary
from conr_ray.data.sources.files import FoundFile, Location, whole
from conr_ray.errors import UserError, one_line

_TAR = "tar"
_PACKED: dict[str, Callable[[Any], Any]] = {
    "tar.gz": gzip.open,
    "tgz": gzip.open,
    "tar.bz2": bz2.open,
    "tbz2": bz2.open,
    "tar.xz": lzma.open,
    "txz": lzma.open,
}
ENDINGS = frozenset({"zip", _TAR, *_PACKED})
LINKS = "links in archives"
OUTSIDE = "paths that lead out of archives"
CUT_OFF = "archives that are cut off"
WHY = {
    LINKS: "a file is read once, however many names it has",
    OUTSIDE: "an archive holds what is in it",
    CUT_OFF: "what is before the damage is read",
}
# Archives that stay open; those from elsewhere, or packed, are copies in a temporary folder.
_MOST_OPEN = 16
_Key = tuple[str, str, FoundFile]
_UTF_8 = 0x800
_MS_DOS = 0


@dataclass(frozen=True)
class ArchiveLocation(Location):
    """The folder that is in an archive.

    Attributes:
        outside: the archive itself.
        version: its size and time.
    """

    outside: Location
    version: FoundFile

    @property
    def is_local(self) -> bool:
        """Its members are no files."""
        return False

    @property
    def uri(self) -> str:
        """That of the archive."""
        return self.outside.uri

    @property
    def key(self) -> tuple[str, str, FoundFile]:
        """Tells it from other archives, and from those that were there before."""
        return self.text, self.path, self.version

    def kind(self) -> fs.FileType:
        """A folder."""
        return fs.FileType.Directory

    def files_below(self, folder: str = "") -> list[FoundFile]:
        """The members, sorted by path."""
        begin = f"{folder}/" if folder else ""
        return [file for file in _opened(self).files if file.name.startswith(begin)]

    @property
    def left_out(self) -> Counter[str]:
        """Members that are no files of their own."""
        return _opened(self).left_out

    def read(self, name: str, size: int = 0) -> bytes:
        """The content of a member."""
        return whole(_opened(self).read(name), size)

    def head(self, name: str, size: int) -> bytes:
        """The first bytes of a member."""
        return self.read(name)[:size]


class _Tar:
    """An archive whose members lie in it as they are."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._members = file, dict[str, tarfile.TarInfo]()
        self.left_out: Counter[str] = Counter()
        with tarfile.open(fileobj=file, mode="r:", errorlevel=1) as members:
            try:
                for member in members:
                    self._take(member)
                # After the last one Python looks no further, whatever is there.
                rest = os.pread(file.fileno(), tarfile.BLOCKSIZE, members.offset)
                is_whole = not rest or (len(rest) == tarfile.BLOCKSIZE and not any(rest))
            except (tarfile.TarError, EOFError):
                is_whole = False
        self.left_out[CUT_OFF] += not is_whole
        if not self._members and not is_whole:
            raise tarfile.ReadError("it is cut off before its first file")
        self.files = [FoundFile(name, m.size, 0) for name, m in sorted(self._members.items())]

    def _take(self, member: tarfile.TarInfo) -> None:
        if member.issym() or member.islnk():
            self.left_out[LINKS] += 1
        elif member.isreg() and not member.issparse():
            if (name := _inside(member.name)) is None:
                self.left_out[OUTSIDE] += 1
            else:
                # Of those with one name the last counts, as when it is unpacked.
                self._members[name] = member

    def read(self, name: str) -> bytes:
        member = self._members[name]
        return os.pread(self._file.fileno(), member.size, member.offset_data)


class _Zip:
    """An archive whose members are packed one by one."""

    def __init__(self, file: BinaryIO) -> None:
        self._zip, self._members = zipfile.ZipFile(file), dict[str, zipfile.ZipInfo]()
        self.left_out: Counter[str] = Counter()
        for member in self._zip.infolist():
            if member.is_dir():
                continue
            if (member.external_attr >> 16) & 0o170000 == 0o120000:
                self.left_out[LINKS] += 1
            elif (name := _inside(_name_of(member))) is None:
                self.left_out[OUTSIDE] += 1
            else:
                self._members[name] = member
        self.files = [FoundFile(name, m.file_size, 0) for name, m in sorted(self._members.items())]

    def read(self, name: str) -> bytes:
        return self._zip.read(self._members[name])


def _name_of(member: zipfile.ZipInfo) -> str:
    """The name as most programs would unpack it."""
    name = member.filename
    if not member.flag_bits & _UTF_8:
        # Programs of Unix write bytes, which Python takes for those of MS-DOS.
        raw = name.encode("cp437")
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = raw.decode(errors="surrogateescape") if member.create_system else name
    return name.replace("\\", "/") if member.create_system == _MS_DOS else name


def _inside(name: str) -> str | None:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts or not parts else "/".join(parts)


def _ending(path: str) -> str:
    name = path.partition("?")[0].lower().rpartition("/")[2]
    double = ".".join(name.split(".")[-2:])
    return double if double in ENDINGS else name.rpartition(".")[2]


class _Archives:
    """Opens archives once, however many threads ask; the least recently read ones are closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[_Key, tuple[threading.Lock, list[_Tar | _Zip]]] = OrderedDict()

    def __call__(self, location: ArchiveLocation) -> _Tar | _Zip:
        with self._lock:
            lock, found = self._open.setdefault(location.key, (threading.Lock(), []))
            self._open.move_to_end(location.key)
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        with lock:
            if not found:
                found.append(_read(location))
            return found[0]

    def close(self, keys: Iterable[_Key]) -> None:
        """Close some archives, which are opened again when they are asked for."""
        with self._lock:
            for key in keys:
                self._open.pop(key, None)


_opened = _Archives()


def close_with(owner: object, archives: Iterable[ArchiveLocation]) -> None:
    """Close archives, and remove their copies, when `owner` is gone."""
    weakref.finalize(owner, _opened.close, [archive.key for archive in archives])


def _read(location: ArchiveLocation) -> _Tar | _Zip:
    file = opened_here(location.outside)
    begin = os.pread(file.fileno(), 4, 0)
    if begin[:2] == b"PK":
        return _Zip(file)
    if (unpack := _PACKED.get(_ending(location.path))) is not None:
        unpacked = temporary()
        with file, unpack(file) as content:
            shutil.copyfileobj(content, unpacked, 2**20)
        unpacked.seek(0)
        file = unpacked
    return _Tar(file)


def archive_at(location: Location, version: FoundFile) -> ArchiveLocation:
    """The folder in an archive.

    Raises:
        UserError: it is no archive, or damaged.
    """
    found = ArchiveLocation(location.text, location.filesystem, location.path, location, version)
    try:
        _opened(found)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(
            f"data.path={location.text}: there is no {location.path}; name a zip or tar archive"
        ) from None
    # Of a damaged archive Python raises errors of many kinds.
    except Exception as error:
        raise UserError(
            f"data.path={location.text}: {location.path} cannot be read as an archive "
            f"({one_line(error)}); repair or replace it"
        ) from None
    return found
