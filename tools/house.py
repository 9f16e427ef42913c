"""Draw the layers of imports: `python -m tools.house > docs/figures/house.svg`."""

from __future__ import annotations

import ast
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
_WIDTH, _FLOOR, _GAP, _MARGIN, _NAMES = 980, 30, 5, 12, 250
_STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1b2733 } .name { font-weight: 600 }
rect { fill: #e8eef4; stroke: #a9b8c6 } .commands rect { fill: #fbe9d3; stroke: #d3b48c }
.method rect { fill: #dcefe3; stroke: #93bfa4 }
"""


def layers(root: Path) -> list[list[str]]:
    """The modules of each layer that `make lint` knows, those on top first."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    (found,) = (one["layers"] for one in contracts["contracts"] if one["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in found]


def told(root: Path, module: str) -> str:
    """The first line of a module's docstring."""
    path = root.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    line = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
    return line.replace("`", "")


def drawn(root: Path) -> str:
    """The picture as SVG: a floor for each layer."""
    floors = []
    for place, modules in enumerate(layers(root)):
        names = [name.removeprefix("conr_ray.") for name in modules]
        text = told(root, modules[0]) if len(modules) == 1 else ""
        kind = "commands" if "train" in names else "method" if names == ["method"] else "floor"
        top = _MARGIN + place * (_FLOOR + _GAP)
        name = ", ".join(names)
        width = _WIDTH - 2 * _MARGIN
        parts = [
            f'<rect x="{_MARGIN}" y="{top}" width="{width}" height="{_FLOOR}" rx="4"/>',
            f'<text class="name" x="{2 * _MARGIN}" y="{top + 20}">{escape(name)}</text>',
        ]
        if text:
            parts.append(f'<text x="{_MARGIN + _NAMES}" y="{top + 20}">{escape(text)}</text>')
        floors.append(f'<g class="{kind}">{"".join(parts)}</g>')
    height = 2 * _MARGIN + len(floors) * (_FLOOR + _GAP) - _GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
            "<title>The packages of conr_ray: each may import those below it</title>",
            f"<style>{_STYLE}</style>",
            f'<rect width="{_WIDTH}" height="{height}" style="fill:#fff;stroke:none"/>',
            *floors,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    print(drawn(ROOT), end="")
