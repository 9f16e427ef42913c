"""An Optuna journal in an object store: one object per piece, since stores cannot append."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from conr_ray.errors import StorageError, UserError
from conr_ray.storage import disk
from conr_ray.storage.files import Folder

# More pieces than this are merged: each costs a request when a search is resumed.
_MOST_PIECES = 200


class BucketJournal(BaseJournalBackend):
    """The journal in the folder `name` of a directory, as objects 000000000000.json, ...

    An object is named after the number of its first entry. Only the search's driver writes, and
    waits for a store that is away; of two drivers, the earlier one is stopped. A reader sees the
    journal as it is when opened.

    Raises:
        UserError: entries are damaged or missing.
    """

    def __init__(self, directory: Folder, name: str) -> None:
        self._directory = directory
        self._name = name
        self._entries: list[dict[str, Any]] = []
        self._pieces = directory.file_names(name)
        for piece in self._pieces:
            # If merging was interrupted, pieces repeat entries of the first one.
            number, known = int(piece.removesuffix(".json")), len(self._entries)
            if number > known:
                raise UserError(f"{directory.uri}/{name}: entries {known} to {number} are missing")
            self._entries += self._read(piece)[known - number :]

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Entries from number `log_number_from` on."""
        return self._entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries as one object.

        Raises:
            UserError: another process has added to the journal.
        """
        piece = _piece(len(self._entries))
        disk.patiently(lambda: self._add(piece, logs), f"{self._directory.uri}/{self._name}")
        self._entries += logs
        self._pieces.append(piece)
        if len(self._pieces) > _MOST_PIECES:
            # What cannot be merged now is merged later.
            with suppress(OSError, StorageError):
                self._write(_piece(0), self._entries)
                while len(self._pieces) > 1:
                    self._directory.delete_file(f"{self._name}/{self._pieces.pop()}")

    def _read(self, piece: str) -> list[dict[str, Any]]:
        try:
            return list(json.loads(self._directory.read_text(f"{self._name}/{piece}") or "[]"))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self._directory.uri}/{self._name}/{piece} is damaged ({error}): restore it from "
                "a copy"
            ) from None

    def _add(self, piece: str, logs: list[dict[str, Any]]) -> None:
        held = self._directory.read_text(f"{self._name}/{piece}")
        if held is not None and held != json.dumps(logs):
            raise UserError(f"{self._directory.uri}: another process has taken over this search")
        self._write(piece, logs)

    def _write(self, piece: str, logs: list[dict[str, Any]]) -> None:
        self._directory.write_text(f"{self._name}/{piece}", json.dumps(logs))


def _piece(number: int) -> str:
    return f"{number:012d}.json"
