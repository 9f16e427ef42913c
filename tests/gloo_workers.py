"""Runs a function on several real worker processes that are joined by gloo.

    def total(offset: int) -> float:  # importable; arguments and results are pickled
        local = torch.tensor([float(dist.get_rank() + offset)])
        dist.all_reduce(local)
        return float(local)

    assert run_workers(total, 3, 10) == [33, 33, 33]    # function, number of workers, its arguments

Workers are forked from a server that has imported what is slow to import. They stay for later
calls, because a process that has trained once begins the next time at once. Each call has a process
group of its own, and begins with its caller's environment and working directory, one thread, and
the random numbers, default type and gradient mode of a new process. Modules and what they keep are
not loaded anew: a function that changes them puts them back (`pytest.MonkeyPatch.context()`).
Workers of a call that failed are killed; others take their place.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# The server imports these once and forks all workers from there.
_PRELOADED = ["torch", "torchvision", "pytest", "conr_ray.engine.loop", "tests.warm_kernels"]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_PRELOADED)


class WorkerFailed(Exception):
    """A worker raised; the message holds its traceback."""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@dataclass
class _Call:
    """What a worker is asked to do."""

    rank: int
    num_workers: int
    folder: str
    working_directory: str
    environment: dict[str, str]
    payload: bytes


# Those of this process that wait for a call.
_idle: list[_Worker] = []


def start_server() -> None:
    """Begin with the slow imports now instead of in the first `run_workers`; does not wait."""
    forkserver.ensure_running()


def run_workers(
    function: Callable[..., Any], num_workers: int, *args: Any, time_limit_s: float = 120
) -> list[Any]:
    """`function(*args)` on every worker of a gloo process group: the results by rank.

    The function is one that can be imported; arguments and results are pickled. Each worker has
    one thread. Soon after one raises or dies the others are killed.

    Raises:
        WorkerFailed: exceptions of workers with their tracebacks, or exit codes.
        TimeoutError: not all have answered within the time limit.
    """
    payload = pickle.dumps((function, args))
    deadline = time.monotonic() + time_limit_s
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as on_failure:
        workers = []
        for rank in range(num_workers):
            call = _Call(rank, num_workers, folder, os.getcwd(), dict(os.environ), payload)
            workers.append(_send(call))
            on_failure.callback(workers[rank].kill)
        results = _collect(workers, deadline)
        on_failure.pop_all()
        _idle[:0] = workers
        return results


def _send(call: _Call) -> _Worker:
    """A worker that has got the call."""
    while True:
        worker = _take()
        try:
            worker.pipe.send(call)
            return worker
        except (BrokenPipeError, ConnectionResetError):
            # It has just died, which its process does not show yet.
            worker.kill()


def _take() -> _Worker:
    """A worker that lives and has nothing to do."""
    while _idle:
        # The first ones have been used before, and know what is loaded at a first use.
        worker = _idle.pop(0)
        if worker.process.is_alive():
            return worker
        worker.kill()
    own, other = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_work, args=(other,), daemon=True)
    process.start()
    # The worker then holds the only other end: its death, or ours, ends the pipe.
    other.close()
    return _Worker(process, own)


def _collect(workers: list[_Worker], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    waiting = {worker.pipe: rank for rank, worker in enumerate(workers)}
    while waiting:
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for end in ready:
            assert isinstance(end, Connection)
            rank = waiting.pop(end)
            try:
                failure, results[rank] = pickle.loads(end.recv_bytes())
            except (EOFError, ConnectionResetError):
                workers[rank].process.join()
                failure = f"exit code {workers[rank].process.exitcode}"
            if failure is not None:
                failures[rank] = failure
                # The others may wait for this one forever, or tell more within a moment.
                deadline = min(deadline, time.monotonic() + 0.5)
    if failures:
        parts = [f"worker {rank} of {len(workers)}: {text}" for rank, text in failures.items()]
        raise WorkerFailed("\n".join(parts))
    if waiting:
        raise TimeoutError(f"no answer from workers {[*waiting.values()]} within the time limit")
    return [results[rank] for rank in range(len(workers))]


def _work(pipe: Connection) -> None:
    import torch

    random_numbers = torch.get_rng_state()
    # What is there now stays: it need not be looked through after each call.
    gc.freeze()
    while True:
        try:
            call: _Call = pipe.recv()
        except EOFError:
            os._exit(0)
        torch.set_rng_state(random_numbers)
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        answer = _answer(call)
        pipe.send_bytes(answer)


def _answer(call: _Call) -> bytes:
    import torch.distributed as dist

    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.chdir(call.working_directory)
    os.environ.clear()
    os.environ.update(call.environment, GLOO_SOCKET_IFNAME=loopback)
    try:
        function, args = pickle.loads(call.payload)
        address = (Path(call.folder) / "rendezvous").as_uri()
        dist.init_process_group(
            "gloo", init_method=address, rank=call.rank, world_size=call.num_workers
        )
        answer = pickle.dumps((None, function(*args)))
        # Nobody leaves while another one still needs it.
        dist.barrier()
    except BaseException:
        return pickle.dumps((traceback.format_exc(), None))
    # Networks that are joined by the group are dropped before it.
    gc.collect()
    dist.destroy_process_group()
    return answer
