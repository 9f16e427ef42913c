"""One browser on one run or prediction: the clusters as they are now, and a person's steps.

Shapes: n samples, d embedding width.
"""

from __future__ import annotations

import datetime
import io
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from conr_ray.browsing import near
from conr_ray.browsing.collection import Collection
from conr_ray.browsing.findings import Findings, Found
from conr_ray.browsing.halves import in_two, mean_of
from conr_ray.browsing.thumbnails import Thumbnails
from conr_ray.edits.folder import read_edits, write_edits
from conr_ray.edits.log import JUNK, Edit, called, sorted_ids, told
from conr_ray.errors import UserError
from conr_ray.storage.locks import FileLocks

Rows = npt.NDArray[np.int64]

# Contexts of the images of a prediction, whose run may be out of reach.
_K1, _K2 = 20, 5
_MAP_SAMPLES = 2000


@dataclass(frozen=True)
class ClusterRow:
    """A cluster: its number, its name if it has one, and how many samples are in it."""

    number: int
    name: str
    size: int


class Session:
    """What the page shows and does. Its methods may be called by several threads."""

    def __init__(self, collection: Collection) -> None:
        """Read the edits that are there, and keep other browsers out.

        Raises:
            UserError: another browser has this run open, or the edits are of other clusters.
        """
        self.collection = collection
        folder = collection.folder
        self._lock = threading.RLock()
        self._held = FileLocks(folder.uri)("browse") if folder.is_local else nullcontext()
        held = self._held.__enter__()
        if held is not None and not held.acquired():
            raise UserError(
                f"{folder.uri}: another browser has it open: use its page, or end it first"
            )
        try:
            self.log = read_edits(folder, collection.fingerprint)
            self.findings = Findings(collection)
        except BaseException:
            self._held.__exit__(None, None, None)
            raise
        columns = collection.columns
        self.thumbnails = Thumbnails(columns.folder, len(columns), collection.pictures)
        self._closed = False
        self._search_run: Any = None
        self._positions: tuple[Rows, npt.NDArray[np.float32]] | None = None
        self._id_order: Rows | None = None
        self._arrange()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another browser in; closing twice is as closing once."""
        if self._closed:
            return
        self._closed = True
        self.thumbnails.close()
        self._held.__exit__(None, None, None)

    def _arrange(self) -> None:
        """Sort the samples by the clusters that they are in now, the surest first."""
        columns = self.collection.columns
        clusters_n = self.log.clusters(columns.ids_n, columns.clusters_n)
        order_n = np.lexsort((columns.ratios_n, clusters_n)).astype(np.int32)
        self._clusters_n = clusters_n.astype(np.int32)
        self._order_n = order_n
        numbers, starts = np.unique(self._clusters_n[order_n], return_index=True)
        ends = np.append(starts[1:], len(order_n))
        self._spans = {
            int(number): (int(start), int(end))
            for number, start, end in zip(numbers, starts, ends, strict=True)
        }
        self.names = self.log.names()

    @property
    def clusters(self) -> list[ClusterRow]:
        """Those with samples, the largest first, junk last."""
        with self._lock:
            rows = [
                ClusterRow(number, self.names.get(number, ""), end - start)
                for number, (start, end) in self._spans.items()
            ]
        return sorted(rows, key=lambda row: (row.number == JUNK, -row.size, row.number))

    def called(self, cluster: int) -> str:
        """The name of a cluster, or its number."""
        return called(cluster, self.names)

    def size(self, cluster: int) -> int:
        """Samples in a cluster."""
        start, end = self._span(cluster)
        return end - start

    def _span(self, cluster: int) -> tuple[int, int]:
        found = self._spans.get(cluster)
        if found is None:
            raise UserError(f"cluster={cluster}: no cluster of this number has images: go back")
        return found

    def members(self, cluster: int, start: int, count: int, *, least_sure: bool = False) -> Rows:
        """Some of the rows of a cluster, the surest first, or the least sure."""
        with self._lock:
            first, end = self._span(cluster)
            rows = self._order_n[first:end]
            if least_sure:
                rows = rows[::-1]
            return rows[start : start + count].astype(np.int64)

    def cluster_of(self, row: int) -> int:
        """The cluster of a row."""
        return int(self._clusters_n[self.checked_row(row)])

    def found(self, kind: str) -> list[Found]:
        """What `conr_ray.curate` has found of a kind and is left to look at.

        Raises:
            UserError: nothing of this kind was found.
        """
        with self._lock:
            return self.findings.left(
                kind, self._clusters_n.astype(np.int64), self.log, self.called
            )

    def checked_row(self, row: int) -> int:
        """The row; a UserError if there is none of this number."""
        if not 0 <= row < len(self.collection.columns):
            raise UserError(f"image={row}: there is no such image: go back")
        return row

    # What a person does. Each is written before it shows.

    def merge(self, clusters: Sequence[int], into: int | None = None) -> str:
        """Put clusters into one of them, by default the largest; returns what was done."""
        chosen = tuple(dict.fromkeys(clusters))
        for cluster in chosen:
            self._span(cluster)
        if into is None:
            if not chosen:
                raise UserError("merge: no cluster is chosen: choose two or more")
            into = max(chosen, key=self.size)
        return self._do(Edit("merge", chosen, into))

    def junk_cluster(self, cluster: int) -> str:
        """Mark all samples of a cluster as junk."""
        self._span(cluster)
        return self._do(Edit("merge", (cluster,), JUNK))

    def junk_found(self, kind: str) -> str:
        """Mark all that is left of what was found of a kind as junk, but for copies to keep."""
        with self._lock:
            return self.move([one.row for one in self.found(kind) if not one.keep], JUNK)

    def rename(self, cluster: int, name: str) -> str:
        """Give a cluster a name; an empty one takes it away."""
        self._span(cluster)
        return self._do(Edit("rename", (cluster,), name=" ".join(name.split())))

    def move(self, rows: Sequence[int], into: int | None) -> str:
        """Put samples into a cluster, `JUNK` among them, or into a new one if it is None."""
        with self._lock:
            chosen = np.unique([self.checked_row(row) for row in rows]).astype(np.int64)
            ids = sorted_ids(self.collection.columns.ids_n[chosen])
            if into is not None:
                if into != JUNK:
                    self._span(into)
                return self._do(Edit("move", (), into, sample_ids_m=ids))
            new = self.log.unused(self._all_numbers())
            homes = {int(self._clusters_n[row]) for row in chosen}
            if len(homes) == 1 and len(chosen) < self.size(home := homes.pop()):
                # New images may then follow, where embeddings are at hand.
                centers = self._two_means(home, chosen)
                return self._do(Edit("split", (home,), new, "", ids, centers))
            return self._do(Edit("move", (), new, sample_ids_m=ids))

    def split(self, cluster: int) -> str:
        """Split a cluster in two by its embeddings.

        Raises:
            UserError: it has one sample or equal ones, or there are no embeddings.
        """
        with self._lock:
            rows = self.members(cluster, 0, self.size(cluster))
            if len(rows) < 2:
                raise UserError(
                    f"split={self.called(cluster)}: it has one image: choose a larger cluster"
                )
            goes_m, centers_2d = in_two(self.collection.embeddings_nd, np.sort(rows))
            if centers_2d is None:
                raise UserError(
                    f"split={self.called(cluster)}: its images are equal to the networks: choose "
                    "images and move them to a new cluster"
                )
            new = self.log.unused(self._all_numbers())
            ids = sorted_ids(self.collection.columns.ids_n[np.sort(rows)[goes_m]])
            return self._do(Edit("split", (cluster,), new, "", ids, centers_2d))

    def undo(self) -> str:
        """Take the last step back."""
        with self._lock:
            active = self.log.active
            said = told(active[-1], self.names) if active else ""
            self._do(Edit("undo"))
            return f"taken back: {said}"

    def _all_numbers(self) -> set[int]:
        columns = self.collection.columns
        return {*self._spans, int(columns.clusters_n.max(initial=0))}

    def _do(self, step: Edit) -> str:
        with self._lock:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            log = self.log.with_step(replace(step, at=now))
            said = told(step, self.names)
            write_edits(self.collection.folder, log, self.collection.fingerprint)
            self.log = log
            self._arrange()
            return said

    def _two_means(self, cluster: int, goes: Rows) -> npt.NDArray[np.float32] | None:
        try:
            embeddings_nd = self.collection.embeddings_nd
        except UserError:
            return None
        rows = self.members(cluster, 0, self.size(cluster))
        stays = np.setdiff1d(rows, goes)
        return np.stack([mean_of(embeddings_nd, stays), mean_of(embeddings_nd, goes)])

    # What a person asks.

    def neighbors(self, row: int, count: int) -> dict[str, Rows]:
        """The neighbours of a sample by each kind.

        Raises:
            UserError: there are no embeddings.
        """
        embeddings_nd = self.collection.embeddings_nd
        config = getattr(self.collection, "config", None)
        k1, k2 = _K1, _K2
        if config is not None:
            k1, k2 = config.neighborhood.k1, config.neighborhood.k2
        return {
            "contextual": near.contextual(embeddings_nd, row, count, k1=k1, k2=k2),
            "euclidean": near.euclidean(embeddings_nd, row, count),
        }

    def search(self, content: bytes, count: int) -> tuple[Rows, int]:
        """The samples nearest to a picture by the run's networks, and the picture's cluster.

        Raises:
            UserError: it is no picture, or the run is out of reach.
        """
        run, form = self._searcher()
        from conr_ray.data.decoding import conformed, open_encoded

        try:
            pixels = conformed(open_encoded(content), form.shape, form.stored_size)
        # Decoders raise errors of many kinds.
        except Exception:
            raise UserError("picture: it cannot be read as an image: choose another file") from None
        placed = run.place(pixels[None])
        rows = near.nearest(
            self.collection.embeddings_nd, placed.embeddings_nd[0].numpy(force=True), count
        )
        return rows, int(placed.clusters_n[0])

    def _searcher(self) -> tuple[Any, Any]:
        with self._lock:
            if self._search_run is None:
                from conr_ray.engine.trained_run import TrainedRun
                from conr_ray.prediction.samples import SampleForm

                collection = self.collection
                if not collection.run_uri:
                    raise UserError(
                        f"{collection.title}: vectors of no run, by which a picture could be "
                        "placed: look for the neighbours of an image instead"
                    )
                run = TrainedRun.load(collection.run_uri, num_clusters=collection.num_clusters)
                form = SampleForm(run.sample_shape, run.config.data.stored_size)
                if form.kind == "vectors":
                    raise UserError(
                        f"{collection.run_uri}: it was trained on vectors, and a picture is none: "
                        "look for the neighbours of an image instead"
                    )
                self._search_run = run, form
            found: tuple[Any, Any] = self._search_run
            return found

    def positions(self) -> tuple[Rows, npt.NDArray[np.float32]]:
        """Some rows, evenly spaced, and their places on a map (m, 2); made once.

        Raises:
            UserError: there are no embeddings.
        """
        with self._lock:
            if self._positions is None:
                self._positions = self._drawn()
            return self._positions

    def _drawn(self) -> tuple[Rows, npt.NDArray[np.float32]]:
        path = self.collection.columns.folder / "map.npz"
        if path.exists():
            with np.load(path) as stored:
                return stored["rows"], stored["positions"]
        from conr_ray.tracking.embedding_map import map_2d

        embeddings_nd = self.collection.embeddings_nd
        count = min(len(embeddings_nd), _MAP_SAMPLES)
        rows = np.arange(count) * len(embeddings_nd) // count
        positions = map_2d(np.array(embeddings_nd[rows]))
        buffer = io.BytesIO()
        np.savez(buffer, rows=rows, positions=positions)
        path.write_bytes(buffer.getvalue())
        return rows, positions
