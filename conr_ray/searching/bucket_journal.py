"""An Optuna journal in an object store: one object per piece, since stores cannot append.

study.journal/000000000000.json  entries from the numbered one on, as a list in JSON
study.journal.sums               how many entries there were when last one was added, and their
                                 CRC-32: tells whether the last pieces are lost, or any has changed
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from zlib import crc32

from optuna.storages.journal import BaseJournalBackend

from conr_ray.errors import StorageError, UserError
from conr_ray.storage import disk
from conr_ray.storage.files import Folder

# More pieces than this are merged: each costs a request when a search is resumed.
_MOST_PIECES = 200


class BucketJournal(BaseJournalBackend):
    """The journal in the folder `name` of a directory, with its sums beside it.

    Only the search's driver writes, and waits for a store that is away; of two drivers, the earlier
    one is stopped. A reader sees the journal as it is when opened.

    Raises:
        UserError: entries are damaged or missing.
    """

    def __init__(self, directory: Folder, name: str) -> None:
        self._directory = directory
        self._name = name
        self._entries: list[dict[str, Any]] = []
        self._sum = 0
        while not self._load():
            # Pieces were merged meanwhile.
            pass

    def _load(self) -> bool:
        """Read all entries; False if a piece has vanished since they were listed."""
        self._entries.clear()
        # The sums first: all that they count is there by then.
        count, total = self._read_sums()
        self._pieces = self._directory.file_names(self._name)
        for piece in self._pieces:
            # If merging was interrupted, pieces repeat entries of the first one.
            number, known = int(piece.removesuffix(".json")), len(self._entries)
            if number > known:
                raise self._damaged(f"entries {known} to {number} are missing")
            if (entries := self._read(piece)) is None:
                return False
            self._entries += entries[known - number :]
        if (known := len(self._entries)) < count:
            raise self._damaged(f"entries {known} to {count} are missing")
        if _sum(self._entries[:count]) != total:
            raise self._damaged(f"among the first {count} entries some are not what was written")
        self._sum = _sum(self._entries[count:], total)
        return True

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Entries from number `log_number_from` on."""
        return self._entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries as one object.

        Raises:
            UserError: another process has added to the journal.
        """
        piece = _piece(len(self._entries))
        disk.patiently(lambda: self._add(piece, logs), self._uri)
        self._entries += logs
        self._sum = _sum(logs, self._sum)
        self._pieces.append(piece)
        # What cannot be counted or merged now is so later.
        with suppress(OSError, StorageError):
            self._directory.write_text(self._sums, f"{len(self._entries)} {self._sum:08x}\n")
            if len(self._pieces) > _MOST_PIECES:
                self._write(_piece(0), self._entries)
                while len(self._pieces) > 1:
                    self._directory.delete_file(f"{self._name}/{self._pieces.pop()}")

    @property
    def _uri(self) -> str:
        return f"{self._directory.uri}/{self._name}"

    @property
    def _sums(self) -> str:
        return f"{self._name}.sums"

    def _read_sums(self) -> tuple[int, int]:
        """Number and checksum of the entries that were counted; none by other programs."""
        text = self._directory.read_text(self._sums)
        try:
            count, total = (text or "0 0").split()
            return int(count), int(total, 16)
        except ValueError:
            raise UserError(f"{self._uri}.sums is damaged: delete it") from None

    def _read(self, piece: str) -> list[dict[str, Any]] | None:
        text = self._directory.read_text(f"{self._name}/{piece}")
        try:
            return None if text is None else list(json.loads(text))
        except (ValueError, TypeError) as error:
            raise UserError(f"{self._uri}/{piece} is damaged ({error}): restore it") from None

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"{self._uri}: {what}: restore the folder from a copy; or, to go on with what is "
            f"there, delete {self._sums}"
        )

    def _add(self, piece: str, logs: list[dict[str, Any]]) -> None:
        held = self._directory.read_text(f"{self._name}/{piece}")
        if held is not None and held != json.dumps(logs):
            raise UserError(f"{self._directory.uri}: another process has taken over this search")
        self._write(piece, logs)

    def _write(self, piece: str, logs: list[dict[str, Any]]) -> None:
        self._directory.write_text(f"{self._name}/{piece}", json.dumps(logs))


def _piece(number: int) -> str:
    return f"{number:012d}.json"


def _sum(entries: Iterable[dict[str, Any]], begin: int = 0) -> int:
    """The CRC-32 of entries, one after another, after those of `begin`."""
    for entry in entries:
        begin = crc32(json.dumps(entry).encode(), begin)
    return begin
