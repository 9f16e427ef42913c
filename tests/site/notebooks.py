"""Run a notebook's code: `python -m tests.site.notebooks FILE name=value ...`.

The values replace those of the cell with the tag `parameters`. What the last line of a cell would
show is printed, as HTML where it has some.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any


def run(file: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run all cells in one namespace, which is returned."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(file.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        shown = None
        if isinstance(tree.body[-1], ast.Expr):
            shown = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
        exec(compile(tree, str(file), "exec"), scope)
        if "parameters" in cell["metadata"].get("tags", []):
            assert parameters.keys() <= scope.keys()
            scope |= parameters
        if shown is not None:
            value = eval(compile(shown, str(file), "eval"), scope)
            html = getattr(value, "_repr_html_", None)
            print(repr(value) if html is None else html())
    return scope


if __name__ == "__main__":
    given = dict(one.split("=", 1) for one in sys.argv[2:])
    run(Path(sys.argv[1]), {name: ast.literal_eval(value) for name, value in given.items()})
