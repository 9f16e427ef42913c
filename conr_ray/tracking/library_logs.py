"""Messages of libraries, kept in a file while a command has the terminal for its own display."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def library_logs(path: Path) -> Iterator[None]:
    """Append what is logged, and Python's warnings, to the file at `path` instead of the terminal.

    Loggers with handlers of their own, as Ray and Optuna have, write to the file alone meanwhile.
    """
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
