"""The wish to stop training after the step that it is in, and the signals that tell it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """The wish of whoever runs this process; there is one, as signals are for a whole process.

    Attributes:
        asked: whether training is to stop.
        heeded: whether it would: only then is there a step to wait for, and something to keep.
        told_by: the signal of a process that is stopped.
    """

    asked = False
    heeded = False
    told_by = signal.SIGINT

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """Inside, whoever asks is heard."""
        self.heeded = True
        try:
            yield
        finally:
            self.heeded = False


stop_request = StopRequest()


@contextmanager
def signals_handled() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM let training end after its step, and whatever else at once.

    Entered again after Ray has started, which takes SIGTERM for itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        stop_request.asked = False
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ask training to stop; where none heeds it, or for the second time, end at once."""
    if not stop_request.heeded or stop_request.asked:
        raise KeyboardInterrupt
    stop_request.asked = True
    # Whatever the signal came into may be in the middle of printing.
    os.write(2, b"stopping after this step; once more stops at once\n")


def _terminate(number: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does at the moment; Ray Tune has a handler of its own."""
    stop_request.told_by = signal.SIGTERM
    handler = signal.getsignal(signal.SIGINT)
    # Where a shell has started the command in the background, Ctrl-C is ignored.
    (handler if callable(handler) else _interrupt)(signal.SIGINT, frame)
