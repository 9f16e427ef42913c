"""Send libraries' log messages to a file while a command uses the terminal for its display."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conr_ray.errors import StorageError
from conr_ray.remedies import described
from conr_ray.storage import disk
from conr_ray.storage.files import Folder

_FILE = "library.log"


@contextmanager
def library_logs(directory: Folder) -> Iterator[None]:
    """Write log messages and Python's warnings to library.log instead of the terminal.

    Loggers with handlers of their own, such as Ray's and Optuna's, also write to the file only.
    The file is in `directory`; if that is in a bucket, it is written there at the end. Messages
    that cannot be written are lost, which one line tells.
    """
    path = Path(directory.uri) / _FILE if directory.is_local else None
    handler = _Lines(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    named = [logging.getLogger(name) for name in list(root.manager.loggerDict)]
    before = [(one, one.handlers, one.propagate) for one in [root, *named] if one.handlers]
    for one, _, _ in before:
        one.handlers, one.propagate = [], True
    root.handlers = [handler]
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers = []
        for one, handlers, propagate in before:
            one.handlers, one.propagate = handlers, propagate
        handler.close()
        if path is None and (text := handler.held.getvalue()):
            try:
                directory.write_text(_FILE, text)
            except StorageError as error:
                handler.tell_once(str(error))


class _Lines(logging.Handler):
    """Appends messages to a file, or holds them if there is none."""

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.held = io.StringIO()
        self._path = path
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
            if self._path is None:
                self.held.write(line)
            else:
                # Opened for each: a folder that is full or away now may be back later.
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                with disk.opened(self._path, flags) as file:
                    os.write(file, line.encode(errors="backslashreplace"))
        except OSError as error:
            # Errors in writing do not name the file.
            self.tell_once(described(OSError(error.errno, error.strerror, str(self._path))))
        except Exception:
            self.handleError(record)

    def tell_once(self, reason: str) -> None:
        """Say that messages are lost, unless that is said already."""
        if not self._told:
            self._told = True
            disk.tell(f"log messages of libraries are lost: {reason}")
