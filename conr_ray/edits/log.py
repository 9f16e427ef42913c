"""What a person has changed in a clustering, step by step, and the clusters that it gives.

Steps are about clusters by their number and samples by their id, so that they hold for any part of
the samples, in any order. `JUNK` is a cluster like the others.

Shapes: n samples, m samples of a step, d embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from conr_ray.errors import UserError, printable

Kind = Literal["merge", "split", "move", "rename", "undo"]
Ids = npt.NDArray[np.int64]

JUNK = -1
LONGEST_NAME = 80
_NONE: Ids = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Edit:
    """One step.

    Attributes:
        kind: merge puts `clusters` into `into`; split takes the samples out of its one cluster into
            `into`, a new one; move puts samples into `into`; rename gives its cluster `name`, none
            if that is empty; undo takes back the last step that is not taken back.
        clusters: numbers.
        into: number.
        name: of a cluster.
        sample_ids_m: int64, sorted.
        centers_2d: float32, of a split: means of the unit-length embeddings of what stays and of
            what goes, so that samples that nobody has seen can be split likewise; None if unknown.
        at: when, in ISO 8601.
    """

    kind: Kind
    clusters: tuple[int, ...] = ()
    into: int | None = None
    name: str = ""
    sample_ids_m: Ids = field(default_factory=lambda: _NONE)
    centers_2d: npt.NDArray[np.float32] | None = None
    at: str = ""

    @property
    def target(self) -> int:
        """`into` of a merge, split or move, which have it."""
        assert self.into is not None, f"a {self.kind} has a cluster to go to"
        return self.into


@dataclass(frozen=True)
class EditLog:
    """All steps in their order, those that are taken back and the undoing of them included."""

    steps: tuple[Edit, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def active(self) -> tuple[Edit, ...]:
        """The steps that hold."""
        held: list[Edit] = []
        for step in self.steps:
            if step.kind != "undo":
                held.append(step)
            elif held:
                held.pop()
        return tuple(held)

    def with_step(self, step: Edit) -> EditLog:
        """The log with one more step.

        Raises:
            UserError: it cannot be done: nothing to take back, a name that another cluster has, a
                merge of one cluster, or no samples.
        """
        active = self.active
        if step.kind == "undo" and not active:
            raise UserError("undo: nothing has been changed: there is no step to take back")
        if step.kind == "merge" and not set(step.clusters) - {step.into}:
            raise UserError(f"merge={step.clusters}: one cluster alone: choose two or more")
        if step.kind in ("split", "move") and not len(step.sample_ids_m):
            raise UserError(f"{step.kind}: no images are chosen: choose some")
        if step.kind == "rename":
            [cluster] = step.clusters
            check_names({**self.names(), **({cluster: step.name} if step.name else {})})
        return EditLog((*self.steps, step))

    def clusters(self, sample_ids_n: Ids, clusters_n: Ids) -> npt.NDArray[np.int64]:
        """The clusters of samples of which `clusters_n` are those before all steps, (n,)."""
        found_n = np.array(clusters_n, np.int64)
        order_n = None
        for step in self.active:
            if step.kind == "merge":
                found_n[np.isin(found_n, step.clusters)] = step.target
            elif step.kind in ("split", "move"):
                if order_n is None:
                    order_n = np.argsort(sample_ids_n, kind="stable")
                    sorted_n = sample_ids_n[order_n]
                places_m = np.searchsorted(sorted_n, step.sample_ids_m)
                there_m = places_m < len(sorted_n)
                there_m[there_m] = sorted_n[places_m[there_m]] == step.sample_ids_m[there_m]
                found_n[order_n[places_m[there_m]]] = step.target
        return found_n

    def merged(self, clusters_m: Ids) -> Ids:
        """Where the clusters before all steps are now, by the merges alone, (m,)."""
        found_m = np.array(clusters_m, np.int64)
        for step in self.active:
            if step.kind == "merge":
                found_m[np.isin(found_m, step.clusters)] = step.target
        return found_m

    def names(self) -> dict[int, str]:
        """Names by cluster, of those that have one. A merged cluster's name is free again."""
        found: dict[int, str] = {}
        for step in self.active:
            if step.kind == "merge":
                for cluster in step.clusters:
                    name = found.pop(cluster, None) if cluster != step.into else None
                    if name and step.into != JUNK:
                        found.setdefault(step.target, name)
            elif step.kind == "rename":
                if step.name:
                    found[step.clusters[0]] = step.name
                else:
                    found.pop(step.clusters[0], None)
        return dict(sorted(found.items()))

    def fixed(self) -> dict[int, int]:
        """Samples that a person has put where they are, by id, and their clusters now."""
        found: dict[int, int] = {}
        for step in self.active:
            if step.kind == "merge":
                merged = set(step.clusters)
                found = {i: step.target if c in merged else c for i, c in found.items()}
            elif step.kind in ("split", "move"):
                found.update(dict.fromkeys(step.sample_ids_m.tolist(), step.target))
        return found

    def unused(self, clusters: Iterable[int]) -> int:
        """A number that no cluster has or has had."""
        used = {JUNK, *clusters}
        for step in self.steps:
            used.update(step.clusters)
            if step.into is not None:
                used.add(step.into)
        return max(used) + 1


def check_names(names: Mapping[int, Any]) -> dict[int, str]:
    """Names by cluster.

    Raises:
        UserError: one is used twice, is no text of one line, or is too long.
    """
    first: dict[str, int] = {}
    for cluster, name in names.items():
        if not isinstance(name, str) or not name.strip() or name != printable(name):
            raise UserError(f"name={name!r}: not a word or more in one line: choose another")
        if len(name) > LONGEST_NAME:
            raise UserError(
                f"name={name}: {len(name)} characters: choose one of at most {LONGEST_NAME}"
            )
        key = " ".join(name.split()).casefold()
        if key in first:
            raise UserError(
                f"name={name}: cluster {first[key]} has this name already: choose another, or "
                f"merge clusters {first[key]} and {cluster}"
            )
        first[key] = cluster
    return dict(names)


def told(step: Edit, names: Mapping[int, str]) -> str:
    """What a step does, in a line."""
    many = f"{len(step.sample_ids_m):,} image{'' if len(step.sample_ids_m) == 1 else 's'}"
    into = "" if step.into is None else called(step.into, names)
    if step.kind == "merge":
        whole = ", ".join(called(c, names) for c in step.clusters if c != step.into)
        return f"put {whole} into {into}"
    if step.kind == "split":
        return f"split {called(step.clusters[0], names)}: {many} are {into} now"
    if step.kind == "move":
        return f"moved {many} to {into}"
    if step.kind == "rename":
        cluster = step.clusters[0]
        return f"named cluster {cluster} {step.name}" if step.name else f"unnamed cluster {cluster}"
    return "took the last step back"


def called(cluster: int, names: Mapping[int, str]) -> str:
    """What a cluster is called on pages and in tables."""
    if cluster in names:
        return names[cluster]
    return "junk" if cluster == JUNK else f"cluster {cluster}"


def sorted_ids(sample_ids: Sequence[int] | Ids) -> Ids:
    """Ids as a step has them."""
    return np.unique(np.asarray(sample_ids, np.int64))
