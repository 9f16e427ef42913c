"""The clusters of a clusterer as HTML for notebooks: sizes, shares and typical images."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from conr_ray.data.store import DataSet
from conr_ray.edits.log import JUNK

_EACH = 6
_MOST_CLUSTERS = 50
_SIDE = 48
_PNG = b"\x89PNG"


@dataclass(frozen=True)
class Example:
    """A typical image of a cluster: the bytes of its file, and its path if it has one."""

    picture: bytes
    name: str


def typical(
    data: DataSet, clusters_n: npt.NDArray[np.int64], ratios_n: npt.NDArray[np.float32]
) -> dict[int, list[Example]]:
    """A few images of each cluster, those with the least boundary ratios; none of vectors."""
    found: dict[int, list[Example]] = {}
    if data.what == "vectors":
        return found
    for cluster in np.unique(clusters_n)[:_MOST_CLUSTERS].tolist():
        rows = np.flatnonzero(clusters_n == cluster)
        nearest = rows[np.argsort(ratios_n[rows], kind="stable")[:_EACH]].tolist()
        names = [f"row {row}" if data.names is None else data.names[row] for row in nearest]
        pictures = [data.picture(row) or b"" for row in nearest]
        found[cluster] = [Example(p, n) for p, n in zip(pictures, names, strict=True)]
    return found


def as_html(
    title: str,
    clusters_n: npt.NDArray[np.int64],
    examples: dict[int, list[Example]],
) -> str:
    """A table with a row for each of at most 50 clusters in use, the largest first."""
    clusters_c, sizes_c = np.unique(clusters_n, return_counts=True)
    order = np.argsort(-sizes_c, kind="stable").tolist()
    rows = [
        Markup("<tr><td>{}</td><td>{:,}</td><td>{:.1%}</td><td>{}</td></tr>").format(
            "junk" if clusters_c[place] == JUNK else clusters_c[place],
            sizes_c[place],
            sizes_c[place] / len(clusters_n),
            Markup("").join(map(_image, examples.get(int(clusters_c[place]), []))),
        )
        for place in order[:_MOST_CLUSTERS]
    ]
    left = len(order) - len(rows)
    more = Markup("<p>{} smaller clusters are not shown</p>").format(left) if left else ""
    head = Markup("<tr><th>cluster</th><th>size</th><th>share</th><th>nearest to it</th></tr>")
    table = Markup("<table>{}{}</table>").format(head, Markup("").join(rows))
    return str(Markup("<div><p>{}</p>{}{}</div>").format(escape(title), table, more))


def _image(example: Example) -> Markup:
    kind = "png" if example.picture.startswith(_PNG) else "jpeg"
    return Markup(
        '<img src="data:image/{};base64,{}" alt="{}" title="{}" height="{}" '
        'style="display:inline;margin:1px;image-rendering:pixelated">'
    ).format(kind, b64encode(example.picture).decode(), example.name, example.name, _SIDE)
