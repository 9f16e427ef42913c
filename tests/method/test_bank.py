"""The maintained pool against a re-ranking of the whole pool from scratch, after any steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from conr_ray.method import compiled
from conr_ray.method.collectives import share
from conr_ray.method.neighbors import contexts, neighbor_lists, rough_products
from conr_ray.method.neighbors.bank import MemoryBank, Neighborhood
from conr_ray.method.neighbors.reranking import contextual_neighbors, euclidean_neighbors
from tests.gloo_workers import run_workers
from tests.method.naive_reranking import naive_contextual, naive_nearest, unit_rows


@dataclass
class Sequence:
    """A bank and what is done with it: for each step keys of both views and sample ids."""

    size: int
    batch_size: int
    neighborhood: Neighborhood
    dtype: torch.dtype
    steps: list[tuple[list[Tensor], Tensor]]
    sharded: bool = True


@dataclass
class PlainBank:
    """The same pool with plain Python: slots, and everything computed anew at each step."""

    sequence: Sequence
    slots: dict[int, dict[str, Any]] = field(default_factory=dict)
    step: int = 0

    def find(self, keys: list[Tensor], ids: Tensor) -> list[list[list[int]]]:
        near, n, size = (
            self.sequence.neighborhood,
            self.sequence.batch_size,
            self.sequence.size,
        )
        batch_ids = ids.tolist()
        self.slots = {s: row for s, row in self.slots.items() if row["id"] not in batch_ids}
        found = []
        for direction in keys:
            numbers = [*range(n), *(n + slot for slot in sorted(self.slots))]
            rows = [*direction, *(self.slots[slot]["row"] for slot in sorted(self.slots))]
            pool = torch.stack([row.float() for row in rows])
            if near.kind == "euclidean":
                lists = naive_nearest(pool, near.k)[1]
            else:
                lists = naive_contextual(pool, near.k1, near.k2, near.k)[1]
            found.append([[numbers[place] for place in lists[row]] for row in range(n)])
        rows = torch.nn.functional.normalize(keys[0] + keys[1]).to(self.sequence.dtype)
        kept = list(range(n))[max(0, n - size) :]
        ages = sorted((row["step"], row["place"], slot) for slot, row in self.slots.items())
        for _, _, slot in ages[: max(0, len(kept) + len(self.slots) - size)]:
            del self.slots[slot]
        free = [slot for slot in range(size) if slot not in self.slots]
        for slot, place in zip(free, kept, strict=False):
            facts = {"id": batch_ids[place], "step": self.step, "place": place}
            self.slots[slot] = {**facts, "row": rows[place]}
        self.step += 1
        return found


def _bank(sequence: Sequence) -> MemoryBank:
    return MemoryBank(
        sequence.size,
        sequence.steps[0][0][0].shape[1],
        sequence.batch_size,
        sequence.neighborhood,
        dtype=sequence.dtype,
        sharded=sequence.sharded,
    )


@dataclass
class Expected:
    """What one step of a bank must find and leave: computed once, for all routes."""

    lists: list[list[list[int]]]
    before: dict[int, dict[str, Any]]
    after: dict[int, dict[str, Any]]


def _expected(sequence: Sequence) -> list[Expected]:
    plain, steps = PlainBank(sequence), []
    for keys, ids in sequence.steps:
        before = dict(plain.slots)
        steps.append(Expected(plain.find(keys, ids), before, dict(plain.slots)))
    return steps


def _check(
    sequence: Sequence, expected: list[Expected] | None = None, reload_after: int | None = None
) -> int:
    """Run a sequence and compare each step; returns how many rows were searched anew."""
    bank, n = _bank(sequence), sequence.batch_size
    expected = _expected(sequence) if expected is None else expected
    for step, (keys, ids) in enumerate(sequence.steps):
        before, after = expected[step].before, expected[step].after
        found = bank.find(keys, ids)
        for direction, lists, neighbors in zip(keys, expected[step].lists, found, strict=True):
            mine = lists[share(n)]
            numbers = neighbors.numbers_bk.tolist()
            assert [[x for x in row if x >= 0] for row in numbers] == mine, (step, numbers, mine)
            assert all(
                row[len(want) :].count(-1) == len(row) - len(want)
                for row, want in zip(numbers, mine, strict=True)
            )
            for row, want in enumerate(mine):
                rows = [direction[x] if x < n else before[x - n]["row"].float() for x in want]
                samples = [int(ids[x]) if x < n else before[x - n]["id"] for x in want]
                ages = [0 if x < n else step - before[x - n]["step"] for x in want]
                mean = torch.stack(rows).mean(0)
                torch.testing.assert_close(
                    neighbors.mean_keys_bd[row], mean, rtol=0, atol=1e-6, check_dtype=False
                )
                assert neighbors.sample_ids_bk[row, : len(want)].tolist() == samples
                assert neighbors.ages_bk[row, : len(want)].tolist() == ages
        stored = [after[slot]["id"] if slot in after else -1 for slot in range(bank.size)]
        assert bank.sample_ids_m.tolist() == stored
        assert len(bank) == len(after) <= sequence.size
        if step == reload_after:
            state = bank.state_dict()
            bank = _bank(sequence)
            bank.load_state_dict(state)
    return bank.num_searched_anew


@st.composite
def sequences(draw: st.DrawFn) -> Sequence:
    batch_size = draw(st.integers(2, 6))
    size = draw(st.integers(0, 14))
    width = draw(st.integers(1, 3))
    # In a batch all samples differ; few samples mean many old copies.
    num_samples = draw(st.integers(batch_size, 24))
    k1 = draw(st.integers(1, batch_size + size))
    near = Neighborhood(
        draw(st.sampled_from(["contextual", "contextual", "euclidean"])),
        k1,
        draw(st.integers(1, k1)),
        draw(st.integers(1, batch_size + size)),
    )
    # Whole numbers make ties; equal rows make duplicates.
    whole = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def keys() -> Tensor:
        if whole:
            rows = torch.randint(-1, 2, (batch_size, width), generator=generator).float()
        else:
            rows = torch.randn(batch_size, width, generator=generator)
        rows[rows.norm(dim=1) < 1e-3] = 1.0
        return unit_rows(rows)

    steps = []
    for _ in range(draw(st.integers(1, 6))):
        ids = torch.randperm(num_samples, generator=generator)[:batch_size]
        steps.append(([keys(), keys()], ids))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    return Sequence(size, batch_size, near, dtype, steps)


# Compiled loops serve CPUs; torch's operations, dense or in sparse blocks, serve GPUs.
ROUTES = ["compiled", "compiled float32", "dense", "dense exact", "sparse"]


def _use(patch: pytest.MonkeyPatch, route: str) -> None:
    patch.setattr(compiled, "serves", lambda device: "compiled" in route)
    patch.setattr(rough_products, "_bfloat16_is_faster", lambda: route == "compiled")
    patch.setattr(contexts, "_DENSE_ROWS", 10**6 if "dense" in route else 0)
    patch.setattr(neighbor_lists, "_EXACT_ROWS", 3 if route == "dense exact" else 0)
    # Several blocks, of which the last is not full.
    patch.setattr(neighbor_lists, "_CPU_BLOCK", (3, 4))
    patch.setattr(neighbor_lists, "_DEVICE_BLOCK", (4, 3))


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    _use(monkeypatch, request.param)
    return str(request.param)


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sequences(), st.sampled_from([None, 0, 2]))
def test_neighbors_are_those_of_a_reranking_of_the_whole_pool(
    route: str, sequence: Sequence, reload_after: int | None
) -> None:
    _check(sequence, reload_after=reload_after)


def _check_all(cases: list[Sequence]) -> int:
    """Check all cases on all routes; returns how many rows were searched anew."""
    searched_anew = 0
    expected = [_expected(sequence) for sequence in cases]
    for route in ROUTES:
        with pytest.MonkeyPatch.context() as patch:
            _use(patch, route)
            for sequence, steps in zip(cases, expected, strict=True):
                searched_anew += _check(sequence, steps, reload_after=1)
    return searched_anew


def _examples(count: int) -> list[Sequence]:
    """Sequences as hypothesis draws them, to be sent to workers together."""
    found: list[Sequence] = []

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(sequences())
    def collect(sequence: Sequence) -> None:
        found.append(sequence)

    collect()
    return found


def _walk(
    size: int, batch_size: int, near: Neighborhood, num_steps: int, num_samples: int
) -> Sequence:
    """Steps in which each sample's key drifts, as in training, around ten centres."""
    generator = torch.Generator().manual_seed(3)
    keys_sd = torch.randn(10, 16, generator=generator)[torch.arange(num_samples) % 10]
    keys_sd = keys_sd + torch.randn(num_samples, 16, generator=generator)
    steps = []
    for _ in range(num_steps):
        keys_sd = keys_sd + 0.2 * torch.randn(num_samples, 16, generator=generator)
        ids = torch.randperm(num_samples, generator=generator)[:batch_size]
        views = [keys_sd[ids] + 0.5 * torch.randn(batch_size, 16, generator=generator)]
        views.append(keys_sd[ids] + 0.5 * torch.randn(batch_size, 16, generator=generator))
        steps.append(([unit_rows(view) for view in views], ids))
    return Sequence(size, batch_size, near, torch.float32, steps)


def _move() -> Sequence:
    """Keys that move elsewhere for good: rows that stay behind lose their old neighbours."""
    steps = []
    for step in range(10):
        place = torch.eye(4)[step // 5]
        views = [unit_rows(place + 0.1 * torch.randn(4, 4)) for _ in range(2)]
        steps.append((views, 4 * step + torch.arange(4)))
    return Sequence(18, 4, Neighborhood("contextual", 2, 2, 4), torch.float32, steps)


@pytest.mark.parametrize(
    ("num_workers", "every"),
    [
        (1, 4),
        (3, 8),
        *(pytest.param(n, 1, marks=pytest.mark.slow) for n in (1, 2, 3, 4)),
    ],
)
def test_any_number_of_workers_finds_the_same_neighbors(num_workers: int, every: int) -> None:
    # A worker has at least one row of a batch.
    cases = [case for case in _examples(25)[::every] if case.batch_size >= num_workers]
    cases += [_move()]
    cases += [replace(case, sharded=False) for case in cases[-8 // every :]]
    searched_anew = run_workers(_check_all, num_workers, cases)
    assert len(set(searched_anew)) == 1
    assert searched_anew[0] > 0


@pytest.mark.parametrize("kind", ["contextual", "euclidean"])
def test_a_long_walk_with_evictions_stays_exact(kind: str) -> None:
    sequence = _walk(300, 48, Neighborhood(kind, 6, 3, 9), num_steps=25, num_samples=500)
    bank, slots = _bank(sequence), torch.full((300,), -1)
    rows_md = torch.zeros(300, 16)
    for keys, ids in sequence.steps:
        expected, live = [], torch.where(torch.isin(slots, ids), -1, slots) >= 0
        for keys_nd in keys:
            numbers = torch.cat([torch.arange(48), 48 + live.nonzero().flatten()])
            pool = torch.cat([keys_nd, rows_md[live]])
            arguments = {"k": min(9, len(pool))}
            if kind == "contextual":
                found = contextual_neighbors(pool, k1=6, k2=3, **arguments)[1]
            else:
                found = euclidean_neighbors(pool, **arguments)[1]
            expected.append(numbers[found[:48]])
        neighbors = bank.find(keys, ids)
        for part, numbers_nk in zip(neighbors, expected, strict=True):
            assert torch.equal(part.numbers_bk, numbers_nk)
        slots = bank.sample_ids_m.clone()
        where = {int(sample): slot for slot, sample in enumerate(slots)}
        for row, sample in zip(unit_rows(keys[0] + keys[1]), ids.tolist(), strict=True):
            rows_md[where[sample]] = row
    assert len(bank) == 300
    assert (bank.num_searched_anew > 0) == (kind == "contextual")


def _go_on(sequence: Sequence, state: dict[str, Any] | None) -> tuple[list[Any], dict[str, Any]]:
    bank = _bank(sequence)
    if state is not None:
        bank.load_state_dict(state)
    found = [
        [(part.numbers_bk, part.mean_keys_bd, part.ages_bk) for part in bank.find(keys, ids)]
        for keys, ids in sequence.steps
    ]
    return found, bank.state_dict()


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 1), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_bank_goes_on_with_the_same_pool_on_other_workers(
    before: int, after: int, dtype: torch.dtype
) -> None:
    # 50 rows are no multiple of 3 or 4.
    whole = _walk(50, 12, Neighborhood("contextual", 5, 2, 6), num_steps=12, num_samples=90)
    whole = replace(whole, dtype=dtype)
    expected, last_state = _go_on(whole, None)
    first = replace(whole, steps=whole.steps[:7])
    state = run_workers(_go_on, before, first, None)[0][1]
    by_worker = run_workers(_go_on, after, replace(whole, steps=whole.steps[7:]), state)
    for step, directions in enumerate(expected[7:]):
        for direction, parts in enumerate(directions):
            for part, tensor in enumerate(parts):
                joined = torch.cat([found[step][direction][part] for found, _ in by_worker])
                torch.testing.assert_close(joined, tensor)
    for name, value in last_state.items():
        assert torch.equal(torch.as_tensor(by_worker[0][1][name]), torch.as_tensor(value)), name


def test_an_empty_bank_goes_on_as_a_bank_of_any_size() -> None:
    small = MemoryBank(5, 3, 2, Neighborhood("contextual", 2, 2, 2))
    large = MemoryBank(50, 3, 2, Neighborhood("contextual", 4, 2, 2))
    large.load_state_dict(small.state_dict())
    assert len(large) == 0


@pytest.mark.parametrize(("before", "after"), [((3, 1, 4), (7, 3, 6)), ((7, 3, 6), (3, 2, 2))])
def test_a_bank_goes_on_with_another_neighborhood(
    before: tuple[int, int, int], after: tuple[int, int, int]
) -> None:
    first = _walk(40, 10, Neighborhood("contextual", *before), num_steps=12, num_samples=70)
    second = replace(first, neighborhood=Neighborhood("contextual", *after))
    _, state = _go_on(replace(first, steps=first.steps[:7]), None)
    found, _ = _go_on(replace(second, steps=second.steps[7:]), state)
    expected, _ = _go_on(second, None)
    for parts, wanted in zip(found, expected[7:], strict=True):
        for part, want in zip(parts, wanted, strict=True):
            for tensor, wanted_tensor in zip(part, want, strict=True):
                torch.testing.assert_close(tensor, wanted_tensor)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_keys_that_are_not_finite_spoil_no_other_row(route: str, bad: float) -> None:
    sequence = _walk(20, 6, Neighborhood("contextual", 3, 2, 4), num_steps=4, num_samples=30)
    sequence.steps[1][0][0][2, 5] = bad
    sequence.steps[2][0][1][:] = bad
    bank = _bank(sequence)
    for keys, ids in sequence.steps:
        for found in bank.find(keys, ids):
            assert torch.isfinite(found.mean_keys_bd).all()
            assert found.numbers_bk[:, 0].tolist() == list(range(6))
            assert all(len(set(row)) == 4 for row in found.numbers_bk.tolist())


def test_more_workers_than_rows_leave_some_without_a_shard() -> None:
    sequence = _walk(2, 4, Neighborhood("contextual", 3, 2, 4), num_steps=5, num_samples=9)
    run_workers(_check_all, 4, [sequence])


def test_the_newest_rows_stay_where_the_bank_is_smaller_than_the_batch() -> None:
    bank = MemoryBank(3, 2, 5, Neighborhood("euclidean", 2, 1, 3))
    keys = unit_rows(torch.randn(5, 2))
    bank.find([keys, keys], torch.arange(5))
    assert sorted(bank.sample_ids_m.tolist()) == [2, 3, 4]
    bank.find([keys, keys], torch.arange(3, 8))
    assert sorted(bank.sample_ids_m.tolist()) == [5, 6, 7]
