"""What the site has beside its pages: formulas as MathML, options of all commands, pages elsewhere.

An extension of Sphinx, which `docs/conf.py` names.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import conr_ray

ROOT = Path(__file__).parents[1]
_COMMANDS_PAGE = "commands"
# Pages that lie outside of docs, where readers of the repository look for them.
_ELSEWHERE = {
    "cluster_files": Path("clusters/README.md"),
    "contributing": Path("CONTRIBUTING.md"),
    "examples": Path("examples/README.md"),
}
# What the theme leaves out for screen readers and keyboards: levels of headings, names of
# landmarks, that what scrolls can have the focus, and that an empty cell heads no column.
_ACCESSIBLE = {
    'class="caption" role="heading">': 'class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    '<th class="head"><p></p></th>': "<td></td>",
    "<pre>": '<pre tabindex="0">',
    '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">': (
        '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block" tabindex="0">'
    ),
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def commands() -> dict[str, ModuleType]:
    """The modules behind `python -m conr_ray.NAME` that parse options, by name."""
    found = {}
    for one in pkgutil.iter_modules(conr_ray.__path__):
        name = f"conr_ray.{one.name}"
        if one.ispkg:
            if importlib.util.find_spec(f"{name}.__main__") is None:
                continue
            name = importlib.import_module(f"{name}.__main__").main.__module__
        module = importlib.import_module(name)
        if hasattr(module, "_parser"):
            found[one.name] = module
    return found


def commands_reference() -> str:
    """A section for each command, as Markdown: what it does, and a table of its options."""
    lines: list[str] = []
    for name, module in commands().items():
        parser = module._parser()
        first = (module.__doc__ or "").partition("\n")[0]
        of_command = first.startswith(f"`python -m conr_ray.{name}`: ")
        told = first.partition(": ")[2] if of_command else parser.description
        lines += [f"\n## {name}\n\n`python -m conr_ray.{name}`: {told}\n", *_options(parser)]
    return "\n".join(lines)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The table of a parser's options, and one for each command of it."""
    formatter, below = argparse.HelpFormatter(parser.prog), []
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below += list(dict.fromkeys(action.choices.values()))
        elif not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS:
            meaning = formatter._expand_help(action) if action.help else ""
            needed = "; needed" if action.required and action.option_strings else ""
            rows.append(f"| {_usage(action)} | {_in_cell(meaning)}{needed} |")
    if rows:
        yield from ["| option | meaning |\n| --- | --- |", *rows]
    for one in below:
        yield f"\n### {one.prog.partition('conr_ray.')[2]}\n\n{one.description or ''}\n"
        yield from _options(one)


def _usage(action: argparse.Action) -> str:
    """An option with its value, or what stands for an argument without a name."""
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    if isinstance(value, tuple):
        value = " ".join(value)
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    names = action.option_strings or [""]
    return ", ".join(f"`{f'{name} {value}'.strip()}`" for name in names)


def _in_cell(text: str) -> str:
    """Text that Markdown shows as it is, in a table."""
    for character in ("\\", "|", "<", "*", "_", "$"):
        text = text.replace(character, f"\\{character}")
    return text


def for_the_site(text: str, file: Path) -> str:
    """Markdown of `file`, relative to the root, as a page in docs: its links lead to other pages.

    Links to what is no page lead to the file.
    """
    pages = {path: f"{name}.md" for name, path in _ELSEWHERE.items()}

    def linked(target: re.Match[str]) -> str:
        path = Path(os.path.normpath(file.parent / target[0]))
        return pages.get(path) or Path(os.path.relpath(path, "docs")).as_posix()

    return _LINK.sub(linked, text)


def _fill(app: Sphinx, name: str, source: list[str]) -> None:
    file = _ELSEWHERE.get(name, Path("docs", f"{name}.md"))
    if name in _ELSEWHERE:
        app.env.note_dependency(ROOT / file)
        source[0] = (ROOT / file).read_text()
    source[0] = for_the_site(source[0], file)
    if name == _COMMANDS_PAGE:
        source[0] += commands_reference()


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _displayed(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def _mend(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        for file in Path(app.outdir).glob("*.html"):
            html = file.read_text()
            for said, accessible in _ACCESSIBLE.items():
                html = html.replace(said, accessible)
            # A figure and its deviation stay on one line.
            file.write_text(html.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_displayed, None))
    app.connect("source-read", _fill)
    app.connect("build-finished", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
