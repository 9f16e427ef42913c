"""Fast similarities with an error below a known margin.

They only propose candidates that are then computed exactly, so the arithmetic changes no result.

Shapes: a and b rows, d width.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# The error of a float32 dot product of unit vectors is less than this times their width.
_FLOAT32_ROUNDING = 2.0**-22
# Maximum error of a number of about 1 rounded to bfloat16.
_BFLOAT16_ROUNDING = 2.0**-8 * 1.02


@dataclass(frozen=True)
class RoughRows:
    """Rows of about unit length, with a form of them for rough products.

    Attributes:
        exact_ad: float32.
        rough_ad: the same, or rounded to bfloat16.
        error: largest distance between the two forms of a row.
    """

    exact_ad: Tensor
    rough_ad: Tensor
    error: float

    @classmethod
    def of(cls, rows_ad: Tensor) -> RoughRows:
        """From rows of any float dtype."""
        exact_ad = rows_ad.float().contiguous()
        rough_type = _rough_type(rows_ad.device)
        if rough_type == torch.float32 or not len(rows_ad):
            return cls(exact_ad, exact_ad, 0.0)
        rough_ad = exact_ad.to(rough_type)
        if rows_ad.dtype == rough_type:
            return cls(exact_ad, rough_ad, 0.0)
        return cls(exact_ad, rough_ad, float((exact_ad - rough_ad).norm(dim=1).max()) * 1.001)


def rough_products(left: RoughRows, right: RoughRows, room: Tensor) -> tuple[Tensor, float]:
    """Similarities (a, b), stored in `room`, and a bound on their error."""
    shape = len(left.exact_ad), len(right.exact_ad)
    rough_ab = room[: shape[0] * shape[1]].view(shape)
    torch.mm(left.rough_ad, right.rough_ad.T, out=rough_ab)
    margin = left.exact_ad.shape[1] * _FLOAT32_ROUNDING
    if rough_ab.dtype == torch.bfloat16:
        margin += 1.02 * (left.error + right.error) + _BFLOAT16_ROUNDING
    return rough_ab, margin


def room_for(num_elements: int, device: torch.device) -> Tensor:
    """Memory for rough products."""
    return torch.empty(num_elements, dtype=_rough_type(device), device=device)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products within the margins of error, whatever precision the caller has set."""
    # One for each backend: torch refuses to name one precision where they have been set apart.
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _rough_type(device: torch.device) -> torch.dtype:
    # On GPUs the search for the best entries takes longer than the products.
    if device.type != "cpu" or not _bfloat16_is_faster():
        return torch.float32
    return torch.bfloat16


@functools.cache
def _bfloat16_is_faster() -> bool:
    """Whether bfloat16 is faster on this processor, measured once: on some it is far slower."""

    def seconds(dtype: torch.dtype) -> float:
        rows_ad = torch.ones(512, 256, dtype=dtype)
        room_ab = torch.empty(512, 512, dtype=dtype)
        times = []
        for _ in range(4):
            started = time.perf_counter()
            torch.mm(rows_ad, rows_ad.T, out=room_ab)
            times.append(time.perf_counter() - started)
        return min(times[1:])

    with full_precision(torch.device("cpu")):
        return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)
