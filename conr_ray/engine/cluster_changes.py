"""What became of the clusters of an earlier run: kept, split, merged, new or gone.

Shapes: a earlier clusters, c clusters.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv

from conr_ray.errors import UserError, one_line
from conr_ray.storage.files import Folder

FILE_NAME = "cluster_changes.csv"
# Parts of a cluster that are told: at least this share of it.
_LEAST_PART = 0.05
# Below this share of samples with their number, they may not be the same samples.
_FEW = 0.5
# What may become of a number.
KINDS = ("kept", "split", "merged", "split and merged", "new", "gone")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ClusterChanges:
    """Clusters with their numbers, and the earlier ones that these are from.

    A cluster *came from* an earlier one if more than half of its samples were in that one, and an
    earlier one *went into* a cluster if more than half of its own samples are there. What more than
    one came from was split; into what more than one went, they were merged. Samples that only one
    of both clusterings holds count for sizes alone.

    Attributes:
        earlier: numbers of the earlier clusters.
        numbers_c: numbers of the clusters.
        counts_ac: samples that both hold.
        sizes_before_a: of the earlier clusters.
        sizes_c: of the clusters.
        names_before: names of the earlier clusters by number.
        first_free_before: above all numbers that were used before.
    """

    earlier: tuple[int, ...]
    numbers_c: Ints
    counts_ac: Ints
    sizes_before_a: Ints
    sizes_c: Ints
    names_before: Mapping[int, str]
    first_free_before: int

    @property
    def numbers(self) -> list[int]:
        """Of the clusters."""
        found: list[int] = self.numbers_c.tolist()
        return found

    @property
    def first_free(self) -> int:
        """Above all numbers that are or were used."""
        return max(self.first_free_before, int(self.numbers_c.max()) + 1)

    @property
    def is_the_same(self) -> bool:
        """Whether both are the same clusters of the same samples."""
        return bool(
            (np.count_nonzero(self.counts_ac, axis=0) == 1).all()
            and (np.count_nonzero(self.counts_ac, axis=1) == 1).all()
            and self.counts_ac.sum() == self.sizes_c.sum() == self.sizes_before_a.sum()
        )

    def _kept(self, number: int) -> int:
        """Samples that were and are in the cluster of a number."""
        if number not in self.earlier or number not in self.numbers:
            return 0
        return int(self.counts_ac[self.earlier.index(number), self.numbers.index(number)])

    @cached_property
    def kinds(self) -> dict[int, str]:
        """By number, of before and now: one of `KINDS`."""
        came_ac = 2 * self.counts_ac > self.counts_ac.sum(0, keepdims=True)
        went_ac = 2 * self.counts_ac > self.counts_ac.sum(1, keepdims=True)
        split = dict(zip(self.earlier, (came_ac.sum(1) > 1).tolist(), strict=True))
        merged = dict(zip(self.numbers, (went_ac.sum(0) > 1).tolist(), strict=True))
        found: dict[int, str] = {}
        for number in sorted({*self.earlier, *self.numbers}):
            if number not in merged:
                found[number] = "gone"
            elif number not in split:
                found[number] = "new"
            else:
                words = [w for w, is_so in (("split", split), ("merged", merged)) if is_so[number]]
                found[number] = " and ".join(words) or "kept"
        return found

    @property
    def table(self) -> pa.Table:
        """A row for each number, of before and now."""
        return pa.Table.from_pylist([self._row(number) for number in self.kinds])

    def write(self, folder: Folder) -> None:
        """Write cluster_changes.csv.

        Raises:
            StorageError: it cannot be written.
        """
        buffer = io.BytesIO()
        pacsv.write_csv(self.table, buffer)
        folder.write_bytes(FILE_NAME, buffer.getvalue())

    def _row(self, number: int) -> dict[str, object]:
        before, now = number in self.earlier, number in self.numbers
        was = self.earlier.index(number) if before else 0
        place = self.numbers.index(number) if now else 0
        return {
            "cluster": number,
            "name": self.names_before.get(number, ""),
            "change": self.kinds[number],
            "samples_before": int(self.sizes_before_a[was]) if before else 0,
            "samples": int(self.sizes_c[place]) if now else 0,
            "in_both": int(self.counts_ac[:, place].sum()) if now else 0,
            "kept": self._kept(number),
            "came_from": _parts(self.earlier, self.counts_ac[:, place]) if now else "",
            "went_to": _parts(self.numbers, self.counts_ac[was]) if before else "",
        }


def read_changes(folder: Folder) -> list[str]:
    """Lines on what has changed in a folder of clusters; none where nothing is known.

    Raises:
        UserError: the file is damaged.
    """
    data = folder.read_bytes(FILE_NAME)
    if data is None:
        return []
    try:
        texts = dict.fromkeys(("name", "change", "came_from", "went_to"), pa.string())
        table = pacsv.read_csv(
            io.BytesIO(data), convert_options=pacsv.ConvertOptions(column_types=texts)
        )
        return [*told_of(table), f"cluster by cluster: {folder.uri}/{FILE_NAME}"]
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(
            f"{folder.uri}/{FILE_NAME} is damaged ({one_line(error)}): delete it"
        ) from None


def told_of(table: pa.Table) -> list[str]:
    """What the rows of cluster_changes.csv say, in lines."""
    rows = table.to_pylist()
    common, kept = (sum(row[name] for row in rows) for name in ("in_both", "kept"))
    names = {row["cluster"]: row["name"] for row in rows if row["name"]}
    told = [f"{kept / max(common, 1):.1%} of the {common:,} samples that were there before"]
    told[0] += " keep their cluster's number"
    before = sum(row["change"] != "new" for row in rows)
    same = sum(row["change"] == "kept" for row in rows)
    parts = [f"{same} of {before} clusters kept"]
    for kind in KINDS[1:]:
        those = [row["cluster"] for row in rows if row["change"] == kind]
        if those:
            parts.append(f"{kind} {', '.join(_called(number, names) for number in those)}")
    if common and kept < _FEW * common:
        told.append(
            "fewer than half: the clusters are others, or samples that are known by their row are "
            "in another order"
        )
    return [*told, "; ".join(parts)]


def _called(number: int, names: Mapping[int, str]) -> str:
    return f"{number} ({names[number]})" if number in names else str(number)


def _parts(numbers: tuple[int, ...] | list[int], counts: Ints) -> str:
    """Such as 3: 412; 7: 60, the largest first."""
    least = max(1, _LEAST_PART * int(counts.sum()))
    order = np.argsort(-counts, kind="stable").tolist()
    return "; ".join(f"{numbers[i]}: {counts[i]}" for i in order if counts[i] >= least)
