"""The report of a search, updated while it runs and written when it has ended."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from conr_ray.reporting.report_file import FILE_NAME, write_search_report
from conr_ray.searching.search_directory import SearchDirectory

logger = logging.getLogger(__name__)

# At most a fiftieth of the time is spent on it.
_TIMES_AS_LONG = 50


class LiveReport:
    """Writes report.html to a search's directory; a context manager around the search.

    While the search runs, a thread writes it after calls of `note`: at most once per
    `least_pause_s`, and per 50 times the duration of the last write. When the context ends it is
    always written. An error is logged once and stops nothing.
    """

    def __init__(self, directory: SearchDirectory, least_pause_s: float = 60.0) -> None:
        self.uri = f"{directory.uri}/{FILE_NAME}"
        self._directory = directory
        self._least_pause_s = least_pause_s
        self._news, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="report", daemon=True)
        self._told = False

    def note(self) -> None:
        """Note that something has changed."""
        self._news.set()

    def __enter__(self) -> LiveReport:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._news.set()
        # Two writers of the same file would corrupt it.
        self._thread.join()
        self._write(running=False)

    def _go_on(self) -> None:
        while True:
            self._news.wait()
            if self._ended.is_set():
                return
            self._news.clear()
            started = time.monotonic()
            self._write(running=True)
            took_s = time.monotonic() - started
            if self._ended.wait(max(self._least_pause_s, _TIMES_AS_LONG * took_s)):
                return

    def _write(self, *, running: bool) -> None:
        try:
            write_search_report(self._directory, self.uri, running=running)
        # A failed report must not stop a search.
        except Exception:
            if not self._told:
                logger.warning("cannot write the report, the search continues", exc_info=True)
            self._told = True
