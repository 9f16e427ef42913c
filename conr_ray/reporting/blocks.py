"""What a page is made of: sections of charts, tables, pictures and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from conr_ray.reporting.names import number, precise

# A table this long does not help who cannot see the chart.
MOST_ROWS = 60


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what stands there, and what it is sorted by."""

    text: str
    order: float | str

    @property
    def is_sorted_by_number(self) -> bool:
        """Whether it stands for a number, in whatever words."""
        return isinstance(self.order, float)

    @classmethod
    def of_metric(cls, value: float | None) -> Cell:
        """The cell of a metric: four places, so that a column can be compared."""
        return cls.of(value, None if value is None else precise(value))

    @classmethod
    def of(cls, value: Any, text: str | None = None) -> Cell:
        """The cell of a value; `text` where it is written in another way."""
        order: float | str = str(value)
        if isinstance(value, int | float):
            order = float(value)
        return cls(number(value) if text is None else text, "" if value is None else order)


@dataclass(frozen=True)
class Table:
    """Columns by name, and rows of cells.

    An interactive one is sorted by its headers and filtered by what a row contains, and by the
    words of one of its columns.
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
        """Whether all that a column holds are numbers, which are set to the right; of each."""
        found = []
        for column in range(len(self.columns)):
            known = [row[column] for row in self.rows if row[column].order != ""]
            found.append(bool(known) and all(cell.is_sorted_by_number for cell in known))
        return found


@dataclass(frozen=True)
class View:
    """One view of a chart: a Plotly figure, what it shows in words, its data where it is small."""

    label: str
    figure: Any
    caption: str
    table: Table | None = None
    # Ranges of x and y that show the group stage alone.
    group_stage: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Chart:
    """A chart of one view, or of several to choose from; without a title below its section's.

    One that can show the group stage alone does so first where `close` says so.
    """

    kind: ClassVar[str] = "chart"
    title: str
    views: Sequence[View]
    choice: str = ""
    # A square one keeps its shape on a narrow screen.
    square: bool = False
    close: bool = False
    # Pixels below which it scrolls in its own box.
    min_width: int = 0
    height: int = 400


@dataclass(frozen=True)
class Fact:
    """A figure of the headline."""

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
    """An image with what it shows; its mark is `right`, `wrong`, `hard` or nothing."""

    png: bytes
    alt: str
    mark: str = ""


@dataclass(frozen=True)
class PictureRow:
    """Pictures side by side behind a name."""

    name: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class PictureGroup:
    """Rows of pictures that belong together: of a query with its picture, or of a cluster."""

    title: str
    rows: Sequence[PictureRow]
    head: Picture | None = None


@dataclass(frozen=True)
class Pictures:
    """Groups of pictures with what they show in words; `marked` ones get a legend."""

    kind: ClassVar[str] = "pictures"
    title: str
    caption: str
    groups: Sequence[PictureGroup]
    marked: bool = False


@dataclass(frozen=True)
class Code:
    """A text as it is in a file."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclass(frozen=True)
class Note:
    """A line in place of what cannot be shown."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Columns:
    """Blocks of the same kind side by side, one below the other on a narrow screen."""

    kind: ClassVar[str] = "columns"
    parts: Sequence[tuple[str, Sequence[Any]]]


Block = Table | Chart | Facts | Pictures | Code | Note | Columns


@dataclass(frozen=True)
class Section:
    """A part of the page; `anchor` is its place in links."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    intro: str = ""


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: its heading.
        subtitle: what it is about, in a line.
        headline: its main figures.
        sections: in their order.
        state: what is going on, where the page reloads itself; else empty.
        hints: what a chart tells of the trial that is pointed at, by its number.
    """

    title: str
    subtitle: str
    headline: Facts
    sections: Sequence[Section]
    state: str = ""
    hints: dict[int, str] = field(default_factory=dict)
