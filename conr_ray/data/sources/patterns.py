"""Which files a path stands for: one, those of a folder, or those of a pattern."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import PurePosixPath

from pyarrow import fs

from conr_ray.data.sources.files import FoundFile, Location, locate
from conr_ray.data.sources.layout import SPLITS
from conr_ray.data.sources.picture_files import ending_of, kind_of
from conr_ray.data.sources.walk import Walk
from conr_ray.errors import StorageError, UserError, one_line

_SHARD = re.compile(r"([A-Za-z]+)[-_.]\d+(-of-\d+)?$")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_OF_BRACES = 1_000_000


class FileSet:
    """The files at a path, sorted; locally, in a store or on a web server.

    Attributes:
        text: the path, as it was written.
        left_out: what else a folder holds, and how many of each kind; known after `files`.
    """

    def __init__(self, text: str, endings: Collection[str], what: str) -> None:
        """Those of a file, a folder or a pattern such as data/train-*.parquet, {00..31}.tar.

        Args:
            text: of `data.path`; nothing is read yet.
            endings: those of the files in a folder, in small letters.
            what: such files are called, in messages.
        """
        self.text, self._endings, self._what = text, endings, what
        self.left_out: Counter[str] = Counter()

    @cached_property
    def base(self) -> Location:
        """The folder that the names of `files` are below, or the file."""
        return locate(self._parsed[0])

    @cached_property
    def _parsed(self) -> tuple[str, list[tuple[str, ...]]]:
        """The path of `base`, and the parts of the patterns below it; none without a pattern."""
        is_uri = "://" in self.text
        if not is_uri and locate(self.text).kind() != fs.FileType.NotFound:
            return self.text, []
        # In URIs a question mark begins something else.
        path, mark, query = self.text.partition("?") if is_uri else (self.text, "", "")
        patterns = [pattern.split("/") for pattern in written_out(path)]
        first, shortest = patterns[0], min(map(len, patterns))
        if len(patterns) == 1 and not any(map(_has_signs, first)):
            return self.text, []
        depth = 0
        while depth < shortest - 1 and not _has_signs(first[depth]):
            if any(parts[depth] != first[depth] for parts in patterns):
                break
            depth += 1
        base = "/".join(first[:depth]) or ("/" if path.startswith("/") else ".")
        return base + mark + query, [tuple(filter(None, parts[depth:])) for parts in patterns]

    @cached_property
    def files(self) -> list[FoundFile]:
        """The files, by their paths below `base`; "" is `base` itself.

        Raises:
            UserError: there are none.
        """
        try:
            if patterns := self._parsed[1]:
                found = list(self._of(patterns))
            elif (kind := self.base.kind()) == fs.FileType.Directory:
                found = list(self._in_folder())
            elif kind == fs.FileType.NotFound:
                return [FoundFile("", 0, 0)]
            else:
                return [self.base.file()]
        except StorageError:
            raise
        # A path with a zero byte is a ValueError; what stores raise is of many kinds.
        except Exception as error:
            raise UserError(
                f"data.path={self.text}: cannot be listed ({one_line(error)}); name a "
                f"{self._what}, or a folder of them"
            ) from None
        if not found:
            raise UserError(
                f"data.path={self.text}: no {self._what}s; name a {self._what}, or a folder of them"
            )
        return sorted(found, key=lambda file: file.name)

    def _in_folder(self) -> Iterator[FoundFile]:
        walk = Walk(self.base)
        for file in walk:
            if has_ending(file.name, self._endings) and not _is_note(file.name):
                yield file
            else:
                self.left_out[kind_of(file.name)] += 1
        self.left_out.update(walk.left_out)

    def _of(self, patterns: list[tuple[str, ...]]) -> Iterator[FoundFile]:
        if not any(_has_signs(part) for parts in patterns for part in parts):
            # Written out: nothing need be listed, which web servers may refuse.
            for parts in patterns:
                name = "/".join(parts)
                found = self.base.below(self.base.path_of(name)).file()
                yield FoundFile(name, found.size, found.mtime_ns)
            return
        for file in self.base.files_below():
            names = PurePosixPath(file.name).parts
            if _is_note(file.name) or any(name.startswith(".") for name in names):
                continue
            if any(_matches(names, pattern) for pattern in patterns):
                yield file

    def location_of(self, number: int) -> Location:
        """Where a file is."""
        return self.base.below(self.base.path_of(self.files[number].name))


def written_out(text: str) -> list[str]:
    """A path with braces, {00..31} or {a,b}, as all the paths that it stands for."""
    done, found = [], [text]
    while found:
        text = found.pop()
        braces = _BRACES.search(text)
        if braces is None:
            done.append(text)
            continue
        words = braces[1].split(",")
        if numbers := _RANGE.fullmatch(braces[1]):
            first, last = int(numbers[1]), int(numbers[2])
            if last - first >= _MOST_OF_BRACES:
                raise UserError(f"data.path={text}: its braces stand for too many files")
            words = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
        elif len(words) < 2:
            # As in a name that has braces.
            done.append(text)
            continue
        found += [text[: braces.start()] + word + text[braces.end() :] for word in reversed(words)]
        if len(found) + len(done) > _MOST_OF_BRACES:
            raise UserError(f"data.path={text}: its braces stand for too many files")
    return done


def has_ending(name: str, endings: Collection[str]) -> bool:
    """Whether a file's name ends with one of `endings`, such as tar or tar.gz."""
    double = ".".join(name.lower().rpartition("/")[2].split(".")[-2:])
    return ending_of(name) in endings or double in endings


def split_of(name: str) -> str | None:
    """The split that a file is called by: the first folder it is in, or its name."""
    *folders, last = name.split("/")
    for part in folders:
        if part.lower() in SPLITS:
            return part
    stem = last.rpartition(".")[0]
    shard = _SHARD.fullmatch(stem)
    word = shard[1] if shard else stem
    return word if word.lower() in SPLITS else None


def _is_note(name: str) -> bool:
    """Whether it is as _SUCCESS and _metadata, by the programs that write such folders."""
    return name.rpartition("/")[2].startswith("_")


def _has_signs(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path is of a pattern, of which ** stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[place:], pattern[1:]) for place in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
