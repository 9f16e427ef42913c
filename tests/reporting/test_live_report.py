from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from conr_ray.reporting import live_report
from conr_ray.reporting.live_report import LiveReport
from conr_ray.searching.search_directory import SearchDirectory
from tests.reporting.made_searches import make_search
from tests.reporting.pages import Page
from tests.waiting import HANG_S


@pytest.fixture
def directory(tmp_path: Path) -> SearchDirectory:
    return make_search(tmp_path / "mine", ("complete", "running"))


class Writings:
    """What was written: the arguments of each writing, and the real thing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes_s: float = 0.0) -> None:
        self.running: list[bool] = []
        self._takes_s = takes_s
        self._really = live_report.write_search_report
        monkeypatch.setattr(live_report, "write_search_report", self._write)

    def _write(self, *args: Any, running: bool) -> str:
        time.sleep(self._takes_s)
        place = self._really(*args, running=running)
        self.running.append(running)
        return place

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + HANG_S
        while len(self.running) < count and time.monotonic() < until:
            time.sleep(0.01)
        assert len(self.running) == count


def page(directory: SearchDirectory) -> Page:
    return Page(Path(directory.uri, "report.html").read_text())


def test_a_page_of_a_running_search_says_so_and_loads_itself_again(
    directory: SearchDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    writings = Writings(monkeypatch)
    with LiveReport(directory) as report:
        report.note()
        writings.wait_for(1)
        found = page(directory)
        assert found.all("meta", http_equiv="refresh", content="60")
        assert "running: 1 trial ended, 1 in progress; written" in found.text
        # News soon after wait for the pause to end.
        report.note()
        time.sleep(0.3)
        assert writings.running == [True]
    assert writings.running == [True, False]
    found = page(directory)
    assert not found.all("meta", http_equiv="refresh") and "running" not in found.text


def test_without_news_nothing_is_written_but_at_the_end(
    directory: SearchDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    writings = Writings(monkeypatch)
    with LiveReport(directory, least_pause_s=0.0):
        time.sleep(0.3)
        assert writings.running == []
    assert writings.running == [False]


@pytest.mark.slow
def test_it_takes_a_fiftieth_of_the_time(
    directory: SearchDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    writings = Writings(monkeypatch, takes_s=0.1)
    with LiveReport(directory, least_pause_s=0.0) as report:
        report.note()
        writings.wait_for(1)
        report.note()
        time.sleep(2.0)
        assert writings.running == [True]


def test_it_is_written_after_ctrl_c(
    directory: SearchDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    writings = Writings(monkeypatch)
    with pytest.raises(KeyboardInterrupt), LiveReport(directory):
        raise KeyboardInterrupt
    assert writings.running == [False]


def test_a_failure_is_logged_once_and_stops_nothing(
    directory: SearchDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def fail(*_: Any, running: bool) -> str:
        tries.append(running)
        raise OSError("no space left on device")

    monkeypatch.setattr(live_report, "write_search_report", fail)
    with caplog.at_level(logging.WARNING), LiveReport(directory, least_pause_s=0.0) as report:
        while len(tries) < 3:
            report.note()
            time.sleep(0.01)
    assert len(caplog.records) == 1 and "the search continues" in caplog.text
