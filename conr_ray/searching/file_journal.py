"""An Optuna journal in a file, with checksums beside it that tell what is missing or damaged.

study.journal            a line of JSON for each entry, as Optuna's own backend writes it
study.journal.sums       for each entry the CRC-32 of the journal up to its end, in hexadecimal;
                         written once the entry is synced: what it lists has been acknowledged
study.journal.damaged-1  the journal as it was before a torn last entry was cut off

A changed bit changes all later checksums of the journal, but only one in the list. So the list
tells which of the two is damaged, and every entry up to the last checksum that agrees is sound.
"""

from __future__ import annotations

import fcntl
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import accumulate, takewhile
from itertools import count as numbers
from pathlib import Path
from typing import Any
from zlib import crc32

from optuna.storages.journal import BaseJournalBackend

from conr_ray.errors import StorageError, UserError
from conr_ray.storage import disk

# Eight digits and a line end.
_SUM_BYTES = 9


class FileJournal(BaseJournalBackend):
    """The journal at `path`; a missing file is an empty journal.

    Opening and reading write nothing; a last entry that is torn is passed over. Before something is
    appended it is cut off, and one line says so. Writers exclude one another by a lock that the
    system frees when its holder dies, and wait for storage that is full or away.

    Raises:
        UserError: entries are damaged or missing, and not only the last one.
        StorageError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sums_path = path.with_name(f"{path.name}.sums")
        # Where each sound entry ends, and the checksum there.
        self._ends, self._sums = array("Q"), array("I")
        # A torn entry after them, and whether the list is of just these.
        self._torn, self._list_is_right = b"", True
        # Where an entry begins that could be neither synced nor cut off, and the entry.
        self._left: tuple[int, bytes] | None = None
        self._writes = self._told = False
        try:
            self._load()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from None

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Entries from number `log_number_from` on."""
        if self._writes:
            return disk.patiently(lambda: self._read(log_number_from), str(self._path))
        try:
            return self._read(log_number_from)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error.strerror}") from None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries, synced when it returns.

        Raises:
            UserError: entries are damaged or missing; nothing is added.
        """
        self._writes = True
        lines = [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]
        disk.patiently(lambda: self._append(lines), str(self._path))

    def _read(self, first: int) -> list[dict[str, Any]]:
        self._load()
        begin, end = self._end(first), self._end(len(self._ends))
        if begin == end:
            return []
        return [json.loads(line) for line in _content(self._path, begin, end).split(b"\n")[:-1]]

    def _end(self, count: int) -> int:
        """Where the first `count` entries end."""
        return self._ends[count - 1] if count else 0

    def _load(self) -> None:
        """Take in what has been added since the last time."""
        count, end = len(self._ends), self._end(len(self._ends))
        if count and (size := self._path.stat().st_size) <= end:
            if size < end:
                raise self._damaged(count, bisect_right(self._ends, size))
            return
        # The list first: the journal has had all of it by then.
        listed, rest_of_list = self._read_list(count)
        *lines, rest = _content(self._path, end).split(b"\n")
        lines = [line + b"\n" for line in lines]
        begin = self._sums[-1] if count else 0
        sums = list(accumulate(lines, lambda total, line: crc32(line, total), initial=begin))[1:]
        pairs = enumerate(zip(sums, listed, strict=False), 1)
        agreeing = [number for number, (its, known) in pairs if its == known]
        sound = agreeing[-1] if agreeing else 0
        if sound == len(listed):
            # What another program has added, or was synced but not yet listed.
            sound += sum(1 for _ in takewhile(_is_entry, lines[sound:]))
        num_lost = len(listed) - sound
        if num_lost > 1 or len(lines) - sound + bool(rest) > 1:
            raise self._damaged(count + max(len(listed), len(lines)), count + sound)
        self._ends.extend(end + length for length in accumulate(map(len, lines[:sound])))
        self._sums.extend(sums[:sound])
        self._torn = b"".join(lines[sound:]) + rest
        self._list_is_right = len(agreeing) == len(listed) == sound and not rest_of_list
        if num_lost > 0 and not self._told:
            self._told = True
            disk.tell(f"{self._path}: entry {count + sound + 1}, the last, is damaged: passed over")

    def _read_list(self, first: int) -> tuple[list[int], bytes]:
        """Checksums of entries from number `first` on, and the bytes of half a one after them.

        An unreadable one is like a wrong one.
        """
        text = _content(self._sums_path, first * _SUM_BYTES)
        whole = len(text) - len(text) % _SUM_BYTES
        pieces = (text[at : at + _SUM_BYTES] for at in range(0, whole, _SUM_BYTES))
        return [_as_sum(piece) for piece in pieces], text[whole:]

    def _append(self, lines: Sequence[bytes]) -> None:
        # Where a journal that was there has vanished, no other is begun.
        made = 0 if self._ends else os.O_CREAT
        with disk.opened(self._path, os.O_WRONLY | os.O_APPEND | made) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._cut_what_is_left(file)
            self._load()
            if self._torn or not self._list_is_right:
                self._heal(file)
            count, end = len(self._ends), self._end(len(self._ends))
            text = b"".join(lines)
            try:
                disk.write_all(file, text)
            except OSError:
                # Whole or half, it was never acknowledged, and is written again.
                self._left = end, text
                with suppress(OSError):
                    self._cut_what_is_left(file)
                raise
            for line in lines:
                self._ends.append(end := end + len(line))
                self._sums.append(crc32(line, self._sums[-1] if self._sums else 0))
            # An entry that is written but not listed is listed with the next one.
            self._list_is_right = False
            with suppress(OSError):
                if not count:
                    disk.sync_folder(self._path.parent)
                with disk.opened(self._sums_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as sums:
                    disk.write_all(sums, self._as_list(count), synced=False)
                self._list_is_right = True

    def _cut_what_is_left(self, file: int) -> None:
        if self._left is not None:
            begin, text = self._left
            # Unless another program has added to it since.
            if text.startswith(_content(self._path, begin)):
                disk.truncate(file, begin)
            self._left = None

    def _heal(self, file: int) -> None:
        """Cut a torn entry off, and write the list anew."""
        count, end = len(self._ends), self._end(len(self._ends))
        if self._torn:
            taken = (self._path.with_name(f"{self._path.name}.damaged-{n}") for n in numbers(1))
            copy = next(path for path in taken if not path.exists())
            disk.write_file(copy, _content(self._path, 0))
            disk.truncate(file, end)
            disk.tell(
                f"{self._path}: a torn last entry was cut off, {count} entries are left; the file "
                f"as it was is {copy.name}"
            )
            self._torn = b""
        disk.write_file(self._sums_path, self._as_list(0))
        self._list_is_right = True

    def _as_list(self, first: int) -> bytes:
        return b"".join(b"%08x\n" % total for total in self._sums[first:])

    def _damaged(self, num_entries: int, num_sound: int) -> UserError:
        name = self._path.name
        return UserError(
            f"{self._path}: of {num_entries} entries, all after the first {num_sound} are damaged "
            f"or missing: restore the file from a copy; or, to go on with what the first "
            f"{num_sound} tell, keep only those (head -n {num_sound} {name}) and delete {name}.sums"
        )


def _is_entry(line: bytes) -> bool:
    try:
        return "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _as_sum(text: bytes) -> int:
    """A checksum; -1, which none has, for what is none."""
    try:
        return int(text, 16)
    except ValueError:
        return -1


def _content(path: Path, begin: int, end: int | None = None) -> bytes:
    """The bytes of a file between two positions; none if there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(begin)
            return file.read(-1 if end is None else end - begin)
    except FileNotFoundError:
        return b""
