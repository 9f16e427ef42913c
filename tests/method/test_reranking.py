from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from conr_ray.method import compiled
from conr_ray.method.collectives import share
from conr_ray.method.neighbors import contexts, neighbor_lists, rough_products
from conr_ray.method.neighbors.reranking import contextual_neighbors, euclidean_neighbors
from tests.gloo_workers import run_workers
from tests.method.naive_reranking import naive_contextual, naive_nearest, unit_rows


def _random(n: int) -> Tensor:
    return torch.randn(n, 6)


def _clustered(n: int) -> Tensor:
    return torch.randn(4, 6)[torch.arange(n) % 4] + 0.3 * torch.randn(n, 6)


def _duplicated(n: int) -> Tensor:
    return torch.randn(n // 3 + 1, 6)[torch.randint(n // 3 + 1, (n,))]


def _lattice(n: int) -> Tensor:
    rows = torch.randint(-1, 2, (n, 3)).float()
    rows[rows.abs().sum(1) == 0] = torch.tensor([1.0, 0.0, 0.0])
    return rows


def _collapsed(n: int) -> Tensor:
    return torch.tensor([0.3, -0.2, 0.7]).repeat(n, 1)


def _crowded(n: int) -> Tensor:
    """Similarities that a float32 matrix product cannot tell apart."""
    return torch.ones(6) + 3e-4 * torch.randn(n, 6)


KINDS = {
    f.__name__.strip("_"): f
    for f in (_random, _clustered, _duplicated, _lattice, _collapsed, _crowded)
}


# Compiled loops serve CPUs; the others are those of GPUs.
ROUTES = ["compiled", "compiled float32", "dense", "dense exact", "sparse"]


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    _use(monkeypatch, request.param)
    return str(request.param)


def _use(monkeypatch: pytest.MonkeyPatch, route: str, block: int = 7) -> None:
    monkeypatch.setattr(compiled, "serves", lambda device: "compiled" in route)
    monkeypatch.setattr(rough_products, "_bfloat16_is_faster", lambda: route == "compiled")
    monkeypatch.setattr(contexts, "_DENSE_ROWS", 10**6 if "dense" in route else 0)
    monkeypatch.setattr(neighbor_lists, "_EXACT_ROWS", block if route == "dense exact" else 0)
    # Several blocks, of which the last is not full.
    monkeypatch.setattr(neighbor_lists, "_CPU_BLOCK", (block, 2 * block))
    monkeypatch.setattr(neighbor_lists, "_DEVICE_BLOCK", (block, 2 * block))
    monkeypatch.setattr(contexts, "_BLOCK_ELEMENTS", 100 * block)


def _check(
    found: tuple[Tensor, Tensor], expected: tuple[list[list[float]], list[list[int]]]
) -> None:
    assert found[1].tolist() == expected[1]
    assert found[0].dtype == torch.float32
    assert found[1].dtype == torch.int64
    torch.testing.assert_close(found[0], torch.tensor(expected[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "k1", "k2", "k"),
    [(33, 5, 2, 4), (33, 5, 1, 4), (33, 6, 6, 33), (33, 1, 1, 5), (12, 12, 3, 12), (1, 1, 1, 1)],
)
def test_contextual_neighbors_are_those_of_the_formula(
    route: str, kind: str, n: int, k1: int, k2: int, k: int
) -> None:
    rows = KINDS[kind](n)
    expected = naive_contextual(unit_rows(rows), k1, k2, k)
    _check(contextual_neighbors(rows, k1=k1, k2=k2, k=k), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(40, 1), (40, 9), (40, 40), (1, 1)])
def test_euclidean_neighbors_are_those_of_the_formula(
    route: str, kind: str, n: int, k: int
) -> None:
    rows = KINDS[kind](n)
    _check(euclidean_neighbors(rows, k=k), naive_nearest(unit_rows(rows), k))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k1", "k2", "k"), [(10, 1, 12), (10, 2, 10), (20, 5, 300), (3, 3, 50)])
def test_all_routes_give_identical_results(
    monkeypatch: pytest.MonkeyPatch, kind: str, k1: int, k2: int, k: int
) -> None:
    rows = KINDS[kind](300)
    found = []
    for route in ROUTES:
        _use(monkeypatch, route, 64)
        contextual = contextual_neighbors(rows, k1=k1, k2=k2, k=k)
        found.append([*contextual, *euclidean_neighbors(rows, k=k)])
    for results in zip(*found, strict=True):
        assert all(torch.equal(other, results[0]) for other in results)


@pytest.mark.parametrize("k2", [1, 3])
def test_some_rows_are_found_the_neighbors_that_all_are(route: str, k2: int) -> None:
    rows, queries_q = _clustered(90), torch.tensor([40, 3, 89])
    widths = {"k1": 8, "k2": k2, "k": 9}
    some = contextual_neighbors(rows, **widths, queries_q=queries_q)  # type: ignore[arg-type]
    everyone = contextual_neighbors(rows, **widths)  # type: ignore[arg-type]
    some += euclidean_neighbors(rows, k=9, queries_q=queries_q)
    everyone += euclidean_neighbors(rows, k=9)
    for found, expected in zip(some, everyone, strict=True):
        assert torch.equal(found, expected[queries_q])


@pytest.mark.parametrize("num_threads", [2, 5])
def test_the_number_of_threads_changes_nothing(num_threads: int) -> None:
    rows = _clustered(700)
    alone = contextual_neighbors(rows, k1=8, k2=3, k=9)
    torch.set_num_threads(num_threads)
    for found, expected in zip(contextual_neighbors(rows, k1=8, k2=3, k=9), alone, strict=True):
        assert torch.equal(found, expected)


def _share_of_neighbors(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    part = rows[share(len(rows))]
    return [
        contextual_neighbors(part, k1=6, k2=2, k=7, num_rows=len(rows)),
        contextual_neighbors(part, k1=6, k2=1, k=7, num_rows=len(rows)),
        euclidean_neighbors(part, k=7, num_rows=len(rows)),
    ]


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["clustered", "lattice"])
def test_workers_find_their_share_of_the_whole(num_workers: int, kind: str) -> None:
    rows = KINDS[kind](41)
    whole = _share_of_neighbors(rows)
    by_worker = run_workers(_share_of_neighbors, num_workers, rows)
    for number, expected in enumerate(whole):
        for part, tensor in enumerate(expected):
            joined = torch.cat([worker[number][part] for worker in by_worker])
            assert torch.equal(joined, tensor)


def test_a_share_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="10 embeddings are not this worker's 11 of num_rows=11"):
        euclidean_neighbors(_random(10), k=1, num_rows=11)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Tensor, int, int, int]:
    n = draw(st.integers(1, 9))
    width = draw(st.integers(1, 3))
    numbers = st.integers(-2, 2) if draw(st.booleans()) else st.floats(-1, 1, width=32)
    values = draw(st.lists(numbers, min_size=n * width, max_size=n * width))
    rows = torch.tensor(values, dtype=torch.float32).view(n, width)
    rows[rows.norm(dim=1) < 1e-3] = 1.0
    k1 = draw(st.integers(1, n))
    return rows, k1, draw(st.integers(1, k1)), draw(st.integers(1, n))


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(_cases())
def test_any_small_input_gives_the_neighbors_of_the_formula(
    route: str, case: tuple[Tensor, int, int, int]
) -> None:
    rows, k1, k2, k = case
    unit = unit_rows(rows)
    _check(contextual_neighbors(rows, k1=k1, k2=k2, k=k), naive_contextual(unit, k1, k2, k))
    _check(euclidean_neighbors(rows, k=k), naive_nearest(unit, k))


def test_order_is_self_then_similarity_then_row_number(route: str) -> None:
    # Rows 0, 3 and 5 are one direction, rows 1 and 4 at right angles to it, row 2 opposite.
    rows = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [1, 0], [0, 1], [1, 0]])
    similarities, indices = euclidean_neighbors(rows, k=6)
    assert indices.tolist() == [
        [0, 3, 5, 1, 4, 2],
        [1, 4, 0, 2, 3, 5],
        [2, 1, 4, 0, 3, 5],
        [3, 0, 5, 1, 4, 2],
        [4, 1, 0, 2, 3, 5],
        [5, 0, 3, 1, 4, 2],
    ]
    assert similarities[0].tolist() == [1, 1, 1, 0, 0, -1]


@pytest.mark.parametrize("k2", [1, 2, 5])
def test_collapsed_embeddings_have_themselves_and_then_the_first_rows(route: str, k2: int) -> None:
    rows = _collapsed(40)
    similarities, indices = contextual_neighbors(rows, k1=5, k2=k2, k=3)
    assert indices[:3].tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
    # Row 10 has the context {10, 0, 1, 2, 3}: all lower ones share four rows with it.
    assert indices[10].tolist()[0] == 10
    assert torch.isfinite(similarities).all()
    assert euclidean_neighbors(rows, k=3)[1][10].tolist() == [10, 0, 1]


def test_rows_that_share_no_context_fill_up_the_list_in_order(route: str) -> None:
    rows = torch.eye(8).repeat_interleave(2, 0)
    similarities, indices = contextual_neighbors(rows, k1=2, k2=1, k=6)
    assert indices[4].tolist() == [4, 5, 0, 1, 2, 3]
    assert indices[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert similarities[4].tolist() == [2, 2, 0, 0, 0, 0]


def test_enclosing_autocast_changes_nothing(route: str) -> None:
    rows = _clustered(60)
    plain = *contextual_neighbors(rows, k1=6, k2=3, k=8), *euclidean_neighbors(rows, k=8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = *contextual_neighbors(rows, k1=6, k2=3, k=8), *euclidean_neighbors(rows, k=8)
    for left, right in zip(plain, mixed, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_other_widths_are_taken_as_float32(route: str, dtype: torch.dtype) -> None:
    rows = _random(30).to(dtype)
    for found, expected in (
        (f(rows), f(rows.float()))
        for f in (
            lambda x: contextual_neighbors(x, k1=5, k2=2, k=4),
            lambda x: euclidean_neighbors(x, k=4),
        )
    ):
        assert found[0].dtype == torch.float32
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_length_of_the_rows_does_not_matter(route: str) -> None:
    rows = _random(30)
    scaled = rows * 2.0 ** torch.randint(-20, 20, (30, 1))
    for found, expected in zip(
        contextual_neighbors(scaled, k1=5, k2=2, k=4),
        contextual_neighbors(rows, k1=5, k2=2, k=4),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("factor", [1e-40, 1e-20, 1e-13, 1e18, 1e20, 1e30])
def test_lengths_whose_squares_vanish_or_overflow_do_not_matter(route: str, factor: float) -> None:
    rows = _random(30)
    _, expected = contextual_neighbors(rows, k1=5, k2=2, k=4)
    mixed = rows.double()
    mixed[::3] *= factor
    for scaled in (rows.double() * factor, mixed, mixed * 1e-250):
        assert torch.equal(contextual_neighbors(scaled, k1=5, k2=2, k=4)[1], expected)
    if factor > 1e-40:  # float32 has few digits there
        scaled = rows * factor
        assert torch.equal(contextual_neighbors(scaled, k1=5, k2=2, k=4)[1], expected)
        assert torch.equal(euclidean_neighbors(scaled, k=4)[1], euclidean_neighbors(rows, k=4)[1])


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2"])
def test_arrays_are_taken_like_tensors(kind: str) -> None:
    array = _random(30).numpy().astype(kind)
    array.setflags(write=False)
    rows = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    for view, same in ((array, rows), (array[::-2], rows.flip(0)[::2])):
        found = contextual_neighbors(view, k1=5, k2=2, k=4)
        expected = contextual_neighbors(same, k1=5, k2=2, k=4)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_other_than_tensors_and_arrays_of_floats_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a tensor or a NumPy array, got list$"):
        contextual_neighbors([[1.0, 2.0]], k1=1, k2=1, k=1)  # type: ignore[arg-type]
    for wrong in (np.ones((4, 2), int), np.ones(4), np.ones((4, 0), np.float32)):
        with pytest.raises(ValueError, match=r"must be \(n, d\) floats"):
            euclidean_neighbors(wrong, k=1)


def test_input_that_requires_gradient_is_not_tracked_nor_changed(route: str) -> None:
    rows = _random(20).requires_grad_()
    before = rows.detach().clone()
    similarities, _ = contextual_neighbors(rows, k1=5, k2=2, k=4)
    assert not similarities.requires_grad
    assert torch.equal(rows.detach(), before)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"k1": 0}, "k1=0 must be between 1 and the 10 rows"),
        ({"k1": 11}, "k1=11 must be between 1 and the 10 rows"),
        ({"k": 0}, "k=0 must be between 1 and the 10 rows"),
        ({"k": 11}, "k=11 must be between 1 and the 10 rows"),
        ({"k2": 0}, "k2=0 must be between 1 and k1=4"),
        ({"k2": 5}, "k2=5 must be between 1 and k1=4"),
    ],
)
def test_counts_out_of_bounds_are_refused(arguments: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        contextual_neighbors(_random(10), **{"k1": 4, "k2": 2, "k": 3, **arguments})
    if "k" in arguments:
        with pytest.raises(ValueError, match=told):
            euclidean_neighbors(_random(10), **arguments)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_row_without_direction_is_refused_by_number(bad: float) -> None:
    rows = _random(10)
    rows[6] = bad
    for call in (
        lambda: contextual_neighbors(rows, k1=4, k2=2, k=3),
        lambda: euclidean_neighbors(rows, k=3),
    ):
        with pytest.raises(ValueError, match="embedding 6 is not finite or has length 0"):
            call()


@pytest.mark.parametrize(
    "rows", [torch.ones(10), torch.ones(10, 2, 2), torch.ones(10, 3, dtype=torch.int64)]
)
def test_other_than_a_matrix_of_floats_is_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be \(n, d\) floats"):
        euclidean_neighbors(rows, k=1)
    with pytest.raises(ValueError, match=r"must be \(n, d\) floats"):
        contextual_neighbors(rows, k1=1, k2=1, k=1)


@pytest.mark.parametrize("set_by", ["all backends", "one backend", "the older call"])
def test_a_precision_that_the_caller_has_set_changes_no_result_and_stays(set_by: str) -> None:
    rows = unit_rows(torch.randn(200, 64))
    expected = euclidean_neighbors(rows, k=8)
    backend = torch.backends.mkldnn.matmul
    try:
        if set_by == "all backends":
            torch.backends.fp32_precision = "tf32"
        elif set_by == "one backend":
            backend.fp32_precision = "bf16"
        else:
            torch.set_float32_matmul_precision("medium")
        before = backend.fp32_precision
        found = euclidean_neighbors(rows, k=8)
        assert backend.fp32_precision == before
    finally:
        for settings in (torch.backends, torch.backends.cuda.matmul, backend):
            settings.fp32_precision = "none"
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
