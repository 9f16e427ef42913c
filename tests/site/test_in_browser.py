"""The site, built with warnings as errors and opened as files in a browser without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.chromium import PATIENCE_MS, chromium
from tests.waiting import HANG_S

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# Of each kind of page one: text, formulas, pictures, wide tables, code, what is made of the code.
LOOKED_AT = ("index", "start", "data", "train", "method", "config", "commands", "classes", "design")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html"]
    where = ["-d", str(folder / "trees"), str(ROOT / "docs"), str(folder / "html")]
    done = subprocess.run(
        [*command, *where], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


class Links(HTMLParser):
    """What a page refers to and what it can be referred to by."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        had = dict(attrs)
        self.anchors.add(had.get("id") or "")
        if tag == "a" and had.get("href"):
            self.links.append(str(had["href"]))
        if tag in ("script", "img", "link", "iframe", "source"):
            self.loaded += [str(had[name]) for name in ("src", "href") if had.get(name)]


def test_each_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {file.resolve(): Links(file) for file in site.glob("*.html")}
    assert len(pages) > 35
    for file, page in pages.items():
        for target in page.loaded:
            assert not re.match(r"(https?:)?//", target), (file.name, target)
        for link in page.links:
            target, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", target):
                continue
            there = (file.parent / unquote(target)).resolve() if target else file
            assert there.exists(), (file.name, link)
            if anchor and there in pages:
                assert unquote(anchor) in pages[there].anchors, (file.name, link)
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text()), style.name


def opened(browser: Browser, site: Path, name: str, size: dict[str, int], scheme: str) -> Page:
    """A page as a file, in a window without a network; what goes wrong fails the test at once."""
    context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.goto((site / f"{name}.html").as_uri(), wait_until="load")
    assert wrong == []
    return page


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")])
def test_pages_fit_and_can_be_read_by_all(
    browser: Browser, site: Path, size: dict[str, int], scheme: str
) -> None:
    for name in LOOKED_AT:
        page = opened(browser, site, name, size, scheme)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= size["width"], name
        found = Axe().run(page).response["violations"]
        told = [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found]
        assert told == [], name
        broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert broken == [], name
        page.context.close()


def test_formulas_are_drawn_by_the_browser(browser: Browser, site: Path) -> None:
    page = opened(browser, site, "method", DESKTOP, "light")
    assert page.locator("math[display=block]").count() >= 5
    box = page.locator("math[display=block]").first.bounding_box()
    assert box is not None and box["height"] > 20
    page.context.close()


def test_the_search_finds_pages_without_a_network(browser: Browser, site: Path) -> None:
    page = opened(browser, site, "start", DESKTOP, "light")
    page.fill("input[name=q]", "boundary ratio")
    page.press("input[name=q]", "Enter")
    page.wait_for_selector("#search-results li a")
    texts = page.locator("#search-results li a").all_inner_texts()
    assert any("method" in text.lower() for text in texts)
    page.context.close()
