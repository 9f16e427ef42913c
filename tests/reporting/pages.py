"""What a page says, read with the standard library's parser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import plotly.offline

VOID = {"meta", "img", "input", "link", "br"}


class Page(HTMLParser):
    """The elements of a page in their order; refuses tags that do not close one another."""

    def __init__(self, html: str) -> None:
        super().__init__()
        # It is long, and what it says is not ours.
        html = html.replace(plotly.offline.get_plotlyjs(), "", 1)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self._texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif self._open and self._open[-1] != "style":
            self._texts.append(data.strip())

    @property
    def text(self) -> str:
        """All that can be read."""
        return " ".join(part for part in self._texts if part)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """Attributes of the elements of a tag that have those."""
        wanted = {name.rstrip("_").replace("_", "-"): v for name, v in attributes.items()}
        return [
            found
            for name, found in self.elements
            if name == tag and wanted.items() <= found.items()
        ]

    @property
    def charts(self) -> list[Any]:
        """The views of each chart, as the page's script gets them."""
        return [json.loads(text) for text in self.scripts if text.startswith('[{"figure"')]

    @property
    def sections(self) -> list[str]:
        """Anchors of its sections."""
        return [found["id"] for found in self.all("section")]
