"""What `conr_ray.curate` has found among the samples that are browsed, as far as it is left.

Shapes: n samples, m findings of a kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from conr_ray.browsing.collection import Collection, Rows
from conr_ray.curation.about import BROKEN, DUPLICATE, KINDS, MEMBER, TABLE
from conr_ray.edits.log import JUNK, EditLog
from conr_ray.errors import UserError

_COLUMNS = ("index", "kind", "group", "keep", "precision", "reason")


@dataclass(frozen=True)
class Found:
    """One sample that was found.

    Attributes:
        row: of the collection.
        group: of duplicates, which belong together; of a wrong member, the cluster that its context
            votes for, as it is now; else 0.
        keep: whether it is the one to keep of its group of duplicates.
        note: what is said of it.
    """

    row: int
    group: int = 0
    keep: bool = False
    note: str = ""


class Findings:
    """The findings of a curation, by kind and in its order, the surest first."""

    def __init__(self, collection: Collection) -> None:
        """Read them, if there are any.

        Raises:
            UserError: they are of other samples, or damaged.
        """
        self._of_kind: dict[str, pa.Table] = {}
        self._rows_of_kind: dict[str, Rows] = {}
        folder = collection.curation
        table = None if folder is None else folder.read_table(TABLE)
        if folder is None or table is None:
            return
        try:
            if not set(_COLUMNS) <= set(table.column_names):
                raise KeyError
            rows_m = collection.rows_found(table)
        except KeyError:
            raise UserError(
                f"{folder.uri}/{TABLE}: no findings about these samples: look anew with python -m "
                "conr_ray.curate, or move it away"
            ) from None
        # Wrong members are those of the run's own clusters.
        kinds = [k for k in KINDS if k != MEMBER or collection.num_clusters is None]
        for kind in kinds:
            same_m = pc.equal(table.column("kind"), kind).to_numpy(zero_copy_only=False)
            chosen = np.flatnonzero(same_m & (rows_m >= 0))
            if len(chosen):
                self._of_kind[kind] = table.select(_COLUMNS).take(pa.array(chosen))
                self._rows_of_kind[kind] = rows_m[chosen].astype(np.int64)

    @property
    def kinds(self) -> dict[str, int]:
        """The kinds of which something was found, and how many samples."""
        return {kind: len(rows) for kind, rows in self._rows_of_kind.items()}

    def left(
        self,
        kind: str,
        clusters_n: Rows,
        log: EditLog,
        called: Callable[[int], str],
    ) -> list[Found]:
        """What is left of a kind: of samples that are not junk, nor where their context wants them.

        Of a group of duplicates, the first that is left is the one to keep; a group of which one is
        left is none.

        Args:
            kind: one of `kinds`.
            clusters_n: the clusters of all samples now.
            log: the steps that have led to them.
            called: gives the name of a cluster.

        Raises:
            UserError: nothing of this kind was found.
        """
        if kind not in self._rows_of_kind:
            raise UserError(f"kind={kind}: nothing of this kind was found: go back")
        rows_m, table = self._rows_of_kind[kind], self._of_kind[kind]
        there_m = np.flatnonzero(clusters_n[rows_m] != JUNK)
        if kind == DUPLICATE:
            return _copies(rows_m[there_m], table.take(pa.array(there_m)))
        notes = [""] * len(rows_m)
        groups_m = np.zeros(len(rows_m), np.int64)
        if kind == MEMBER:
            groups_m = log.merged(table.column("group").to_numpy())
            there_m = there_m[clusters_n[rows_m[there_m]] != groups_m[there_m]]
            own = clusters_n[rows_m].tolist()
            notes = [
                f"in {called(one)}, its context in {called(other)}"
                for one, other in zip(own, groups_m.tolist(), strict=True)
            ]
            # Together with those that go to the same cluster.
            there_m = there_m[np.argsort(groups_m[there_m], kind="stable")]
        elif kind == BROKEN:
            notes = [reason or "" for reason in table.column("reason").to_pylist()]
        return [Found(int(rows_m[at]), int(groups_m[at]), note=notes[at]) for at in there_m]


def _copies(rows_m: Rows, table: pa.Table) -> list[Found]:
    """The groups of copies with two or more, that to keep first."""
    groups_m = table.column("group").to_numpy()
    keep_m = table.column("keep").fill_null(False).to_numpy(zero_copy_only=False)
    order_m = np.lexsort((~keep_m, groups_m))
    sizes = dict(
        zip(*(part.tolist() for part in np.unique(groups_m, return_counts=True)), strict=True)
    )
    found: list[Found] = []
    for at in order_m.tolist():
        group = int(groups_m[at])
        if sizes[group] > 1:
            first = not found or found[-1].group != group
            found.append(Found(int(rows_m[at]), group, first, "keep" if first else "copy"))
    return found
