"""The files below a folder, each once, and what is left out on the way."""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from conr_ray.data.sources.files import FoundFile, Location
from conr_ray.errors import printable

# Folders that systems, storage boxes and programs make on their own. Most hold small copies of
# pictures, or pictures that a person has deleted. Those whose names begin with a dot are hidden.
LEFT_BEHIND = {
    "@eaDir": "thumbnails, by Synology",
    "@tmp": "unfinished files, by Synology",
    "#recycle": "deleted files, by Synology",
    "#snapshot": "older versions, by Synology",
    "@Recycle": "deleted files, by QNAP",
    "@Recently-Snapshot": "older versions, by QNAP",
    "~snapshot": "older versions, by NetApp",
    "__MACOSX": "file attributes, by macOS in zip archives",
    "Network Trash Folder": "deleted files, by macOS",
    "Temporary Items": "unfinished files, by macOS",
    "lost+found": "what a check of the disk has found",
    "$RECYCLE.BIN": "deleted files, by Windows",
    "RECYCLER": "deleted files, by Windows",
    "System Volume Information": "of Windows",
    "__pycache__": "compiled programs, by Python",
    "*.photoslibrary": "originals, copies and previews, by Photos on macOS",
}
HIDDEN = "hidden"
_NO_FILES = "pipes or devices"
_DANGLING = "dangling links"
_SEEN = "further links to the same"
_UNREADABLE = "unreadable folders"
WHY = {
    HIDDEN: "its name begins with a dot",
    _NO_FILES: "sockets, pipes and devices",
    _DANGLING: "their targets are gone",
    _SEEN: "a file, or a folder, is read once, however many names it has",
    _UNREADABLE: "no permission, or a damaged disk",
} | {f"{name}/": why for name, why in LEFT_BEHIND.items()}


@dataclass
class Walk:
    """The files below sub-folders of a folder; each iteration walks anew.

    A file comes once, by device and inode, and a folder too, however many links lead to them or
    around in a circle. What is no link comes before what is one, and hard links of one file count
    as the first of them by name. Hidden files and folders, and those that systems leave behind, are
    left out.

    Attributes:
        location: the folder.
        folders: sub-folders; "" is the folder itself.
        skip: leave out sub-folders that cannot be read, instead of raising OSError.
        left_out: how many of what the last iteration left out; folders end with a slash.
    """

    location: Location
    folders: Sequence[str] = ("",)
    skip: bool = False
    left_out: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[FoundFile]:
        """In no particular order, but the same each time."""
        self.left_out.clear()
        return self._local() if self.location.is_local else self._remote()

    def _local(self) -> Iterator[FoundFile]:
        root = self.location.path
        real, links = deque(self.folders), deque[str]()
        # The root is read only if it is asked for, and never through a link back to it.
        seen = set() if "" in self.folders else {_identity(os.stat(root))}
        linked: list[str] = []
        hard: list[tuple[str, os.stat_result]] = []
        while real or links:
            is_link = not real
            folder = real.popleft() if real else links.popleft()
            place = os.path.join(root, folder)
            if not os.path.isdir(place):
                continue
            if (identity := _identity(os.stat(place))) in seen:
                self.left_out[_SEEN] += is_link
                continue
            seen.add(identity)
            # Which link to a folder counts depends on their order.
            inner, files = self._entries(root, folder, linked, hard)
            for name, is_link in sorted(inner):
                (links if is_link else real).append(name)
            yield from files
        yield from self._several_names(root, seen, linked, hard)

    def _entries(
        self,
        root: str,
        folder: str,
        linked: list[str],
        hard: list[tuple[str, os.stat_result]],
    ) -> tuple[list[tuple[str, bool]], list[FoundFile]]:
        """The folders inside one, with whether they are links, and its files of one name."""
        inner: list[tuple[str, bool]] = []
        files: list[FoundFile] = []
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    try:
                        is_folder, is_file = entry.is_dir(), entry.is_file()
                    # Links that lead to each other.
                    except OSError:
                        is_folder = is_file = False
                    if reason := left_out_as(entry.name, is_folder=is_folder):
                        self.left_out[reason] += 1
                    elif is_folder:
                        inner.append((name, entry.is_symlink()))
                    elif not is_file:
                        self.left_out[_DANGLING if entry.is_symlink() else _NO_FILES] += 1
                    elif entry.is_symlink():
                        linked.append(name)
                    elif (status := entry.stat()).st_nlink > 1:
                        hard.append((name, status))
                    else:
                        files.append(FoundFile(name, status.st_size, status.st_mtime_ns))
        except OSError:
            if not self.skip or not folder:
                raise
            self.left_out[_UNREADABLE] += 1
            return [], []
        return inner, files

    def _several_names(
        self,
        root: str,
        seen: set[tuple[int, int]],
        linked: list[str],
        hard: list[tuple[str, os.stat_result]],
    ) -> Iterator[FoundFile]:
        """Files that have several names, or are reached by links."""
        known: set[tuple[int, int]] = set()
        for name, status in sorted(hard):
            if _identity(status) in known:
                self.left_out[_SEEN] += 1
                continue
            known.add(_identity(status))
            yield FoundFile(name, status.st_size, status.st_mtime_ns)
        for name in sorted(linked):
            try:
                target = os.path.realpath(os.path.join(root, name))
                status = os.stat(target)
                parent = _identity(os.stat(os.path.dirname(target)))
            except OSError:
                self.left_out[_DANGLING] += 1
                continue
            is_read = parent in seen and not left_out_as(os.path.basename(target), is_folder=False)
            if is_read or _identity(status) in known:
                self.left_out[_SEEN] += 1
                continue
            known.add(_identity(status))
            yield FoundFile(name, status.st_size, status.st_mtime_ns)

    def _remote(self) -> Iterator[FoundFile]:
        folders: set[str] = set()
        for folder in dict.fromkeys(self.folders):
            for file in self.location.files_below(folder):
                *parents, last = file.name.split("/")
                reasons = [left_out_as(part, is_folder=True) for part in parents]
                if first := next((reason for reason in reasons if reason), ""):
                    left = "/".join(parents[: reasons.index(first) + 1])
                    self.left_out[first] += left not in folders
                    folders.add(left)
                elif reason := left_out_as(last, is_folder=False):
                    self.left_out[reason] += 1
                else:
                    yield file


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def left_out_as(name: str, *, is_folder: bool) -> str:
    """What a file or folder of this name is counted as; empty if it is read."""
    if name.startswith("."):
        return HIDDEN
    if is_folder:
        if name in LEFT_BEHIND:
            return f"{name}/"
        for pattern in LEFT_BEHIND:
            if "*" in pattern and fnmatchcase(name.lower(), pattern):
                return f"{pattern}/"
    return ""


def as_text(name: str) -> str:
    r"""A path for people and tables: printable, and another one for each path.

    Bytes that are no UTF-8, which have no place in tables, are written as in \xe9, what would not
    show as in \u0085, and a backslash twice.
    """
    return "".join(_escaped(c) for c in name) if _is_odd(name) else name


def from_text(text: str) -> str:
    """The path that `as_text` has written."""
    return _ESCAPE.sub(_unescaped, text) if "\\" in text else text


_ESCAPE = re.compile(r"\\(?:\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def _is_odd(name: str) -> bool:
    return "\\" in name or printable(name) != name


def _escaped(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if printable(character) == character:
        return character
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _unescaped(found: re.Match[str]) -> str:
    text = found.group()
    if text == "\\\\":
        return "\\"
    code = int(text[2:], 16)
    return chr(0xDC00 + code) if text[1] == "x" else chr(code)
