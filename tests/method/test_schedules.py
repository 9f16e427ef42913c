from __future__ import annotations

import math

import pytest

from conr_ray.method.schedules import learning_rate, target_momentum


def test_learning_rate_rises_linearly_to_its_peak_at_the_end_of_the_warm_up() -> None:
    rates = [learning_rate(step, 10, 90, 0.3) for step in range(10)]
    assert rates == pytest.approx([0.03 * (step + 1) for step in range(10)])
    assert learning_rate(10, 10, 90, 0.3) == 0.3


def test_learning_rate_falls_by_a_cosine_that_ends_at_zero() -> None:
    assert learning_rate(55, 10, 90, 0.3) == pytest.approx(0.15)
    assert learning_rate(100, 10, 90, 0.3) == pytest.approx(0)
    rates = [learning_rate(step, 10, 90, 0.3) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)


def test_learning_rate_without_or_with_nothing_but_warm_up() -> None:
    assert learning_rate(0, 0, 100, 0.3) == 0.3
    assert learning_rate(4, 5, 0, 0.3) == 0.3


def test_the_released_learning_rate_ends_above_zero() -> None:
    # The released code divides epochs after the warm-up by all epochs.
    for epoch in (50, 400, 800, 999):
        expected = 0.1 * (1 + math.cos(math.pi * (epoch - 50) / 1000)) / 2
        assert learning_rate(epoch, 50, 1000, 0.1) == pytest.approx(expected)
    assert learning_rate(1000, 50, 1000, 1) == pytest.approx(0.0062, abs=1e-4)
    released, paper = (
        sum(learning_rate(epoch, 50, cosine, 1) for epoch in range(800, 1000))
        for cosine in (1000, 950)
    )
    assert released / paper == pytest.approx(1.73, abs=0.01)


def test_target_momentum_goes_from_initial_to_one_by_a_cosine() -> None:
    assert target_momentum(0, 100, 0.9) == pytest.approx(0.9)
    assert target_momentum(25, 100, 0.9) == pytest.approx(1 - 0.05 * (1 + math.sqrt(0.5)))
    assert target_momentum(50, 100, 0.9) == pytest.approx(0.95)
    assert target_momentum(100, 100, 0.9) == 1.0
