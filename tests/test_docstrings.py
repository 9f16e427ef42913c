"""What `make lint` says of docstrings: each kind of gap is found, and the tree has none."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tools.docstrings import ROOT, shown, without_source

PAGE = """# A page

Shapes: n samples, d width, h by w pixels.

```{eval-rst}
.. autofunction:: NAME.scaled

.. autoclass:: NAME.Scaler
   :show-inheritance:
   :members: apply, apply_all, made, widths

.. autoclass:: NAME.Parts
```
"""
MODULE = '''
from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


class Refused(ValueError):
    """A refusal."""


def scaled(rows: Rows, factor: float, *, size: int = 1) -> Rows:
    """Rows times a factor, float32 (n, d).

    Args:
        rows: float32 (n, d), any finite values.
        factor: of each value.
        size: of a block, bytes.

    Raises:
        Refused: a value is not finite.
    """
    return _checked(rows) * factor


def _checked(rows: Rows) -> Rows:
    if not np.isfinite(rows).all():
        raise Refused("rows: not finite")
    return rows


@dataclass(frozen=True)
class Parts:
    """Parts of samples.

    Attributes:
        rows: float32 (n, d), values.
        names: of the samples.
    """

    rows: Rows
    names: list[str]


class Scaler:
    """Scales. The `rows` of all methods are float32 (n, d).

    Args:
        factor: of each value.

    Attributes:
        factor: the same.

    Raises:
        Refused: the factor is 0.
    """

    _errors = {"refused": Refused}

    def __init__(self, factor: float) -> None:
        if not factor:
            raise Refused("factor=0: give another one")
        self.factor = factor

    def apply(self, rows: Rows) -> Parts:
        """Parts of the rows."""
        return Parts(rows * self.factor, [])

    @contextlib.contextmanager
    def apply_all(self, rows: Rows, kind: str):
        """Rows while they hold; `kind` names the error that comes then.

        Raises:
            Refused: of the kind that is asked for.
        """
        yield rows
        error = self._errors[kind]
        raise error("at the end")

    @classmethod
    def made(cls, factor: float) -> Scaler:
        """A scaler by its `factor`, which is made larger."""
        return cls(factor + 1)

    @cached_property
    def widths(self) -> Rows:
        """Width of each sample, float32 (n,)."""
        return np.zeros(1, np.float32)

    def unseen(self, what):
        return what
'''
# What is replaced in the module, by what, and the gap that comes of it.
GAPS = [
    ('    """Parts of samples.', '    """', "Parts: lacks a docstring"),
    ('        """Parts of the rows."""\n', "", "Scaler.apply: lacks a docstring"),
    ("        factor: of each value.\n        size", "        size", "lacks what `factor` is"),
    (
        "        factor: of each value.\n        size",
        "        factor: the factor.\n        size",
        "lacks what `factor`",
    ),
    ("factor: of each value.\n\n", "factor: TODO\n\n", "Scaler: lacks what `factor` is"),
    ("        names: of the samples.\n", "", "Parts: lacks what `names` is"),
    ("by its `factor`, which", "by its factor, which", "Scaler.made: lacks what `factor` is"),
    ("The `rows` of all", "The rows of all", "Scaler.apply: lacks what `rows` is"),
    ("float32 (n, d), any", "float32, any", "scaled: lacks the shape of `rows`"),
    ("float32 (n, d), any", "float32 (n, z), any", "scaled: lacks the shape of `rows`"),
    ("float32 (n, d), any", "float32 (see there), any", "scaled: lacks the shape of `rows`"),
    ("float32 (n, d), values", "values", "Parts: lacks the shape of `rows`"),
    ("factor, float32 (n, d).", "factor.", "scaled: lacks the shape of what it returns"),
    ("sample, float32 (n,).", "sample.", "Scaler.widths: lacks the shape of what it returns"),
    ("of a block, bytes", "of a block", "scaled: lacks the unit of `size`"),
    (
        "        size: of",
        "        sizes: of a\n        size: of",
        "describes `sizes`, which is not",
    ),
    ("        names: of", "        old: gone\n        names: of", "describes `old`, which is not"),
    ("Refused: a value", "Refusal: a value", "describes `Refusal`, which is no exception"),
    ("Refused: a value is not finite.", "Refused:", "scaled: lacks when it raises Refused"),
    ("Refused: a value is", "TypeError: a value is", "scaled: lacks when it raises Refused"),
    ("Refused: a value is", "Exception: a value is", "scaled: lacks when it raises Refused"),
    ("Refused: the factor", "TypeError: the factor", "Scaler: lacks when it raises Refused"),
    ("            Refused: of the", "            ", "Scaler.apply_all: lacks when it raises error"),
]
numbers = itertools.count()


def gaps(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, page: str = PAGE) -> list[str]:
    """The gaps of a page on a module, which is named anew each time, without that name."""
    name = f"documented_{next(numbers)}"
    (folder / f"{name}.py").write_text(module)
    (folder / "page.md").write_text(page.replace("NAME", name))
    monkeypatch.syspath_prepend(str(folder))
    return [
        f"{one.name}: {gap}".removeprefix(f"{name}.") for one in shown(folder) for gap in one.gaps()
    ]


def test_a_module_without_gaps_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gaps(tmp_path, monkeypatch, MODULE) == []
    # A base class of what is raised tells of it.
    told = MODULE.replace("Refused: a value", "ValueError: a value")
    assert gaps(tmp_path, monkeypatch, told) == []


@pytest.mark.parametrize(("old", "new", "gap"), GAPS)
def test_each_kind_of_gap_is_found(
    old: str, new: str, gap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MODULE.count(old) == 1
    found = gaps(tmp_path, monkeypatch, MODULE.replace(old, new))
    assert any(gap in one for one in found), found


def test_all_members_are_looked_at_where_a_page_shows_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGE.replace(":members: apply, apply_all, made, widths", ":members:")
    assert gaps(tmp_path, monkeypatch, MODULE, page) == ["Scaler.unseen: lacks a docstring"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("widths", "heights", "Scaler.heights: a page shows it"),
        ("NAME.Parts", "NAME.Part", "Part: page.md shows it"),
        ("autofunction", "autodata", "page.md: autodata is not known"),
    ],
)
def test_a_page_shows_what_is_there(
    old: str, new: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LookupError, match=told):
        gaps(tmp_path, monkeypatch, MODULE, PAGE.replace(old, new))


def test_modules_of_the_method_name_their_source(tmp_path: Path) -> None:
    method = tmp_path / "package" / "method"
    for name in ("frameworks/a", "stages/b", "neighbors/reranking", "neighbors/contexts"):
        (method / name).parent.mkdir(parents=True, exist_ok=True)
        (method / f"{name}.py").write_text('"""Of that (paper section 3.2)."""\n')
    assert list(without_source(method)) == []
    (method / "frameworks" / "a.py").write_text('"""A (Doe et al. 2020): so."""\n')
    (method / "stages" / "b.py").write_text('"""As in the paper of 2020."""\n')
    assert list(without_source(method)) == [
        "package/method/stages/b.py: lacks the source of its method"
    ]


def test_what_the_pages_show_is_documented() -> None:
    looked_at = list(shown(ROOT / "docs"))
    names = {one.name.rpartition(".")[2] for one in looked_at}
    assert {"Clusterer", "fit", "best", "contextual_neighbors", "pull", "UserError"} < names
    assert len(looked_at) > 70
    assert [f"{one.name}: {gap}" for one in looked_at for gap in one.gaps()] == []
    assert list(without_source(ROOT / "conr_ray" / "method")) == []
    published = {one.name.rpartition(".")[2] for one in looked_at if one.published}
    assert published == {"contextual_neighbors", "clustering_accuracy"}
