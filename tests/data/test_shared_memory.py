"""What one process hands to another through memory that both have."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from conr_ray.data.shared_memory import SharedMemory, shared_file


@pytest.fixture
def ends() -> Iterator[tuple[SharedMemory, SharedMemory]]:
    file = shared_file()
    one, other = SharedMemory(file), SharedMemory(os.dup(file))
    yield one, other
    one.close()
    other.close()


def test_what_is_taken_equals_what_was_put(ends: tuple[SharedMemory, SharedMemory]) -> None:
    one, other = ends
    rng = np.random.default_rng(0)
    # Of growing and shrinking sizes, none and empty ones among them.
    for sizes in ((3, 5), (), (100_000,), (0, 7), (1,), (40_000, 200_000)):
        values = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
        found, name = other.taken(*one.put((values, "name")))
        assert name == "name" and len(found) == len(values)
        for array, value in zip(found, values, strict=True):
            np.testing.assert_array_equal(array, value)


def test_what_was_taken_stays_when_the_next_is_put(
    ends: tuple[SharedMemory, SharedMemory],
) -> None:
    one, other = ends
    first = other.taken(*one.put(np.zeros((2, 3, 4), np.uint8)))
    one.put(np.ones((2, 3, 4), np.uint8))
    assert not first.any()
    first += 1


def test_arrays_are_not_in_what_is_sent(ends: tuple[SharedMemory, SharedMemory]) -> None:
    rest, sizes = ends[0].put(np.zeros((50, 3, 32, 32), np.uint8))
    assert len(rest) < 1000 and sizes == [50 * 3 * 32 * 32]


def test_an_array_with_gaps_arrives_too(ends: tuple[SharedMemory, SharedMemory]) -> None:
    value = np.arange(60).reshape(5, 12)[:, ::2]
    np.testing.assert_array_equal(ends[1].taken(*ends[0].put(value)), value)


def test_a_system_without_files_in_memory_has_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    memory = SharedMemory(shared_file())
    value = np.arange(1000)
    np.testing.assert_array_equal(memory.taken(*memory.put(value)), value)
    memory.close()
