"""Random numbers that depend only on a key and a position, not on earlier draws.

A counter-based generator (splitmix64's finaliser over key + counter): the number for (key,
position, draw) is the same on every device and for any split of the positions over workers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from conr_ray.method.keys import fold

__all__ = ["fold", "normal", "permutation", "uniform"]

# Constants of splitmix64 (Steele, Lea, Flood 2014), as signed 64-bit integers.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLY_2 = 0x94D049BB133111EB - 2**64


def uniform(key: int, positions_b: Tensor, num_draws: int) -> Tensor:
    """Numbers in [0, 1), (b, num_draws) float32, for int64 positions (b,)."""
    draws = torch.arange(num_draws, device=positions_b.device)
    # Mixed twice: otherwise neighbouring positions and draws would share increments.
    rows_b1 = _mix(positions_b[:, None] * _INCREMENT + key)
    return _shift(_mix(rows_b1 + draws * _INCREMENT), 40).float() * 2.0**-24


def normal(key: int, positions_b: Tensor, num_draws: int) -> Tensor:
    """Standard normal numbers, (b, num_draws) float32 (Box-Muller)."""
    half = (num_draws + 1) // 2
    radius, angle = uniform(key, positions_b, 2 * half).chunk(2, dim=1)
    length = (-2 * torch.log1p(-radius)).sqrt()
    both = torch.cat(
        [length * (2 * math.pi * angle).cos(), length * (2 * math.pi * angle).sin()], 1
    )
    return both[:, :num_draws]


def permutation(key: int, length: int) -> Tensor:
    """A permutation of 0 .. length - 1, int64 on the CPU."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(key))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift(x, 27)) * _MULTIPLY_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
