"""Look for everything that is to be cleaned in a set of samples.

Memory holds a few numbers of each sample, and the contexts of wrong members, if clusters are known;
vectors, thumbnails and neighbours lie in files of a folder that is deleted afterwards. Time is
near-linear in the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from conr_ray.curation import duplicates
from conr_ray.curation.alignment import DESCRIPTOR, descriptors
from conr_ray.curation.cells import Neighbors, nearest
from conr_ray.curation.findings import Findings
from conr_ray.curation.members import wrong_members
from conr_ray.curation.outliers import outliers
from conr_ray.curation.pictures import Pictures, Thumbnails
from conr_ray.curation.samples import Samples

_NEIGHBORS = 20
# Of thumbnails: their neighbours only propose pairs.
_PROBES = 4
# Deviation of pixels below which a picture shows nothing: what re-encoding adds to one colour.
_BLANK = 2.0


def curated(
    samples: Samples, pictures: Pictures | None, folder: Path, told: Callable[[str], None]
) -> Findings:
    """All findings.

    Args:
        samples: with their vectors.
        pictures: of the samples; None looks at vectors alone.
        folder: for files on the way.
        told: is called with what begins now.

    Raises:
        UserError: no picture can be read.
    """
    told("neighbours")
    neighbors = nearest(samples.vectors_nd, _NEIGHBORS, folder / "near")
    notes, broken, blank = [], dict(samples.broken), {}
    areas_n, thresholds = None, {}
    if pictures is None:
        told("duplicates")
        pairs = duplicates.by_vectors(neighbors)
        notes.append(
            "Pictures were not looked at: duplicates are those of vectors alone, which is less "
            "sure, and blank or broken pictures were not sought."
        )
        thresholds["duplicate"] = f"cosine of at least {pairs.threshold:.4f}"
    else:
        told("pictures")
        thumbnails = pictures.thumbnails(samples.num_rows, folder)
        broken = {**thumbnails.unread, **broken}
        contrasts_n = thumbnails.contrasts_n
        blank = {
            row: float(contrasts_n[row])
            for row in np.flatnonzero(thumbnails.has_n & (contrasts_n < _BLANK)).tolist()
        }
        told("duplicates")
        pairs = _by_pixels(neighbors, thumbnails, folder)
        areas_n = thumbnails.areas_n
        thresholds["duplicate"] = f"likeness of at least {pairs.threshold:.3f}"
        if pairs.recall is not None:
            thresholds["duplicate"] += f", which {pairs.recall:.1%} of planted copies have"
        thresholds["blank"] = f"contrast below {_BLANK:g} of 127"
    groups = duplicates.groups_of(pairs, samples.num_rows, areas_n)
    told("outliers")
    far = outliers(samples, neighbors)
    thresholds["outlier"] = f"score of at least {far.threshold:.3f}"
    members = None
    if samples.clusters_n is None:
        notes.append("Clusters are not known: wrong members were not sought.")
    else:
        told("members")
        sound_n = np.ones(samples.num_rows, bool)
        sound_n[list(samples.broken)] = False
        members = wrong_members(neighbors, samples.clusters_n, sound_n)
        thresholds["wrong member"] = "votes nearly as strong as members of the other cluster get"
    return Findings(
        samples.num_rows, samples.keys, groups, far, members, blank, broken, thresholds, notes
    )


def _by_pixels(neighbors: Neighbors, thumbnails: Thumbnails, folder: Path) -> duplicates.Pairs:
    shape = len(thumbnails.areas_n), DESCRIPTOR
    place = folder / "descriptors.npy"
    vectors_n = np.lib.format.open_memmap(place, "w+", np.float32, shape)
    descriptors(thumbnails.pixels_n, vectors_n)
    alike = nearest(vectors_n, duplicates.CANDIDATES, folder / "alike", probes=_PROBES)
    return duplicates.by_pixels(neighbors, alike, thumbnails)
