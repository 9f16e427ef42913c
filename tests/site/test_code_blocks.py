"""Commands and programs on the pages: options, presets, fields, files and names that are there."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import conr_ray
from conr_ray.config import parse_overrides, preset_names
from conr_ray.config.names import check_field
from conr_ray.errors import UserError
from tools import house
from tools.site_parts import commands, commands_reference, for_the_site

ROOT = Path(__file__).parents[2]
# The log tells what was, and may name what is no more.
PAGES = sorted({*(ROOT / "docs").glob("*.md"), *ROOT.glob("README.md"), *ROOT.glob("*/README.md")})
PAGES = [page for page in PAGES if page.name != "log.md"]
COMMAND = re.compile(r"python3? -m conr_ray\.(\w+)((?:[^\n\\#]|\\\n?)*)")


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in these languages, without their indentation."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [
        re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
        for indent, language, text in found
        if language in languages
    ]


def written_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Commands of the package in the blocks of a page: module, arguments."""
    for block in blocks(page, "sh", "bash", ""):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for module, arguments in COMMAND.findall(line):
                # Three dots stand for what depends on the reader.
                if "..." not in arguments:
                    yield module, shlex.split(arguments)


def test_each_command_on_the_pages_is_understood() -> None:
    known, count = commands(), 0
    for page in PAGES:
        for module, arguments in written_commands(page):
            count += 1
            told = f"{page.name}: {module} {' '.join(arguments)}"
            if module == "config_reference":
                continue
            assert module in known, told
            # What describes an option without a command is no whole command.
            try:
                args = known[module]._parser().parse_args(arguments)
            except UserError as error:
                pytest.fail(f"{told}: {error}")
            assert_preset_and_fields(args, told)
    assert count > 60


def assert_preset_and_fields(args: object, told: str) -> None:
    for name in ("preset", "dataset"):
        preset = getattr(args, name, None)
        assert preset is None or preset in preset_names(), told
    for field in parse_overrides(getattr(args, "settings", None) or []):
        check_field(field)
    space = getattr(args, "space", None)
    if space is not None and space.startswith("search_spaces/"):
        assert (ROOT / space).is_file(), told


def test_each_program_on_the_pages_is_python_and_imports_what_is_there() -> None:
    count = 0
    for page in PAGES:
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module == "conr_ray":
                    count += 1
                    names = {one.name for one in node.names}
                    assert names <= set(conr_ray.__all__), (page.name, names)
    assert count >= 5


def test_each_space_on_the_pages_searches_fields_that_are_there() -> None:
    count = 0
    for page in PAGES:
        for block in blocks(page, "yaml"):
            space = yaml.safe_load(block)
            if not isinstance(space, dict):
                continue
            for field in [*space.get("search", {}), *space.get("fixed", {})]:
                count += 1
                check_field(field)
    assert count > 5


def test_each_link_between_pages_leads_to_a_file() -> None:
    count = 0
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]:
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text()):
            count += 1
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert count > 150


def test_links_of_a_file_elsewhere_lead_to_pages_of_the_site() -> None:
    text = "[a](../docs/aws.md#x) [b](aws.yaml) [c](https://x.org) [d](#here) [e](../LICENSE)"
    assert for_the_site(text, Path("clusters/README.md")) == (
        "[a](aws.md#x) [b](../clusters/aws.yaml) [c](https://x.org) [d](#here) [e](../LICENSE)"
    )
    assert for_the_site("[a](../CONTRIBUTING.md#b)", Path("docs/x.md")) == "[a](contributing.md#b)"


def test_the_reference_has_each_option_of_each_command() -> None:
    text = commands_reference()
    for name, module in commands().items():
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for action in module._parser()._actions:
            for option in set(action.option_strings) - {"-h", "--help"}:
                assert re.search(rf"`{option}[ `]", section), (name, option)
    assert {"train", "tune", "predict", "report"} <= set(commands())


def test_the_picture_of_the_house_is_that_of_its_layers() -> None:
    hint = "run: python -m tools.house > docs/figures/house.svg"
    assert (ROOT / "docs" / "figures" / "house.svg").read_text() == house.drawn(ROOT), hint
    names = [name for layer in house.layers(ROOT) for name in layer]
    assert len(names) > 20 and all(name.partition(".")[2] in house.drawn(ROOT) for name in names)


def test_notebooks_are_whole_and_without_results() -> None:
    files = sorted((ROOT / "examples").glob("*.ipynb"))
    assert files
    for file in files:
        cells = json.loads(file.read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        assert len(code) > 3 and all(ast.parse(text) for text in code)
        assert not any(cell.get("outputs") for cell in cells), file.name
