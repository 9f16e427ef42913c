"""Decoding in other processes: the same pictures as here, whatever becomes of the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conr_ray.config import DataConfig
from conr_ray.data.decoders import Decoded, Decoders, Encoded, Opened, decode, in_order
from conr_ray.data.decoding import Form
from conr_ray.data.sources import encoded, make_source
from tests.waiting import HANG_S

FORM = Form("RGB", None, (3, 6, 5))


@pytest.fixture
def opened(encode: Any, random_images: Callable[..., Any]) -> list[Opened]:
    """Eight pictures, of which the third is no picture and the sixth cannot be read."""

    def away() -> bytes:
        raise OSError("gone")

    files = [encode(pixels) for pixels in random_images(8, 3, 6, 5)]
    files[2] = b"<html>"
    found: list[Opened] = [Encoded(partial(bytes, one)) for one in files]
    found[5] = Encoded(away)
    return found


def decoded(decoders: Decoders, task: list[Opened], form: Form = FORM) -> Decoded:
    """What they make of a task that they read at once."""
    [found] = decoders.run(partial(decode, form=form), task)
    return found


def until(decoders: Decoders, num: int, task: list[Opened]) -> None:
    """Decode until so many other processes are ready."""
    deadline = time.monotonic() + HANG_S
    while decoders.num_processes != num:
        assert time.monotonic() < deadline, decoders.num_processes
        decoded(decoders, task)
        time.sleep(0.01)


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "conr_ray.data.decoders" in " ".join(child.cmdline())
    ]


def test_other_processes_give_what_this_one_gives(opened: list[Opened]) -> None:
    expected = decode(opened, FORM)
    assert [place for place, _ in expected.broken] == [2, 5] and len(expected.images) == 6
    assert [why for _, why in expected.broken] == ["unknown image format", "gone"]
    whole = [one for place, one in enumerate(opened) if place != 5]
    with Decoders(2, alone_s=0) as decoders:
        until(decoders, 2, opened)
        for task in (opened, whole):
            found = decoded(decoders, task)
            np.testing.assert_array_equal(found.images, expected.images)
        assert found.broken == [(2, "unknown image format")] and not found.differs
        assert decoded(decoders, whole, Form("RGB", None, (3, 6, 6))).differs
        none = decoded(decoders, [whole[2]] * 3)
        assert none.images.shape == (0, 3, 6, 5) and len(none.broken) == 3
        assert len(children()) == 2
    assert not children()


def test_what_is_short_starts_none(opened: list[Opened]) -> None:
    with Decoders(2, alone_s=HANG_S) as decoders:
        decoded(decoders, opened)
        assert not children()
    with Decoders(1, alone_s=0) as decoders:
        decoded(decoders, opened)
        assert not children()


def test_processes_that_are_killed_are_not_missed(opened: list[Opened]) -> None:
    expected = decode(opened, FORM)
    with Decoders(2, alone_s=0) as decoders:
        until(decoders, 2, opened[:2])
        for child in children():
            child.send_signal(signal.SIGKILL)
        for _ in range(2):
            found = decoded(decoders, opened[:5])
            np.testing.assert_array_equal(found.images, expected.images[:4])
        # Those that were asked are known to be gone.
        assert decoders.num_processes == 0


def test_without_other_processes_this_one_goes_on(
    opened: list[Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with Decoders(2, alone_s=0) as decoders:
        for _ in range(3):
            assert len(decoded(decoders, opened).images) == 6
    assert decoders.num_processes == 0


def test_files_are_read_in_parts(encode: Any, random_images: Callable[..., Any]) -> None:
    large = random_images(1, 3, 1100, 1000)[0]
    data = encode(large)
    assert len(data) > 3e6
    form = Form("RGB", 4, (3, 4, 4))
    task: list[Opened] = [Encoded(partial(bytes, data))] * 6
    task[4] = Encoded(partial(bytes, b""))
    with Decoders(2, alone_s=0) as decoders:
        until(decoders, 2, [Encoded(partial(bytes, encode(large[:, :6, :5])))])
        parts = decoders.run(partial(decode, form=form), task)
    assert [len(part.images) for part in parts] == [3, 2]
    assert [part.broken for part in parts] == [[], [(1, "it is empty")]]
    images = np.concatenate([part.images for part in parts])
    np.testing.assert_array_equal(images, decode(task, form).images)


def test_results_come_in_order_and_few_are_ahead() -> None:
    asked: list[int] = []

    def tasks() -> Any:
        for number in range(20):
            asked.append(number)
            yield number

    def work(number: int) -> int:
        time.sleep(0.01 if number % 2 else 0)
        return number

    with ThreadPoolExecutor(4) as pool:
        results = in_order(pool, work, tasks(), 3)
        assert next(results) == 0 and len(asked) == 4
        assert list(results) == list(range(1, 20))


def test_a_source_gives_the_same_with_and_without(
    tmp_path: Path,
    encode: Any,
    random_images: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = random_images(3000, 3, 8, 8)
    files: list[bytes | None] = [encode(one) for one in images]
    files[1234] = b"no picture"
    files[2000] = None
    pq.write_table(pa.table({"image": files}), tmp_path / "f.parquet", row_group_size=700)
    config = DataConfig(source="parquet", path=str(tmp_path / "f.parquet"), on_error="skip")
    monkeypatch.setattr(encoded, "Decoders", partial(Decoders, 2, 0.0))
    source, blocks, seen = make_source(config), [], 0
    for block in source.blocks():
        blocks.append(block)
        seen = max(seen, len(children()))
        # Blocks are asked for faster than processes start.
        deadline = time.monotonic() + 2
        while not seen and time.monotonic() < deadline:
            seen = len(children())
    assert seen == 2 and not children()
    np.testing.assert_array_equal(np.concatenate(blocks), np.delete(images, [1234, 2000], 0))
    assert [(one.row, one.place) for one in source.skipped] == [
        (1234, "row 1234"),
        (2000, "row 2000"),
    ]


@pytest.mark.slow
def test_processes_end_when_theirs_is_killed(tmp_path: Path, encode: Any) -> None:
    script = """
import sys, time
from functools import partial
from pathlib import Path
from conr_ray.data.decoders import Decoders, Encoded, decode
from conr_ray.data.decoding import Form
task = [Encoded(Path(sys.argv[1]).read_bytes)] * 2
with Decoders(2, alone_s=0) as decoders:
    while decoders.num_processes < 2:
        decoders.run(partial(decode, form=Form("RGB", None, (3, 6, 5))), task)
    print("ready", flush=True)
    time.sleep(600)
"""
    (tmp_path / "one.png").write_bytes(encode(np.zeros((3, 6, 5), np.uint8)))
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "one.png")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    theirs = psutil.Process(parent.pid).children()
    assert len(theirs) == 2
    parent.kill()
    parent.communicate(timeout=HANG_S)
    gone, alive = psutil.wait_procs(theirs, timeout=HANG_S)
    assert len(gone) == 2 and not alive
