"""The pages of a browser as HTML."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from conr_ray.browsing.session import Session
from conr_ray.curation.about import TITLES
from conr_ray.edits.log import JUNK
from conr_ray.errors import UserError

CLUSTERS_SHOWN, IMAGES_SHOWN, NEIGHBORS_SHOWN, FOUND_SHOWN = 20, 60, 20, 40
_TYPICAL, _BOUNDARY = 8, 4


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=ChoiceLoader(
            [PackageLoader("conr_ray.browsing"), PackageLoader("conr_ray.reporting")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def static_file(name: str) -> str | None:
    """The text of a style or script; None if there is none of this name."""
    if name not in ("report.css", "browse.css", "browse.js"):
        return None
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


class Pages:
    """Writes the pages of a session; each method also returns the rows whose pictures it shows."""

    def __init__(self, session: Session) -> None:
        """Nothing is written yet."""
        self._session = session
        self._key = session.collection.columns.folder.name[:12]

    def thumb(self, row: int) -> str:
        """The address of a sample's picture."""
        return f"/thumb/{self._key}/{row}"

    def clusters(self, page: int, said: tuple[str, bool]) -> tuple[str, list[int]]:
        """All clusters, each with typical images and some at its boundary."""
        session = self._session
        clusters = session.clusters
        last = max(1, -(-len(clusters) // CLUSTERS_SHOWN))
        page = min(max(1, page), last)
        shown, rows = [], []
        for row in clusters[(page - 1) * CLUSTERS_SHOWN : page * CLUSTERS_SHOWN]:
            typical = session.members(row.number, 0, _TYPICAL).tolist()
            left = min(_BOUNDARY, row.size - len(typical))
            boundary = session.members(row.number, 0, left, least_sure=True).tolist()
            shown.append({"row": row, "typical": typical, "boundary": boundary})
            rows += [*typical, *boundary]
        heading = f"{len(clusters)} clusters"
        fields = {"shown": shown, "page": page, "last": last}
        return self._page("clusters", heading, f"/?page={page}", said, **fields), rows

    def cluster(
        self, cluster: int, page: int, least: bool, said: tuple[str, bool]
    ) -> tuple[str, list[int]]:
        """The images of a cluster.

        Raises:
            UserError: it has none.
        """
        session = self._session
        size = session.size(cluster)
        last = max(1, -(-size // IMAGES_SHOWN))
        page = min(max(1, page), last)
        rows = session.members(
            cluster, (page - 1) * IMAGES_SHOWN, IMAGES_SHOWN, least_sure=least
        ).tolist()
        others = [one for one in session.clusters if one.number not in (cluster, JUNK)]
        back = f"/cluster/{cluster}?page={page}" + ("&order=least" if least else "")
        fields = {"cluster": cluster, "size": size, "page": page, "last": last, "least": least}
        heading = session.called(cluster)
        return self._page("cluster", heading, back, said, rows=rows, others=others, **fields), rows

    def found(self, kind: str, page: int, said: tuple[str, bool]) -> tuple[str, list[int]]:
        """What was found of a kind and is left, in groups where it belongs together.

        Raises:
            UserError: nothing of this kind was found.
        """
        found = self._session.found(kind)
        last = max(1, -(-len(found) // IMAGES_SHOWN))
        page = min(max(1, page), last)
        shown = found[(page - 1) * IMAGES_SHOWN : page * IMAGES_SHOWN]
        groups = [list(some) for _, some in itertools.groupby(shown, lambda one: one.group)]
        spare = sum(not one.keep for one in found)
        place = f"/found/{kind.replace(' ', '-')}"
        fields = {"kind": kind, "groups": groups, "spare": spare, "page": page, "last": last}
        heading = TITLES[kind]
        html = self._page("found", heading, f"{place}?page={page}", said, place=place, **fields)
        return html, [one.row for one in shown]

    def image(self, row: int, said: tuple[str, bool]) -> tuple[str, list[int]]:
        """An image with its neighbours of both kinds.

        Raises:
            UserError: there is no such image.
        """
        session = self._session
        cluster = session.cluster_of(row)
        lists: dict[str, list[int]] = {}
        problem = ""
        try:
            found = session.neighbors(row, NEIGHBORS_SHOWN)
            lists = {kind: rows.tolist() for kind, rows in found.items()}
        except UserError as error:
            problem = str(error)
        fields = {"row": row, "cluster": cluster, "lists": lists, "problem": problem}
        html = self._page("image", session.collection.name(row), f"/image/{row}", said, **fields)
        return html, [row, *(one for rows in lists.values() for one in rows)]

    def map(self, said: tuple[str, bool]) -> str:
        """The map, whose points come after."""
        problem, points = "", 0
        try:
            points = len(self._session.positions()[0])
        except UserError as error:
            problem = str(error)
        return self._page("map", "Map", "/map", said, problem=problem, points=points)

    def search(
        self, said: tuple[str, bool], rows: Sequence[int] = (), cluster: int | None = None
    ) -> str:
        """The form for a picture, and what was found."""
        found = list(rows)
        return self._page("search", "Search by image", "/search", said, rows=found, cluster=cluster)

    def chosen(self, rows: Sequence[int]) -> str:
        """The images inside a lasso."""
        template = _environment().get_template("chosen.html.j2")
        shown = IMAGES_SHOWN
        return template.render(rows=rows, shown=shown, session=self._session, thumb=self.thumb)

    def _page(
        self, view: str, heading: str, back: str, said: tuple[str, bool], **fields: Any
    ) -> str:
        return (
            _environment()
            .get_template("browse.html.j2")
            .render(
                view=view,
                heading=heading,
                back=back,
                said=said[0],
                said_error=said[1],
                session=self._session,
                thumb=self.thumb,
                junk=JUNK,
                titles=TITLES,
                **fields,
            )
            .lstrip()
        )
