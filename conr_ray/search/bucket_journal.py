"""An Optuna journal in an object store: one object per piece, since stores cannot append."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from conr_ray.errors import UserError
from conr_ray.storage.files import Folder

# More pieces than this are merged: each costs a request when a search is resumed.
_MOST_PIECES = 200


class BucketJournal(BaseJournalBackend):
    """The journal in the folder `name` of a directory, as objects 000000000000.json, ...

    An object is named after the number of its first entry. Only the search's driver writes; of two
    drivers, the earlier one is stopped. A reader sees the journal as it is when opened.
    """

    def __init__(self, directory: Folder, name: str) -> None:
        self._directory = directory
        self._name = name
        self._entries: list[dict[str, Any]] = []
        self._pieces = directory.file_names(name)
        for piece in self._pieces:
            text = directory.read_text(f"{name}/{piece}")
            # If merging was interrupted, pieces repeat entries of the first one.
            known = len(self._entries) - int(piece.removesuffix(".json"))
            self._entries += json.loads(text or "[]")[known:]

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Entries from number `log_number_from` on."""
        return self._entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries as one object.

        Raises:
            UserError: another process has added to the journal.
        """
        piece = _piece(len(self._entries))
        if self._directory.read_text(f"{self._name}/{piece}") is not None:
            raise UserError(f"{self._directory.uri}: another process has taken over this search")
        self._entries += logs
        self._write(piece, logs)
        self._pieces.append(piece)
        if len(self._pieces) > _MOST_PIECES:
            self._write(_piece(0), self._entries)
            for old in self._pieces[1:]:
                self._directory.delete_file(f"{self._name}/{old}")
            self._pieces = self._pieces[:1]

    def _write(self, piece: str, logs: list[dict[str, Any]]) -> None:
        self._directory.write_text(f"{self._name}/{piece}", json.dumps(logs))


def _piece(number: int) -> str:
    return f"{number:012d}.json"
