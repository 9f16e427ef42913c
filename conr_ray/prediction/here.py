"""Prediction in this process: threads decode ahead while the network computes."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa

from conr_ray.prediction.placing import Placing
from conr_ray.prediction.samples import NewSamples

T = TypeVar("T")
# Batches read, or being read, while another one is placed.
_AHEAD = 3
# The network asks for Python's lock before each of its layers: at the default of 5 ms decoding
# would hold it up.
_SWITCH_S = 2e-4


def placed_here(
    samples: NewSamples, pieces: Iterable[pa.Table], placing: Placing
) -> Iterator[pa.Table]:
    """The rows of the samples in `pieces`, batch by batch, in order."""
    yield from worked_here(samples.read, pieces, placing)


def worked_here(
    read: Callable[[pa.Table], Iterator[pa.Table]],
    pieces: Iterable[pa.Table],
    work: Callable[[pa.Table], pa.Table],
) -> Iterator[pa.Table]:
    """What `work` makes of the batches that are read of each piece, in order."""
    batches = (batch for piece in pieces for batch in read(piece))
    with _switching_often():
        yield from map(work, _ahead(batches))


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, taken by a thread of their own a few ahead."""
    taker = ThreadPoolExecutor(1, "read")
    try:
        taken = deque(taker.submit(next, items, None) for _ in range(_AHEAD))
        while (item := taken.popleft().result()) is not None:
            taken.append(taker.submit(next, items, None))
            yield item
    finally:
        taker.shutdown(cancel_futures=True)


@contextmanager
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
