"""The parts of a page: sections of charts, tables, pictures and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from conr_ray.reporting.names import number, precise

# A longer table is no help to a reader who cannot see the chart.
MOST_ROWS = 60
# Pixels of a side up to which an image is enlarged without smoothing.
_TINY = 40


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text and its sort key."""

    text: str
    order: float | str

    @property
    def is_sorted_by_number(self) -> bool:
        """Whether the cell represents a number."""
        return isinstance(self.order, float)

    @classmethod
    def of_metric(cls, value: float | None) -> Cell:
        """The cell of a metric, to four decimals."""
        return cls.of(value, None if value is None else precise(value))

    @classmethod
    def of(cls, value: Any, text: str | None = None) -> Cell:
        """The cell of a value; `text` overrides how it is written."""
        order: float | str = str(value)
        if isinstance(value, int | float):
            order = float(value)
        return cls(number(value) if text is None else text, "" if value is None else order)


@dataclass(frozen=True)
class Table:
    """Columns by name, and rows of cells.

    An interactive table can be sorted by its headers, and filtered by a row's text and by the
    values of one column.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    interactive: bool = False
    choices: Sequence[str] = ()
    choice_column: int = 0

    @classmethod
    def of(cls, caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
        """A plain table of values."""
        cells = [[v if isinstance(v, Cell) else Cell.of(v) for v in row] for row in rows]
        return cls(caption, columns, cells)

    @property
    def numbers_in(self) -> list[bool]:
        """For each column, whether it holds only numbers, which are right-aligned."""
        found = []
        for column in range(len(self.columns)):
            known = [row[column] for row in self.rows if row[column].order != ""]
            found.append(bool(known) and all(cell.is_sorted_by_number for cell in known))
        return found


@dataclass(frozen=True)
class View:
    """One view of a chart: a Plotly figure, its caption, and its data if small."""

    label: str
    figure: Any
    caption: str
    table: Table | None = None
    # Ranges of x and y that show only the group stage.
    group_stage: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Chart:
    """A chart of one view, or of several to choose from; without a title below its section's.

    If `close`, a chart that can show the group stage alone does so at first.
    """

    kind: ClassVar[str] = "chart"
    title: str
    views: Sequence[View]
    choice: str = ""
    # A square chart keeps its shape on a narrow screen.
    square: bool = False
    close: bool = False
    # Width in pixels below which the chart scrolls.
    min_width: int = 0
    height: int = 400


@dataclass(frozen=True)
class Fact:
    """A value in the headline."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Facts:
    """The headline."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[Fact]


@dataclass(frozen=True)
class Picture:
    """An image with its alt text, which names its file.

    `data` is a PNG or JPEG file. Its mark is `right`, `wrong`, `hard` or empty. `file` is the
    absolute path of the whole image, if it can be reached from here.
    """

    data: bytes
    alt: str
    mark: str = ""
    file: str | None = None

    @property
    def is_tiny(self) -> bool:
        """Whether its pixels are to be seen as such."""
        # Of a PNG: width and height are in its first bytes.
        known = self.data.startswith(b"\x89PNG")
        return known and max(self.data[16:20], self.data[20:24]) <= _TINY.to_bytes(4, "big")


@dataclass(frozen=True)
class PictureRow:
    """Pictures side by side, with a name."""

    name: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class PictureGroup:
    """Rows of pictures of one query (with its picture) or one cluster."""

    title: str
    rows: Sequence[PictureRow]
    head: Picture | None = None


@dataclass(frozen=True)
class Pictures:
    """Groups of pictures with a caption; `marked` ones get a legend."""

    kind: ClassVar[str] = "pictures"
    title: str
    caption: str
    groups: Sequence[PictureGroup]
    marked: bool = False


@dataclass(frozen=True)
class Code:
    """The text of a file."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclass(frozen=True)
class Note:
    """A line in place of something that cannot be shown."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Columns:
    """Blocks of the same kind side by side; stacked on a narrow screen."""

    kind: ClassVar[str] = "columns"
    parts: Sequence[tuple[str, Sequence[Any]]]


Block = Table | Chart | Facts | Pictures | Code | Note | Columns


@dataclass(frozen=True)
class Section:
    """A part of the page; `anchor` is its id in links."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    intro: str = ""


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: the heading.
        subtitle: one line on the page's subject.
        headline: the main figures.
        sections: in order.
        state: progress, if the page reloads itself; else empty.
        hints: text shown for the trial under the pointer, by its number.
    """

    title: str
    subtitle: str
    headline: Facts
    sections: Sequence[Section]
    state: str = ""
    hints: dict[int, str] = field(default_factory=dict)
