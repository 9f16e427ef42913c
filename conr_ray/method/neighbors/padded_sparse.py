"""Sparse matrices with room to spare, for devices whose counts the host does not know.

Shapes: p rows and columns, e entries, some of them unused, k entries that a row chooses, b columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class PaddedMatrix:
    """A square sparse matrix, float64; each place once, row by row.

    Unused entries come last, in row p and column 0.

    Attributes:
        num_rows: p.
        rows_e, columns_e, values_e: the entries.
    """

    num_rows: int
    rows_e: Tensor
    columns_e: Tensor
    values_e: Tensor

    @classmethod
    def summed(
        cls, num_rows: int, rows_e: Tensor, columns_e: Tensor, values_e: Tensor
    ) -> PaddedMatrix:
        """From entries in any order, of which those at the same place are added up.

        Those in row p are unused; their columns and values do not matter.
        """
        unused, num_entries = num_rows * num_rows, len(rows_e)
        keys_e = torch.where(rows_e < num_rows, rows_e * num_rows + columns_e, unused)
        keys_e, order_e = keys_e.sort(stable=True)
        first_e = torch.ones_like(keys_e, dtype=torch.bool)
        first_e[1:] = keys_e[1:] != keys_e[:-1]
        places_e = torch.where(first_e, first_e.cumsum(0) - 1, num_entries)
        starts = torch.full((num_entries + 1,), num_entries, device=keys_e.device)
        starts[places_e] = torch.where(
            first_e, torch.arange(num_entries, device=keys_e.device), num_entries
        )
        kept_e = torch.cat([keys_e, keys_e.new_full((1,), unused)])[starts[:-1]]
        # Entries at one place are added in their order, on any device.
        values_e = _sums(values_e[order_e], starts.diff().masked_fill(kept_e == unused, 0))
        return cls(num_rows, kept_e // num_rows, kept_e % num_rows, values_e)

    @property
    def starts(self) -> Tensor:
        """First entry of each row, and of the unused ones, (p + 1,)."""
        rows = torch.arange(self.num_rows + 1, device=self.rows_e.device)
        return torch.searchsorted(self.rows_e, rows)

    def plus_transpose(self) -> PaddedMatrix:
        """Sum of the matrix and its transpose."""
        used_e = self.rows_e < self.num_rows
        return PaddedMatrix.summed(
            self.num_rows,
            torch.cat([self.rows_e, torch.where(used_e, self.columns_e, self.num_rows)]),
            torch.cat([self.columns_e, torch.where(used_e, self.rows_e, 0)]),
            torch.cat([self.values_e, self.values_e]),
        )

    def scales(self) -> Tensor:
        """Factors (p,) that give the rows unit length; 0 for rows of zeros."""
        squares_p = _sums(self.values_e.square(), self.starts.diff())
        return squares_p.rsqrt().masked_fill(squares_p == 0, 0.0)

    def unit_rows(self) -> PaddedMatrix:
        """Rows scaled to unit length; rows of zeros stay."""
        scales_e = self.scales()[self.rows_e.clamp_max(self.num_rows - 1)]
        return PaddedMatrix(self.num_rows, self.rows_e, self.columns_e, self.values_e * scales_e)

    def trimmed(self, num_entries: int) -> PaddedMatrix:
        """The first entries alone."""
        kept = slice(num_entries)
        return PaddedMatrix(
            self.num_rows, self.rows_e[kept], self.columns_e[kept], self.values_e[kept]
        )

    def times(self, dense_pb: Tensor) -> Tensor:
        """Product of the matrix, which has no unused entries, with a dense one, (p, b)."""
        return embedding_bag(
            self.columns_e,
            dense_pb,
            self.starts,
            mode="sum",
            per_sample_weights=self.values_e,
            include_last_offset=True,
        )


@dataclass(frozen=True)
class Spread:
    """The product of weights with a matrix: row i is sum_t weights[i, t] matrix[near[i, t]].

    Attributes:
        near_pk: row numbers.
        weights_pk: float64; where 0, the row number does not matter.
        matrix: what is multiplied.
    """

    near_pk: Tensor
    weights_pk: Tensor
    matrix: PaddedMatrix

    def size(self) -> Tensor:
        """Number of entries of all summands, (): the room that the product needs."""
        return self._ends()[-1]

    def product(self, room: int) -> PaddedMatrix:
        """The product, made in `room` entries, at least its size."""
        num_rows, width = self.weights_pk.shape
        ends = self._ends()
        entries_e = torch.arange(room, device=ends.device)
        parents_e = torch.searchsorted(ends, entries_e, right=True)
        used_e = parents_e < len(ends)
        parents_e = parents_e.clamp_max(len(ends) - 1)
        # The summands lie behind one another: an entry is as far from the end of its summand as
        # that of the matrix is from the end of its row.
        row_ends = self.matrix.starts[1:][self.near_pk.clamp_min(0)].flatten()
        taken_e = row_ends[parents_e] - ends[parents_e] + entries_e
        taken_e = taken_e.masked_fill(~used_e, 0)
        return PaddedMatrix.summed(
            num_rows,
            torch.where(used_e, parents_e // width, num_rows),
            self.matrix.columns_e[taken_e],
            self.matrix.values_e[taken_e] * self.weights_pk.flatten()[parents_e],
        )

    def _ends(self) -> Tensor:
        """End of each summand among the entries of all, (p k,)."""
        lengths_pk = self.matrix.starts.diff()[self.near_pk.clamp_min(0)]
        return lengths_pk.masked_fill(self.weights_pk == 0, 0).flatten().cumsum(0)


def _sums(values_e: Tensor, lengths: Tensor) -> Tensor:
    """Sums over successive segments of the given lengths."""
    sums: Tensor = torch.segment_reduce(values_e, "sum", lengths=lengths, unsafe=True, initial=0.0)
    return sums
