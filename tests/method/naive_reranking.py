"""The neighbourhoods of DESIGN.md with plain loops over Python numbers."""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

Lists = tuple[list[list[float]], list[list[int]]]


def _float32(number: float) -> float:
    return float(struct.unpack("f", struct.pack("f", number))[0])


def _dot(left: list[float], right: list[float]) -> float:
    return _float32(math.fsum(a * b for a, b in zip(left, right, strict=True)))


def _first(scores: list[list[float]], k: int) -> Lists:
    """Of each row the k best: itself, then by falling score, then by number."""
    values, indices = [], []
    for i, row in enumerate(scores):
        order = sorted(range(len(row)), key=lambda j, i=i, row=row: (j != i, -row[j], j))[:k]
        indices.append(order)
        values.append([row[j] for j in order])
    return values, indices


def naive_nearest(unit: Tensor, k: int) -> Lists:
    rows = [[float(x) for x in row] for row in unit]
    return _first([[_dot(left, right) for right in rows] for left in rows], k)


def naive_contextual(unit: Tensor, k1: int, k2: int, k: int) -> Lists:
    similarity, near = naive_nearest(unit, k1)
    n = len(near)
    features = [[float(j in near[i]) for j in range(n)] for i in range(n)]
    for _ in range(0 if k2 == 1 else 2):
        both = [[features[i][j] + features[j][i] for j in range(n)] for i in range(n)]
        features = []
        for i in range(n):
            row = [0.0] * n
            for j, s in list(zip(near[i], similarity[i], strict=True))[:k2]:
                for column in range(n):
                    row[column] += s**2 * both[j][column]
            length = math.sqrt(math.fsum(x * x for x in row))
            features.append([x / (length or 1.0) for x in row])
    return _first([[_dot(left, right) for right in features] for left in features], k)


def unit_rows(embeddings: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embeddings.float())
