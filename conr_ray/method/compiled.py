"""Compiled loops over rows, for CPUs: numba and plain threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba
import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function`, compiled at its first call and cached on disk; it releases the GIL."""
    return _compiled(function, nogil=True)


def compiled_any_order(function: Function) -> Function:
    """`compiled`, but sums may be reordered for speed."""
    return _compiled(function, nogil=True, fastmath={"reassoc"})


def _compiled(function: Function, **options: Any) -> Function:
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:
        # Neither the package's folder nor the user's cache can be written: each process compiles.
        return cast(Function, numba.njit(**options)(function))


def serves(device: torch.device) -> bool:
    """Whether compiled loops support `device`; for others, torch operations do the same."""
    return device.type == "cpu"


def over_threads(loop: Callable[..., None], num_rows: int, *args: Any) -> None:
    """`loop(first, last, *args)` over ranges of rows, one range for each of torch's threads."""
    threads = min(torch.get_num_threads(), num_rows)
    if threads <= 1:
        loop(0, num_rows, *args)
        return
    bounds = [thread * num_rows // threads for thread in range(threads + 1)]
    pool = _pool(os.getpid(), threads)
    parts = [pool.submit(loop, bounds[t], bounds[t + 1], *args) for t in range(1, threads)]
    loop(bounds[0], bounds[1], *args)
    for part in parts:
        part.result()


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: those of a parent do not survive a fork."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="conr_ray")
