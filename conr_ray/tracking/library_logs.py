"""Send libraries' log messages to a file while a command uses the terminal for its display."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conr_ray.storage.files import Folder


@contextmanager
def library_logs(directory: Folder) -> Iterator[None]:
    """Write log messages and Python's warnings to library.log instead of the terminal.

    Loggers with handlers of their own, such as Ray's and Optuna's, also write to the file only.
    The file is in `directory`; if that is in a bucket, it is written there at the end.
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
