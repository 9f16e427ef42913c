from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.gloo_workers import WorkerFailed, run_workers
from tests.waiting import HANG_S


def _sum_of_ranks(offset: int) -> tuple[int, int, int, float]:
    total = torch.tensor([float(dist.get_rank() + offset)])
    dist.all_reduce(total)
    return dist.get_rank(), os.getpid(), torch.get_num_threads(), float(total)


def _fail_on_second(how: str) -> None:
    if dist.get_rank() == 1:
        if how == "raise":
            raise KeyError("the cause")
        os._exit(7)
    dist.barrier()


def _sleep() -> None:
    time.sleep(60)


def _leave_a_mess() -> int:
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    os.chdir("/")
    os.environ["CONR_RAY_MESS"] = "1"
    return os.getpid()


def _look_around() -> tuple[list[float], str, str | None, str | None, list[Any], int]:
    numbers = torch.rand(4).tolist()
    settings = [torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()]
    here, told, left = os.getcwd(), os.environ.get("CONR_RAY_TOLD"), os.environ.get("CONR_RAY_MESS")
    return numbers, here, told, left, settings, os.getpid()


def test_results_come_by_rank_from_processes_of_one_thread_that_can_talk() -> None:
    results = run_workers(_sum_of_ranks, 3, 10)
    assert [rank for rank, *_ in results] == [0, 1, 2]
    assert len({pid for _, pid, *_ in results} | {os.getpid()}) == 4
    assert all(threads == 1 and total == 33 for *_, threads, total in results)


@pytest.mark.parametrize(("how", "told"), [("raise", "KeyError: 'the cause'"), ("die", "code 7")])
def test_failure_of_one_worker_is_raised_while_the_others_hang(how: str, told: str) -> None:
    with pytest.raises(WorkerFailed, match=f"(?s)worker 1 of 2.*{told}"):
        run_workers(_fail_on_second, 2, how)


def test_workers_that_do_not_answer_in_time_are_given_up() -> None:
    with pytest.raises(TimeoutError, match=r"\[0\]"):
        run_workers(_sleep, 1, time_limit_s=0.5)


def test_a_call_begins_alike_whatever_was_called_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONR_RAY_TOLD", "by its caller")
    monkeypatch.chdir(tmp_path)
    before = run_workers(_look_around, 2)
    mess = run_workers(_leave_a_mess, 2)
    after = run_workers(_look_around, 2)
    assert after == before
    alike = [Path(here).resolve() for _, here, *_ in after]
    assert alike == [tmp_path.resolve()] * 2
    for *_, told, left, settings, _ in after:
        assert (told, left) == ("by its caller", None)
        assert settings == [1, torch.float32, True]
    # It is the same processes that did so.
    assert mess == [pid for *_, pid in after]


def _wait_for_end(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(HANG_S)


@pytest.mark.parametrize("how", ["raise", "die"])
def test_workers_of_a_call_that_failed_are_not_used_again(how: str) -> None:
    pids = [pid for *_, pid in run_workers(_look_around, 2)]
    with pytest.raises(WorkerFailed):
        run_workers(_fail_on_second, 2, how)
    for pid in pids:
        _wait_for_end(pid)
    assert [total for *_, total in run_workers(_sum_of_ranks, 3, 10)] == [33.0] * 3


def test_a_worker_that_died_between_calls_is_replaced() -> None:
    pids = [pid for *_, pid in run_workers(_look_around, 2)]
    os.kill(pids[0], signal.SIGKILL)
    _wait_for_end(pids[0])
    assert pids[0] not in [pid for *_, pid in run_workers(_look_around, 2)]
