"""Rank keys: a similarity and a row number in one integer that sorts neighbours.

Neighbours are ordered everywhere by descending similarity, ties by ascending row number. (A row
itself comes before all others; it is never part of its own list.) Similarities are float64 sums,
rounded to float32 before they are compared. So similarities that are equal by formula are equal
here, and the order does not depend on block sizes, the device or the number of workers.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Marks a missing neighbour; below every key.
EMPTY = torch.iinfo(torch.int64).min


def rank_keys(similarities: Tensor, numbers: Tensor) -> Tensor:
    """Keys, int64, of float32 similarities and row numbers below 2^32, of shapes that broadcast."""
    # Adding 0 makes -0 equal to 0; the bits of negative floats are flipped to rise with the value.
    bits = (similarities + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.long() << 32) | (0xFFFFFFFF - numbers)


def similarities_of(keys: Tensor) -> Tensor:
    """The similarities in `keys`, float32; -inf where they are `EMPTY`."""
    bits = (keys >> 32).int()
    similarities = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return similarities.masked_fill(keys == EMPTY, -torch.inf)


def numbers_of(keys: Tensor) -> Tensor:
    """The row numbers in `keys`, int64; -1 where they are `EMPTY`."""
    return (0xFFFFFFFF - (keys & 0xFFFFFFFF)).masked_fill(keys == EMPTY, -1)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Dot products over the last dimension: float64 sums rounded to float32."""
    return (left.double() * right.double()).sum(-1).float()
