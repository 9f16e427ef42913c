"""Messages of libraries, kept in a file while a command has the terminal for its own display."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conr_ray.storage.files import Folder


@contextmanager
def library_logs(directory: Folder) -> Iterator[None]:
    """Keep what is logged, and Python's warnings, in library.log instead of on the terminal.

    Loggers with handlers of their own, as Ray and Optuna have, write to the file alone meanwhile.
    It grows in `directory`, or where this is in a bucket, on this machine until all is done.
    """
    scratch = tempfile.TemporaryDirectory(prefix="conr_ray_log_")
    path = Path(directory.uri if directory.is_local else scratch.name) / "library.log"
    handler = logging.FileHandler(path, delay=True)
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
        if not directory.is_local and path.exists():
            directory.write_text("library.log", path.read_text())
        scratch.cleanup()
