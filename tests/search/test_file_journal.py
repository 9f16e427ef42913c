"""The journal of a study, cut and damaged at every byte: nothing is lost without a word."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from conr_ray.errors import UserError
from conr_ray.searching.file_journal import FileJournal
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.study_storage import journal_file
from conr_ray.storage import disk
from conr_ray.storage.files import Folder
from tests.search.test_space import K1, space_of
from tests.waiting import HANG_S

JOURNAL, SUMS = "study.journal", "study.journal.sums"


class SystemCalls:
    """`os`, for others to change."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class Unsynced(SystemCalls):
    """Quick: what is on the disk after a loss of power is not of interest."""

    def fsync(self, file: int) -> None:
        pass


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "os", Unsynced())


def load(folder: Path) -> optuna.Study:
    return optuna.load_study(storage=journal_file(folder / JOURNAL), study_name="search")


def objective(trial: optuna.Trial) -> float:
    value = trial.suggest_float("x", -1, 1)
    trial.report(value, 1)
    return value**2


def written(folder: Path, num_trials: int = 3) -> list[bytes]:
    """A journal of some trials; returns its lines."""
    storage = journal_file(folder / JOURNAL)
    sampler = optuna.samplers.RandomSampler(0)
    study = optuna.create_study(storage=storage, study_name="search", sampler=sampler)
    study.optimize(objective, num_trials)
    return (folder / JOURNAL).read_bytes().splitlines(keepends=True)


def resumed_twice(folder: Path) -> list[dict[str, Any]]:
    """Entries of the journal after two attempts to go on with it, without theirs."""
    for attempt in ("first", "second"):
        journal = FileJournal(folder / JOURNAL)
        journal.append_logs([{"op_code": 2, "attempt": attempt}])
    entries = list(FileJournal(folder / JOURNAL).read_logs(0))
    assert [entry.get("attempt") for entry in entries[-2:]] == ["first", "second"]
    return entries[:-2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, written(folder)


@pytest.fixture
def copied(whole: tuple[Path, list[bytes]], tmp_path: Path) -> Iterator[Path]:
    for file in whole[0].iterdir():
        shutil.copy(file, tmp_path)
    yield tmp_path


def replace(folder: Path, journal: bytes, sums: bytes | None) -> None:
    """The folder, with these contents and nothing else."""
    for file in folder.iterdir():
        file.unlink()
    (folder / JOURNAL).write_bytes(journal)
    if sums is not None:
        (folder / SUMS).write_bytes(sums)


def with_a_changed_bit(data: bytes) -> Iterator[tuple[int, bytes]]:
    """For each byte its place, and the data with one bit of it changed."""
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        yield place, bytes(changed)


def check(
    folder: Path, whole: list[bytes], capsys: pytest.CaptureFixture[str], *, listed: bool = True
) -> str:
    """Resume twice: all entries are there, or a line tells what is not; returns what was told."""
    before = (folder / JOURNAL).read_bytes()
    try:
        entries = resumed_twice(folder)
    except UserError as error:
        assert "\n" not in str(error) and "restore the file from a copy" in str(error)
        # Nothing was added to a broken file.
        assert (folder / JOURNAL).read_bytes() == before
        return "refused"
    expected = [json.loads(line) for line in whole]
    told = capsys.readouterr().err
    if entries == expected:
        return "whole"
    assert entries == expected[: len(entries)]
    assert len(entries) == len(expected) - 1 or not listed
    if listed:
        assert f"entry {len(expected)}, the last, is damaged: passed over" in told
    if before != b"".join(whole[: len(entries)]):
        assert "a torn last entry was cut off" in told
        assert (folder / "study.journal.damaged-1").read_bytes() == before
    return "healed"


@pytest.mark.usefixtures("unsynced")
def test_cut_at_every_byte_it_is_read_or_refused_in_a_line(
    whole: tuple[Path, list[bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, sums = whole[1], (whole[0] / SUMS).read_bytes()
    content = b"".join(lines)
    last_begins = len(content) - len(lines[-1])
    for size in range(len(content)):
        replace(tmp_path, content[:size], sums)
        outcome = check(tmp_path, lines, capsys)
        assert outcome == ("healed" if size >= last_begins else "refused"), size


@pytest.mark.usefixtures("unsynced")
def test_changed_at_any_byte_it_is_read_or_refused_in_a_line(
    whole: tuple[Path, list[bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, sums = whole[1], (whole[0] / SUMS).read_bytes()
    for place, changed in with_a_changed_bit(b"".join(lines)):
        replace(tmp_path, changed, sums)
        assert check(tmp_path, lines, capsys) != "whole", place


@pytest.mark.usefixtures("unsynced")
def test_a_damaged_list_of_checksums_costs_nothing_before_the_last_entry(
    whole: tuple[Path, list[bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, sums = whole[1], (whole[0] / SUMS).read_bytes()
    content = b"".join(lines)
    for damaged in (*(sums[:size] for size in range(len(sums))), sums + b"6"):
        replace(tmp_path, content, damaged)
        assert check(tmp_path, lines, capsys) == "whole", len(damaged)
    for place, changed in with_a_changed_bit(sums):
        replace(tmp_path, content, changed)
        in_last = place >= len(sums) - 9
        assert check(tmp_path, lines, capsys) == "whole" or in_last, place
    # It was written anew: a later loss is told again.
    (tmp_path / JOURNAL).write_bytes(b"".join(lines[:4]))
    with pytest.raises(UserError, match=r"of \d+ entries, all after the first 4 are damaged or"):
        FileJournal(tmp_path / JOURNAL)


@pytest.mark.usefixtures("unsynced")
def test_a_journal_of_another_program_is_read_and_healed_without_a_list(
    whole: tuple[Path, list[bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = whole[1]
    content = b"".join(lines)
    for size in range(len(content)):
        replace(tmp_path, content[:size], None)
        assert check(tmp_path, lines, capsys, listed=False) == "healed"


def test_optuna_itself_reads_and_goes_on_with_it(copied: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(copied / JOURNAL)))
    study = optuna.load_study(storage=storage, study_name="search")
    ours = load(copied)
    assert [t.params for t in study.trials] == [t.params for t in ours.trials]
    study.set_user_attr("note", "from a dashboard")
    ours.set_user_attr("after", "it")
    assert set(load(copied).user_attrs) == {"note", "after"}
    assert len((copied / SUMS).read_bytes()) == 9 * len((copied / JOURNAL).read_text().splitlines())


def test_a_way_on_that_an_error_names_leads_on(copied: Path) -> None:
    lines = (copied / JOURNAL).read_bytes().splitlines(keepends=True)
    lines[9] = lines[9].replace(b":", b";", 1)
    (copied / JOURNAL).write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"head -n 9 study\.journal\) and delete study\.journal\.s"):
        load(copied)
    (copied / JOURNAL).write_bytes(b"".join(lines[:9]))
    (copied / SUMS).unlink()
    assert len(load(copied).trials) == 2


def test_an_emptied_study_is_told_by_the_folders_of_its_trials(tmp_path: Path) -> None:
    space, directory = space_of(tmp_path, {K1: {"int": [5, 20]}}), tmp_path / "search"
    search = SearchDirectory(Folder(directory))
    search.claim(space, resume=False)
    search.open_study(space).ask()
    (directory / "trials" / "0000-a").mkdir(parents=True)
    (directory / JOURNAL).write_bytes(b"")
    (directory / SUMS).unlink()
    with pytest.raises(UserError, match=r"the study is empty, but trials/ holds 1: restore"):
        search.open_study(space)
    assert (directory / JOURNAL).read_bytes() == b""


class FullDisk(SystemCalls):
    """A disk that takes some bytes of the next write, and then none until freed."""

    def __init__(self) -> None:
        self.full = threading.Event()

    def write(self, file: int, data: memoryview) -> int:
        if not self.full.is_set():
            return os.write(file, data)
        if len(data) > 7:
            return os.write(file, data[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_waited_for(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, full = load(copied), FullDisk()
    monkeypatch.setattr(disk, "os", full)
    full.full.set()
    writer = threading.Thread(target=study.set_user_attr, args=("entry", "kept"))
    writer.start()
    time.sleep(0.8)
    assert writer.is_alive()
    # Meanwhile others read what is there.
    assert len(load(copied).trials) == 3
    full.full.clear()
    writer.join(HANG_S)
    assert load(copied).user_attrs == {"entry": "kept"} == study.user_attrs
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"{copied / JOURNAL}: No space left on device: waiting for the storage, or for Ctrl-C",
        f"{copied / JOURNAL}: the storage is back: going on",
    ]
    assert not list(copied.glob("*.damaged*"))


def test_a_folder_that_is_away_is_waited_for_and_not_made_anew(copied: Path) -> None:
    folder = copied / "mounted"
    folder.mkdir()
    for name in (JOURNAL, SUMS):
        shutil.move(copied / name, folder)
    study = load(folder)
    folder.rename(copied / "away")
    writer = threading.Thread(target=study.set_user_attr, args=("entry", "kept"))
    writer.start()
    time.sleep(0.8)
    assert writer.is_alive() and not folder.exists()
    (copied / "away").rename(folder)
    writer.join(HANG_S)
    assert load(folder).user_attrs == {"entry": "kept"}


# Adds an entry again and again.
WRITER = """
import sys
from pathlib import Path
from conr_ray.searching.file_journal import FileJournal
journal = FileJournal(Path(sys.argv[1]))
print("begun", flush=True)
for number in range(10**9):
    journal.append_logs([{"op_code": 2, "number": number}])
    print(number, flush=True)
"""


def test_a_killed_writer_holds_up_nobody_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    for delay_s in (0.0, 0.003, 0.03):
        path = tmp_path / f"{delay_s}.journal"
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None and writer.stdout.readline() == "begun\n"
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
        acknowledged = len(writer.communicate(timeout=HANG_S)[0].splitlines())
        started = time.monotonic()
        journal = FileJournal(path)
        journal.append_logs([{"op_code": 2, "number": "last"}])
        assert time.monotonic() - started < 5
        numbers = [entry["number"] for entry in journal.read_logs(0)]
        assert numbers[:-1] == list(range(len(numbers) - 1)) and numbers[-1] == "last"
        assert len(numbers) - 1 >= acknowledged
