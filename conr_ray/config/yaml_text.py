"""Read YAML 1.2 strictly, and write YAML that reads back unchanged.

PyYAML's parser, in C, only splits a text into events: what they mean is decided here, since its own
rules are those of YAML 1.1, keep the last of two equal keys and have no bounds. An unquoted scalar
stays a `Word` until the declared type of its field decides what it is: see `declared`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from conr_ray.errors import UserError
from conr_ray.fields import short

_DEEPEST = 32
# A text's characters, and some for each of its values, with what its aliases stand for.
_LARGEST = 2**20
_VALUE_SIZE = 16
_LONGEST_KEY = 200
_LONGEST_NUMBER = 100

_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLS = {
    word: word.lower() == "true" for b in ("true", "false") for word in (b, b.title(), b.upper())
}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotYaml(UserError):
    """A text that is not YAML."""


class Word(str):
    """An unquoted scalar, as written."""

    __slots__ = ()

    def value(self) -> str | int | float | bool | None:
        """What YAML 1.2 takes it for where no type is declared."""
        text = str(self)
        if text in _NULLS:
            return None
        if text in _BOOLS:
            return _BOOLS[text]
        if len(text) > _LONGEST_NUMBER:
            return text
        if _INT.fullmatch(text):
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return int(text, base)
        if _FLOAT.fullmatch(text):
            return float(text.replace(".", "", 1) if text[-1] in "fFnN" else text)
        return text


def parse_yaml(text: str, source: str, *, empty: bool = False) -> Any:
    """The mappings, lists, words and quoted texts of one document; keys are text.

    Args:
        text: the document.
        source: what it is, for errors.
        empty: whether it may be empty or null, a word then.

    Raises:
        UserError: it is empty or not YAML, sets a key twice, or is too large or too deep; the
            message begins with `source`.
    """
    try:
        if len(text) > _LARGEST:
            raise _Refused("is longer than 1 MiB: shorten it")
        tree = _Reader().tree(yaml.parse(text, Loader=_LOADER))
    except _Refused as refused:
        raise UserError(f"{source}: {refused}") from None
    # A lone surrogate is a UnicodeError.
    except (yaml.YAMLError, UnicodeError) as error:
        raise NotYaml(f"{source}: not YAML: {_reason(error)}") from None
    if isinstance(tree, Word) and tree.value() is None and not empty:
        raise UserError(f"{source}: is empty: restore it, or write it anew")
    return tree


def read_yaml(path: str | Path, option: str, remedy: str) -> Any:
    """`parse_yaml` of the file `path`, the value of `option`; errors end with `remedy`."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
    # A name with a null byte is a ValueError, as is text in another encoding.
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"{option} {path}: {reason}; {remedy}") from None
    return parse_yaml(text, f"{option} {path}")


class _Dumper(yaml.SafeDumper):
    """Quotes texts that look like numbers, in YAML 1.1 or 1.2."""


for _pattern in (_INT, _FLOAT):
    _Dumper.add_implicit_resolver(
        "a number", re.compile(rf"(?:{_pattern.pattern})\Z"), list("+-.0123456789")
    )


def dump_yaml(tree: Any) -> str:
    """`tree` as YAML that reads back unchanged, whether or not types are declared."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False))


class _Refused(Exception):
    """What is wrong with a document, and the remedy."""


@dataclass
class _Value:
    """A read value with its size and depth, which an alias repeats."""

    content: Any
    size: int
    depth: int = 0


@dataclass
class _Open:
    """A list or mapping whose end has not been read."""

    value: _Value
    anchor: str | None
    key: str | None = None
    lines: dict[str, int] = field(default_factory=dict)


class _Reader:
    """Builds a tree from a parser's events, without recursion."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._anchors: dict[str, _Value] = {}
        self._root: _Value | None = None

    def tree(self, events: Iterator[Any]) -> Any:
        """The only document; an empty word if there is none."""
        for event in events:
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent) and self._root is not None:
                raise _Refused(f"line {line}: a second document: keep one")
            if isinstance(event, yaml.NodeEvent):
                self._node(event, line)
            elif isinstance(event, yaml.CollectionEndEvent):
                ended = self._open.pop()
                self._add(ended.value, ended.anchor, line)
        return Word() if self._root is None else self._root.content

    def _node(self, event: Any, line: int) -> None:
        if getattr(event, "tag", None) is not None:
            raise _Refused(f"line {line}: has the tag {short(event.tag)}: leave tags out")
        if isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)
            if name not in self._anchors:
                raise _Refused(f"line {line}: *{short(name)} stands for nothing above it")
            self._add(self._anchors[name], None, line)
        elif isinstance(event, yaml.ScalarEvent):
            text = Word(event.value) if event.implicit[0] else event.value
            self._add(_Value(text, _VALUE_SIZE + len(text)), event.anchor, line)
        else:
            items: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            self._open.append(_Open(_Value(items, _VALUE_SIZE, 1), event.anchor))
            self._check_depth(0, line)

    def _check_depth(self, depth: int, line: int) -> None:
        if len(self._open) + depth > _DEEPEST:
            raise _Refused(f"line {line}: more than {_DEEPEST} levels deep: nest less")

    def _add(self, value: _Value, anchor: str | None, line: int) -> None:
        """Put a whole value into the innermost open list or mapping."""
        if anchor is not None:
            self._anchors[anchor] = value
        if not self._open:
            self._root = value
            return
        self._check_depth(value.depth, line)
        parent = self._open[-1]
        if isinstance(parent.value.content, list):
            parent.value.content.append(value.content)
        elif parent.key is None:
            parent.key = self._new_key(value.content, line)
        else:
            parent.value.content[parent.key] = value.content
            parent.key = None
        parent.value.depth = max(parent.value.depth, value.depth + 1)
        parent.value.size += value.size
        if parent.value.size > _LARGEST:
            raise _Refused(f"line {line}: too many values, with those of its aliases: have fewer")

    def _new_key(self, content: Any, line: int) -> str:
        if not isinstance(content, str):
            raise _Refused(f"line {line}: a key is a word, not {short(str(content))}")
        key, lines = str(content), self._open[-1].lines
        if len(key) > _LONGEST_KEY:
            raise _Refused(f"line {line}: {short(key)}: no key is that long")
        if key in lines:
            above = [opened.key for opened in self._open[:-1] if opened.key is not None]
            name = short(".".join([*above, key]))
            raise _Refused(f"{name} is set on line {lines[key]} and on line {line}: keep one")
        lines[key] = line
        return key


def _reason(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None and problem:
        return f"line {mark.line + 1}: {short(problem)}"
    return short(" ".join(str(error).split()))
