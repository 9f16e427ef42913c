"""Find what the reference pages leave open: `python -m tools.docstrings`.

Of each class, function and method that a directive of a page in `docs` shows, the docstring tells
every parameter or field, the shapes of arrays in letters that the page explains, units of times and
sizes, and what is raised; what is computed as a publication has it names that. The text of a class
outside of its sections (`Args:` and so on) holds for its methods too.

Prints a line for each gap and exits with status 1.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_origin

from conr_ray import errors

ROOT = Path(__file__).parents[1]
# Modules of the method that follow a publication; functions that pages show of the rest do too.
_PUBLISHED = ("frameworks", "stages", "neighbors/reranking.py", "neighbors/contexts.py")
_DIRECTIVE = re.compile(r"^ *\.\. auto(\w+):: *(\S+)\n((?: +:.*\n)*)", re.MULTILINE)
_MEMBERS = re.compile(r":members:(.*)")
_LEGEND = re.compile(r"\bShapes: (?:.+\n?)+")
_LETTER = re.compile(r"(?:: |, |; |\band |\bby )([a-z])\b")
_SECTION = re.compile(r"([A-Z]\w+):")
_ENTRY = re.compile(r"^\**([\w.]+):(.*(?:\n(?: +.*)?)*)", re.MULTILINE)
_ARRAY = re.compile(r"\b(Tensor|ndarray|NDArray|ArrayLike)\b")
_SHAPE = re.compile(r"\(([\w.]+,|[\w.]+(?:, ?[\w.]+)+)\)")
_QUANTITY = re.compile(r"(^|_)(age|delay|interval|limit|memory|side|size|time|timeout|wait)(_|$)")
_UNIT = re.compile(r"\b(seconds?|minutes?|hours?|days?|bytes?|[KMG]i?B|pixels?|epochs?|steps?)\b")
# A work by its authors and year, or CoNR's paper by a place in it.
_SOURCE = re.compile(r"\([^()]*[A-Z]\w+[^()]* (19|20)\d\d\b|\bpaper section \d|\beq\. \d")
_SAYS_NOTHING = {"a", "an", "and", "any", "it", "its", "of", "the", "this", "fixme", "tbd", "todo"}
_TOO_WIDE = (Exception, BaseException)


class Docstring:
    """A docstring of Google's form: text, and the entries of its sections."""

    def __init__(self, text: str | None) -> None:
        """Split a text that `inspect.getdoc` has cleaned."""
        parts: dict[str, list[str]] = {"": []}
        inside = ""
        for line in (text or "").splitlines():
            if heading := _SECTION.fullmatch(line):
                inside = heading[1]
                parts.setdefault(inside, [])
                continue
            inside = "" if line[:1].strip() else inside
            parts[inside].append(line)
        self._parts = {name: textwrap.dedent("\n".join(lines)) for name, lines in parts.items()}
        self.text = text or ""
        self.prose = self._parts[""]
        self.of_result = self._parts.get("Returns") or self._parts.get("Yields") or self.prose

    def entries(self, section: str) -> dict[str, str]:
        """Descriptions by name in a section; empty without it."""
        return {name: text.strip() for name, text in _ENTRY.findall(self._parts.get(section, ""))}

    def sentences_on(self, name: str) -> str:
        """What the text outside of sections says with the name in backticks."""
        sentences = re.split(r"(?<=\.)\s+(?=[A-Z`])", self.prose)
        return " ".join(one for one in sentences if re.search(rf"`\**{name}(?!\w)", one))


@dataclass(frozen=True)
class Shown:
    """What a page shows of the code.

    Attributes:
        name: its name on the page.
        doc: its docstring.
        letters: parts of shapes that the page explains.
        code: the function; None of what dataclasses make, and of attributes.
        scope: names that it sees.
        parameters: their annotations, by name.
        section: of the docstring, where parameters are described.
        result: annotation of the result.
        owner: its class, and `around` the docstring of that, for methods.
        published: whether it computes what a publication has.
    """

    name: str
    doc: Docstring
    letters: frozenset[str]
    code: Callable[..., Any] | None
    scope: Mapping[str, Any]
    parameters: Mapping[str, Any]
    section: str = "Args"
    result: Any = None
    owner: type | None = None
    around: Docstring = field(default_factory=lambda: Docstring(""))
    published: bool = False

    def gaps(self) -> Iterator[str]:
        """What the docstring lacks."""
        if not self.doc.prose.strip():
            yield "lacks a docstring"
            return
        own = self.doc.entries(self.section)
        for name, annotation in self.parameters.items():
            yield from self._gaps_of(name, annotation, own.get(name, ""))
        for name in own:
            if name not in self.parameters and not self._has_attribute(name):
                yield f"describes `{name}`, which is not there"
        if self._is_array(self.result) and not self._has_shape(self.doc.of_result):
            yield "lacks the shape of what it returns"
        yield from self._gaps_of_errors()
        if self.published and not _SOURCE.search(self.doc.text):
            yield "lacks the source of its method"

    def _gaps_of(self, name: str, annotation: Any, entry: str) -> Iterator[str]:
        # A method's own sentence may have the shape of something else: of its result.
        text = entry or self.around.sentences_on(name)
        if self.section == "Attributes":
            text = text or self.doc.sentences_on(name)
        told = text or self.doc.sentences_on(name)
        if not _says_more(told, name):
            yield f"lacks what `{name}` is"
        elif self._is_array(annotation) and not self._has_shape(text):
            yield f"lacks the shape of `{name}`"
        counted = re.search(r"\b(int|float)\b", str(annotation)) and _QUANTITY.search(name)
        if counted and not _UNIT.search(told):
            yield f"lacks the unit of `{name}`"

    def _gaps_of_errors(self) -> Iterator[str]:
        entries = self.doc.entries("Raises")
        for name, text in entries.items():
            if _error(name, self.scope) is None:
                yield f"describes `{name}`, which is no exception"
            elif not _says_more(text, name):
                yield f"lacks when it raises {name}"
        words = re.findall(r"\b[A-Z]\w+", f"{self.doc.prose} {self.around.prose}")
        known = [_error(word, self.scope) for word in (*words, *entries)]
        told = tuple(error for error in known if error and error not in _TOO_WIDE)
        for expression, error in _raised(self.code, self.owner).items():
            # Only the docstring can tell the classes of what is not known before it runs.
            if not told if error is None else not issubclass(error, told):
                yield f"lacks when it raises {expression}"

    def _has_attribute(self, name: str) -> bool:
        if self.section != "Attributes" or self.owner is None:
            return False
        own = [one for one in self.owner.__mro__ if _package(one) == _package(self.owner)]
        set_here = any(re.search(rf"self\.{name}\b", inspect.getsource(one)) for one in own)
        return set_here or hasattr(self.owner, name)

    def _is_array(self, annotation: Any) -> bool:
        known = None
        if isinstance(annotation, str):
            try:
                known = eval(annotation, dict(self.scope))
            except (AttributeError, NameError, TypeError):
                known = None  # what only type checkers import
        if get_origin(known) is Callable:
            return False
        return any(_ARRAY.search(str(one)) for one in (annotation, known))

    def _has_shape(self, text: str) -> bool:
        shapes = [re.findall(r"[\w.]+", shape) for shape in _SHAPE.findall(text)]
        explained = any(
            all(part.isdigit() or part == "..." or part in self.letters for part in shape)
            for shape in shapes
        )
        return explained or re.search(r"\bscalar\b", text) is not None


def _says_more(text: str, name: str) -> bool:
    """Whether a description has words beside the name."""
    words = set(re.findall(r"\w+", text.lower().replace(name.lower(), " ")))
    return bool(words - _SAYS_NOTHING - set(name.lower().split("_")))


def _error(name: str, scope: Mapping[str, Any]) -> type[BaseException] | None:
    """The class of exceptions that a name stands for."""
    first, *rest = name.split(".")
    found = scope.get(first, getattr(builtins, first, getattr(errors, first, None)))
    for part in rest:
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _package(thing: Any) -> str:
    """The outermost package that a function or class is from."""
    return str(thing.__module__).partition(".")[0]


def _raised(code: Any, owner: type | None) -> dict[str, type[BaseException] | None]:
    """What a function and private ones that it calls raise: how it is written, and the class."""
    raised: dict[str, type[BaseException] | None] = {}
    waiting, seen = [code], set()
    while waiting:
        function = inspect.unwrap(getattr(one := waiting.pop(), "__func__", one))
        if function in seen or not inspect.isfunction(function):
            continue
        seen.add(function)
        if _package(function) != _package(code):
            continue
        scope = function.__globals__
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            match node:
                case ast.Raise(exc=ast.Call(func=error)) | ast.Raise(exc=ast.expr() as error):
                    written = ast.unparse(error)
                    raised[written] = _error(written, scope)
                case ast.Call(func=ast.Name(id=name)) if name.startswith("_"):
                    waiting.append(scope.get(name))
                case ast.Call(func=ast.Attribute(ast.Name("self" | "cls"), attr=name)):
                    if name.startswith("_"):
                        waiting.append(getattr(owner, name, None))
    return raised


def _function(value: Any) -> Any:
    """The function behind a method, a property or a function; None for anything else."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, cached_property):
        value = value.func
    value = getattr(value, "__func__", value)
    return value if inspect.isfunction(value) else None


def _called(
    name: str, code: Any, doc: Docstring, letters: frozenset[str], owner: type | None = None
) -> Shown:
    """A function, a method, or a class by its constructor."""
    signature = inspect.signature(code)
    annotations = {one.name: one.annotation for one in signature.parameters.values()}
    if owner is not None and not isinstance(owner.__dict__.get(code.__name__), staticmethod):
        annotations.pop(next(iter(annotations)))
    constructs = code.__name__ == "__init__"
    return Shown(
        name,
        doc,
        letters | _letters(doc.text) | {one for one in annotations if len(one) > 1},
        code,
        inspect.unwrap(code).__globals__,
        annotations,
        result=signature.return_annotation,
        owner=owner,
        around=Docstring("" if owner is None or constructs else inspect.getdoc(owner)),
        published=owner is None and code.__module__.startswith("conr_ray.method."),
    )


def _class(name: str, owner: type, letters: frozenset[str], members: str | None) -> Iterator[Shown]:
    """A class, its fields, and those of its members that the page shows."""
    doc = Docstring(inspect.getdoc(owner))
    init = inspect.getattr_static(owner, "__init__")
    constructed = []
    if inspect.isfunction(init) and not dataclasses.is_dataclass(owner):
        constructed = [_called(name, init, doc, letters, owner)]
        letters = constructed[0].letters
    yield from constructed
    fields = {n: kind for n, kind in inspect.get_annotations(owner).items() if n[0] != "_"}
    if doc.prose or not constructed:
        scope = vars(sys.modules[owner.__module__])
        known = letters | _letters(doc.text)
        yield Shown(name, doc, known, None, scope, fields, "Attributes", owner=owner)
    named = (members or "").replace(",", " ").split()
    for member in named or ([] if members is None else [n for n in vars(owner) if n[0] != "_"]):
        value = inspect.getattr_static(owner, member, None)
        if (function := _function(value)) is not None:
            told = Docstring(inspect.getdoc(value) or inspect.getdoc(function))
            yield _called(f"{name}.{member}", function, told, letters, owner)
        elif named and member not in fields:
            raise LookupError(f"{name}.{member}: a page shows it, and it is not there")


def shown(docs: Path) -> Iterator[Shown]:
    """What the pages in a folder show.

    Raises:
        LookupError: a page shows what is not there, or by a directive that is not known here.
    """
    for page in sorted(docs.glob("*.md")):
        text = page.read_text()
        letters = _letters(text)
        for kind, dotted, options in _DIRECTIVE.findall(text):
            module, _, name = dotted.rpartition(".")
            thing = getattr(importlib.import_module(module), name, None)
            members = _MEMBERS.search(options)
            if thing is None:
                raise LookupError(f"{dotted}: {page.name} shows it, and it is not there")
            if kind in ("class", "exception"):
                yield from _class(dotted, thing, letters, members and members[1])
            elif kind == "function":
                yield _called(dotted, thing, Docstring(inspect.getdoc(thing)), letters)
            else:
                raise LookupError(f"{page.name}: auto{kind} is not known to tools/docstrings.py")


def _letters(text: str) -> frozenset[str]:
    """What a text explains as `Shapes: n samples, d width`."""
    return frozenset(_LETTER.findall(" ".join(_LEGEND.findall(text))))


def without_source(method: Path) -> Iterator[str]:
    """Modules of the method that follow a publication and name none."""
    for place in _PUBLISHED:
        found = method / place
        for file in sorted(found.glob("*.py")) if found.is_dir() else [found]:
            text = ast.get_docstring(ast.parse(file.read_text())) or ""
            if file.name not in ("__init__.py", "base.py") and not _SOURCE.search(text):
                yield f"{file.relative_to(method.parents[1])}: lacks the source of its method"


def main() -> None:
    """Print what is found."""
    found = [f"{one.name}: {gap}" for one in shown(ROOT / "docs") for gap in one.gaps()]
    found += without_source(ROOT / "conr_ray" / "method")
    print("\n".join(dict.fromkeys(found)) or "what pages show is documented")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
