"""Storage that is full or away is waited for until it is back, or until Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from conr_ray.storage import disk


@pytest.fixture
def caught() -> Iterator[list[int]]:
    """Signals that a library catches, as Ray Tune does, to stop when its next step ends."""
    signals: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_wait_at_once_whatever_a_library_does_at_it(
    caught: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise OSError(28, "No space left on device")

    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        disk.patiently(work, "/study")
    timer.join()
    told = "/study: No space left on device: waiting for the storage, or for Ctrl-C\n"
    assert capsys.readouterr().err == told
    # After it, the library catches it again.
    assert caught == []
    os.kill(os.getpid(), signal.SIGINT)
    assert caught == [signal.SIGINT]


def test_what_comes_back_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([OSError("gone"), OSError("gone"), "there"])

    def work() -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert disk.patiently(work, "/study") == "there"
    assert capsys.readouterr().err.splitlines()[1:] == ["/study: the storage is back: going on"]
