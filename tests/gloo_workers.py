"""Runs a function on several real worker processes that are joined by gloo."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# The server imports these once and forks all workers from there.
_PRELOADED = ["torch", "torchvision", "pytest", "conr_ray.engine.loop"]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_PRELOADED)


class WorkerFailed(Exception):
    """A worker raised; the message holds its traceback."""


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
    with tempfile.TemporaryDirectory() as folder:
        workers: dict[Connection, tuple[int, BaseProcess]] = {}
        try:
            for rank in range(num_workers):
                receiver, sender = _CONTEXT.Pipe(duplex=False)
                process = _CONTEXT.Process(
                    target=_work, args=(rank, num_workers, folder, payload, sender), daemon=True
                )
                process.start()
                # The worker then holds the only end that writes: its death ends the pipe.
                sender.close()
                workers[receiver] = rank, process
            return _collect(workers, deadline)
        finally:
            for receiver, (_, process) in workers.items():
                process.kill()
                process.join()
                receiver.close()


def _collect(workers: dict[Connection, tuple[int, BaseProcess]], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    waiting = dict(workers)
    while waiting:
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for end in ready:
            assert isinstance(end, Connection)
            rank, process = waiting.pop(end)
            try:
                failure, results[rank] = pickle.loads(end.recv_bytes())
            except EOFError:
                process.join()
                failure = f"exit code {process.exitcode}"
            if failure is not None:
                failures[rank] = failure
                # The others may wait for this one forever, or tell more within a moment.
                deadline = min(deadline, time.monotonic() + 0.5)
    if failures:
        parts = [f"worker {rank} of {len(workers)}: {text}" for rank, text in failures.items()]
        raise WorkerFailed("\n".join(parts))
    if waiting:
        late = [rank for rank, _ in waiting.values()]
        raise TimeoutError(f"no answer from workers {late} within the time limit")
    return [results[rank] for rank in range(len(workers))]


def _work(rank: int, num_workers: int, folder: str, payload: bytes, sender: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ["GLOO_SOCKET_IFNAME"] = loopback
    try:
        function, args = pickle.loads(payload)
        address = (Path(folder) / "rendezvous").as_uri()
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=num_workers)
        answer = pickle.dumps((None, function(*args)))
        # Nobody leaves while another one still needs it.
        dist.barrier()
    except BaseException:
        answer = pickle.dumps((traceback.format_exc(), None))
    sender.send_bytes(answer)
    sender.close()
    # The process group is not torn down: the exit of the process does that, and faster.
    os._exit(0)
