from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conr_ray.method.keyed_random import fold, normal, permutation, uniform

POSITIONS = torch.arange(20_000)
MASK = 2**64 - 1


def _correlation(left: Tensor, right: Tensor) -> float:
    pair = torch.stack([left.flatten(), right.flatten()]).double()
    return float(torch.corrcoef(pair)[0, 1])


def _naive_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def _naive_uniform(key: int, position: int, draw: int) -> float:
    increment = 0x9E3779B97F4A7C15
    row = _naive_mix((position * increment + key) & MASK)
    return (_naive_mix((row + draw * increment) & MASK) >> 40) / 2**24


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**62), st.integers(1, 40))
def test_numbers_are_those_of_the_formula_in_unsigned_arithmetic(
    key: int, position: int, num_draws: int
) -> None:
    found = uniform(key, torch.tensor([position]), num_draws)
    assert found.tolist() == [[_naive_uniform(key, position, d) for d in range(num_draws)]]


def test_mixing_is_that_of_splitmix64() -> None:
    # First output of the reference implementation for seed 0.
    assert _naive_mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    numbers = uniform(fold("even"), POSITIONS, 8)
    assert numbers.shape == (20_000, 8)
    assert numbers.dtype == torch.float32
    assert 0 <= float(numbers.min()) < 1e-4
    assert 1 - 1e-4 < float(numbers.max()) < 1
    counts = torch.histc(numbers, 50, 0, 1)
    expected = numbers.numel() / 50
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    # 49 degrees of freedom: mean 49, deviation 10.
    assert chi_square < 100
    for draw in range(8):
        assert float(numbers[:, draw].mean()) == pytest.approx(0.5, abs=0.01)
        assert float(numbers[:, draw].var()) == pytest.approx(1 / 12, rel=0.03)


def test_neighbouring_positions_draws_and_keys_are_uncorrelated() -> None:
    key = fold("independent", 1)
    numbers = uniform(key, POSITIONS, 6)
    others = [
        (numbers[:-1], numbers[1:]),
        (numbers[:-1, :-1], numbers[1:, 1:]),
        (numbers[:-1, 1:], numbers[1:, :-1]),
        (numbers[:, :-1], numbers[:, 1:]),
        (numbers, uniform(key + 1, POSITIONS, 6)),
        (numbers, uniform(fold("independent", 2), POSITIONS, 6)),
        (numbers, uniform(key, POSITIONS + 2**40, 6)),
    ]
    for left, right in others:
        # 100,000 pairs: a deviation of 0.003.
        assert abs(_correlation(left, right)) < 0.015
        assert not (left == right).float().mean() > 0.001


def test_normal_numbers_have_the_moments_of_the_standard_normal() -> None:
    numbers = normal(fold("moments"), POSITIONS, 5).double()
    assert numbers.shape == (20_000, 5)
    assert torch.isfinite(numbers).all()
    assert float(numbers.mean()) == pytest.approx(0, abs=0.015)
    assert float(numbers.var()) == pytest.approx(1, rel=0.02)
    assert float((numbers**3).mean()) == pytest.approx(0, abs=0.06)
    assert float((numbers**4).mean()) == pytest.approx(3, rel=0.05)
    within = float((numbers.abs() < 1).double().mean())
    assert within == pytest.approx(math.erf(math.sqrt(0.5)), abs=0.01)
    correlations = torch.corrcoef(numbers.T) - torch.eye(5)
    assert float(correlations.abs().max()) < 0.035
    assert abs(_correlation(numbers[:-1], numbers[1:])) < 0.015


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_subset_of_positions_gets_the_same_numbers(draw: Callable[..., Tensor]) -> None:
    whole = draw(77, torch.arange(40), 7)
    chosen = torch.tensor([39, 3, 3, 17])
    assert torch.equal(draw(77, chosen, 7), whole[chosen])
    shares = [draw(77, part, 7) for part in torch.arange(40).split([13, 14, 13])]
    assert torch.equal(torch.cat(shares), whole)


def test_the_number_of_draws_does_not_change_the_first_ones() -> None:
    assert torch.equal(uniform(5, POSITIONS, 3), uniform(5, POSITIONS, 9)[:, :3])


@pytest.mark.parametrize("length", [0, 1, 2, 1000])
def test_permutation_holds_every_number_once(length: int) -> None:
    found = permutation(fold(3, "order", length), length)
    assert found.dtype == torch.int64
    assert sorted(found.tolist()) == list(range(length))


def test_permutation_depends_on_the_key_alone() -> None:
    torch.manual_seed(1)
    first = permutation(8, 500)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(permutation(8, 500), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert (permutation(9, 500) == first).sum() < 20
    displaced = (first - torch.arange(500)).double()
    assert float(displaced.abs().mean()) == pytest.approx(500 / 3, rel=0.15)


def test_keys_are_63_bits_and_differ_with_every_part() -> None:
    parts = [
        (0, "view", 1, 2),
        (0, "view", 2, 1),
        (0, "view", 12),
        (0, "view1", 2),
        (1, "view", 1, 2),
        (0, "order", 1, 2),
        ("0", "view", 1, 2),
        (0, "view", 1, 2, 0),
        (),
    ]
    keys = [fold(*part) for part in parts]
    assert len(set(keys)) == len(parts)
    many = [fold(0, step) for step in range(2000)]
    assert all(0 <= key < 2**63 for key in keys + many)
    assert max(many) > 2**62
    assert len({key % 1024 for key in many}) > 800


@pytest.mark.slow
def test_keys_numbers_and_orders_are_the_same_in_another_process() -> None:
    program = (
        "import torch\n"
        "from conr_ray.method.keyed_random import fold, normal, permutation, uniform\n"
        "key = fold(7, 'views', 3, 11)\n"
        "positions = torch.arange(3)\n"
        "print(key, uniform(key, positions, 2).tolist(), normal(key, positions, 2).tolist(),"
        " permutation(key, 6).tolist())\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "123"},
    ).stdout
    key, positions = fold(7, "views", 3, 11), torch.arange(3)
    expected = (
        key,
        uniform(key, positions, 2).tolist(),
        normal(key, positions, 2).tolist(),
        permutation(key, 6).tolist(),
    )
    assert answer.strip() == " ".join(map(str, expected))
    # Another number here changes every run that is ever repeated.
    assert key == 6423504129842061215
