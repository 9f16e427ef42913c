"""How far embeddings spread over the sphere, without labels.

Shapes: m rows, d width, r the smaller of both.
"""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(rows_md: Tensor) -> float:
    """Number of directions that rows use, in [1, min(m, d)]; 1 if they coincide.

    exp of the entropy of the singular values of the rows, not centred, over their sum (Roy &
    Vetterli 2007; RankMe of Garrido et al. 2023). They are the roots of the eigenvalues of the
    smaller product of the matrix and its transpose, computed in float64.
    """
    if len(rows_md) < rows_md.shape[1]:
        rows_md = rows_md.T
    rows_md = rows_md.double()
    values_r = torch.linalg.eigvalsh(rows_md.T @ rows_md).clamp_min(0).sqrt()
    return float(torch.special.entr(values_r / values_r.sum()).sum().exp())


def mean_cosine(rows_md: Tensor) -> float:
    """Mean cosine of two different rows of unit length, in [-1 / (m - 1), 1]; 1 of a single row.

    The squared length of the sum of the rows is the sum of all m^2 cosines, and m of them are 1.
    """
    num_rows = len(rows_md)
    if num_rows == 1:
        return 1.0
    sum_d = rows_md.sum(0, dtype=torch.float64)
    own = rows_md.square().sum(dtype=torch.float64)
    return float((sum_d @ sum_d - own) / (num_rows * (num_rows - 1)))
