"""CSV files and text files as a table: the same that `ParquetFiles` are of Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv

from conr_ray.data.sources.fetching import opened_here
from conr_ray.data.sources.files import FoundFile, Location
from conr_ray.data.sources.patterns import FileSet, split_of
from conr_ray.data.sources.walk import as_text
from conr_ray.errors import UserError, one_line

ENDINGS = frozenset({"csv", "tsv", "txt"})
SPLIT = "split"
PATH = "path"
_SEPARATORS = ",;\t|"
_HEAD_BYTES = 2**16


class CsvFiles:
    """The rows of CSV files, sorted by path, in memory.

    The first line names the columns. Commas, semicolons, tabs and bars are understood. A .txt file
    has no such line, and a path on each of the others.
    """

    def __init__(self, text: str, as_words: Sequence[str]) -> None:
        """Of a file, a folder or a pattern; nothing is read yet.

        Args:
            text: of `data.path`.
            as_words: columns that are text, whatever is in them.
        """
        self._set, self._as_words = FileSet(text, ENDINGS, "CSV file"), as_words

    @property
    def files(self) -> list[FoundFile]:
        """The files; see `FileSet`."""
        return self._set.files

    @property
    def base(self) -> Location:
        """The folder that their names are below, or the file."""
        return self._set.base

    @property
    def left_out(self) -> dict[str, int]:
        """What else a folder holds."""
        return dict(self._set.left_out)

    @cached_property
    def _tables(self) -> list[Any]:
        return [self._table(number) for number in range(len(self.files))]

    def _table(self, number: int) -> Any:
        location, shown = self._set.location_of(number), as_text(self.files[number].name)
        where = f"{shown} is " if shown else ""
        try:
            with opened_here(location) as file:
                data = file.read()
            if location.path.partition("?")[0].lower().endswith(".txt"):
                table = pa.table({PATH: pa.array(_lines(data), pa.string())})
            else:
                table = self._parsed(data)
        except FileNotFoundError:
            raise UserError(
                f"data.path={self._set.text}: {where}no such file; name a CSV file, or a folder of "
                "them"
            ) from None
        except UnicodeDecodeError:
            problem = f"{where}not in UTF-8"
        except pa.ArrowException as error:
            problem = f"{where}not a CSV file ({one_line(error)})"
        else:
            split = split_of(self.files[number].name)
            if split is not None and SPLIT not in table.column_names:
                table = table.append_column(SPLIT, pa.repeat(pa.scalar(split), len(table)))
            return table
        raise UserError(
            f"data.path={self._set.text}: {problem}; give a table with the names of its columns "
            "in the first line, in UTF-8"
        )

    def _parsed(self, data: bytes) -> Any:
        first = data[:_HEAD_BYTES].lstrip(b"\xef\xbb\xbf").partition(b"\n")[0].decode()
        separator = max(_SEPARATORS, key=first.count)
        # A whole number may stand for a name; text of all columns is not needed.
        kinds = {name: pa.string() for name in self._as_words}
        return csv.read_csv(
            pa.BufferReader(data),
            read_options=csv.ReadOptions(use_threads=False, block_size=2**26),
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=kinds, strings_can_be_null=True, null_values=[""]
            ),
        )

    @property
    def schema(self) -> Any:
        """The Arrow schema of the first file."""
        return self._tables[0].schema

    @property
    def names(self) -> list[str]:
        """Columns of the first file."""
        return list(self.schema.names)

    def type_of(self, name: str) -> Any:
        """The Arrow type of a column in the first file."""
        return self.schema.field(name).type

    @property
    def group_sizes(self) -> list[int]:
        """Number of rows of each file."""
        return [len(table) for table in self._tables]

    @property
    def num_rows(self) -> int:
        """Number of rows of all files."""
        return sum(self.group_sizes)

    def place(self, row: int) -> str:
        """Where a row is, for messages."""
        number = 0
        while row >= len(self._tables[number]):
            row, number = row - len(self._tables[number]), number + 1
        name = as_text(self.files[number].name)
        return f"row {row}" + (f" of {name}" if name else "")

    def batches(self, group: int, column: str, rows: int) -> Iterator[Any]:
        """A column of a file, at most so many rows at a time."""
        self._check_has(group, [column])
        for batch in self._tables[group].select([column]).to_batches(rows):
            yield batch.column(0)

    def read(self, names: Sequence[str]) -> Any:
        """Some whole columns as an Arrow table; types of several files become one."""
        for number in range(len(self._tables)):
            self._check_has(number, names)
        parts = [table.select(list(names)) for table in self._tables]
        return pa.concat_tables(parts, promote_options="permissive")

    def _check_has(self, number: int, names: Sequence[str]) -> None:
        found = self._tables[number].column_names
        for name in names:
            if found.count(name) != 1:
                shown = as_text(self.files[number].name)
                raise UserError(
                    f"data.path={self._set.text}: {shown} has {found.count(name)} columns {name}, "
                    "of which the first file has one; leave the file out, or repair it"
                )


def _lines(data: bytes) -> list[str]:
    found = data.decode("utf-8-sig").splitlines()
    return [line.strip() for line in found if line.strip()]
