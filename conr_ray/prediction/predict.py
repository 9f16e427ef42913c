"""Predict samples into a folder: list, leave out what is done, place, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from conr_ray.prediction.output import PredictionDirectory, Writer
from conr_ray.prediction.progress import PredictionProgress
from conr_ray.prediction.samples import NewSamples
from conr_ray.storage.patience import PatientFolder, patient

_PART_ROWS = 8192
# A slow prediction loses no more than this when it is killed.
_PART_S = 60.0

Placed = Callable[[Iterable[pa.Table]], Iterator[pa.Table]]
"""From the pieces that are left to rows of a prediction."""


@dataclass(frozen=True)
class Outcome:
    """What a prediction has done.

    Attributes:
        num_samples: in the folder, earlier ones among them.
        num_new: predicted now.
        num_clusters: with samples in the folder.
        confident: share of the samples in the folder; None if the run does not know.
        num_errors: that could not be read.
        first_reason: why the first of these could not.
    """

    num_samples: int
    num_new: int
    num_clusters: int
    confident: float | None
    num_errors: int
    first_reason: str


def predict(
    samples: NewSamples,
    about: Mapping[str, Any],
    out: str,
    placed: Placed,
    progress: PredictionProgress,
    *,
    again: bool = False,
    part_rows: int = _PART_ROWS,
) -> Outcome:
    """Predict what is not yet in the folder `out`; with `again`, all.

    `about` is what prediction.json tells of run and samples.

    Raises:
        UserError: the folder holds another prediction, or another process predicts into it.
    """
    directory = PredictionDirectory(PatientFolder(out), samples.keys)
    with directory.held():
        first, taken_over = directory.claim(about, again=again)
        done = directory.done()
        writer = Writer(directory, part_rows, first)

        def left() -> Iterator[pa.Table]:
            for piece in samples.pieces():
                some = done.left(piece, samples.keys)
                progress.passed(len(piece) - len(some))
                if len(some):
                    yield some

        written = time.monotonic()
        for rows in placed(left()):
            writer.add(rows)
            progress.worked(len(rows))
            if time.monotonic() - written > _PART_S:
                writer.flush()
                written = time.monotonic()
        writer.flush()
        replaced = writer.replaced > 0 and not again
        directory.tidy(has_older=done.has_older or replaced or taken_over)
        directory.finish(pa.concat_tables(writer.errors) if writer.errors else None)
        return _outcome(directory, writer)


def _outcome(directory: PredictionDirectory, writer: Writer) -> Outcome:
    num_samples = num_confident = 0
    clusters: set[int] = set()
    knows = True
    for number in directory.part_numbers():
        part = directory.read_part(number, ("cluster", "confident"))
        num_samples += len(part)
        clusters.update(pc.unique(part.column("cluster")).to_pylist())
        knows &= part.column("confident").null_count == 0
        num_confident += pc.sum(part.column("confident")).as_py() or 0
    return Outcome(
        num_samples=num_samples,
        num_new=writer.predicted,
        num_clusters=len(clusters),
        confident=num_confident / num_samples if num_samples and knows else None,
        num_errors=writer.num_errors,
        first_reason=writer.errors[0].column("reason")[0].as_py() if writer.errors else "",
    )


def counted(samples: NewSamples, *, is_local: bool) -> int:
    """How many samples there are; asks an object store again."""
    return patient(samples.count, is_local)()
