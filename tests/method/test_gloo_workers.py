from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.gloo_workers import WorkerFailed, run_workers


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
