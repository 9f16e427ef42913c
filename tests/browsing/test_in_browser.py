"""The page of a browser in a real one: by pointer, by keyboard, and for screen readers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.chromium import PATIENCE_MS, chromium

pytestmark = pytest.mark.slow


@pytest.fixture
def browsed(run: Path) -> Path:
    """The folder that is browsed."""
    return run


@pytest.fixture
def address(browsed: Path) -> Iterator[str]:
    """What the command prints."""
    command = [sys.executable, "-m", "conr_ray.browse", str(browsed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("browse: http://127.0.0.1:"), line
        yield line.removeprefix("browse: ").strip()
        process.terminate()
        process.wait(60)


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    with chromium() as browser:
        found = browser.new_page(viewport={"width": 1280, "height": 900})
        found.set_default_timeout(PATIENCE_MS)
        problems: list[str] = []
        found.on("console", lambda one: problems.append(f"{one.type}: {one.text}"))
        found.on("pageerror", lambda error: problems.append(str(error)))
        found.goto(address)
        yield found
    assert problems == []


def accessible(page: Page) -> None:
    """No rule of accessibility is violated."""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def said(page: Page, text: str) -> None:
    expect(page.locator("#said")).to_contain_text(text)


def test_a_person_names_merges_moves_and_undoes(page: Page, run: Path) -> None:
    assert "token" not in page.url
    accessible(page)
    heads = page.locator("section.cluster h2 a")
    first, count = heads.nth(0).inner_text(), heads.count()
    images = page.locator("section.cluster img")
    images.first.evaluate("image => image.decode()")
    for at in (0, 1):
        page.locator("input[name=cluster]").nth(at).check()
    page.get_by_role("button", name="Merge the chosen clusters").click()
    said(page, f"into {first}")
    expect(heads).to_have_count(count - 1)
    # All by keyboard: to the largest cluster, its name, Enter.
    heads.nth(0).focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/cluster/**")
    accessible(page)
    page.get_by_label("Name").focus()
    page.keyboard.type("round ones")
    page.keyboard.press("Enter")
    said(page, "round ones")
    expect(page.locator("h1")).to_have_text("round ones")
    expect(page.locator("#said")).to_be_focused()
    page.locator("input[name=row]").first.focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Mark the chosen as junk").focus()
    page.keyboard.press("Enter")
    said(page, "moved 1 image to junk")
    assert pq.read_table(run / "edits.parquet")["kind"].to_pylist() == ["merge", "rename", "move"]
    page.get_by_role("button", name="Undo the last step").click()
    said(page, "taken back")
    assert "round ones" in (run / "names.yaml").read_text()


def test_neighbors_and_search(page: Page) -> None:
    page.locator(".strip a").first.click()
    expect(page.get_by_role("heading", name="Neighbours by context")).to_be_visible()
    assert page.locator("ul[aria-label='Neighbours by euclidean'] li").count() == 20
    accessible(page)
    picture = page.locator(".one img").evaluate(
        "async one => [...new Uint8Array(await (await fetch(one.src)).arrayBuffer())]"
    )
    page.get_by_role("link", name="Search by image").click()
    file = {"name": "digit.png", "mimeType": "image/png", "buffer": bytes(picture)}
    page.get_by_label("Picture").set_input_files(file)  # type: ignore[arg-type]
    page.get_by_role("button", name="Search").click()
    said(page, "40 images found")
    accessible(page)


@pytest.mark.parametrize("by", ["pointer", "keyboard"])
def test_a_lasso(page: Page, by: str) -> None:
    page.get_by_role("link", name="Map").click()
    canvas = page.locator("#map[data-drawn]")
    canvas.wait_for()
    if by == "pointer":
        box = canvas.bounding_box()
        assert box is not None
        left, top = box["x"] + 2, box["y"] + 2
        right, bottom = left + box["width"] - 4, top + box["height"] / 2
        page.mouse.move(left, top)
        page.mouse.down()
        for x, y in ((right, top), (right, bottom), (left, bottom)):
            page.mouse.move(x, y, steps=3)
        page.mouse.up()
    else:
        canvas.focus()
        for keys in (("ArrowLeft", 7), ("ArrowUp", 5), ("ArrowRight", 13)):
            for _ in range(keys[1]):
                page.keyboard.press(f"Shift+{keys[0]}")
            page.keyboard.press("Space")
        page.keyboard.press("Enter")
    said(page, "images are inside")
    page.locator("#map[data-chosen]").wait_for()
    inside = int(re.findall(r"\d+", page.locator("#said").inner_text())[0])
    assert 0 < inside < 300
    assert page.locator("#chosen input[name=row]:checked").count() == inside
    accessible(page)
    page.get_by_role("button", name="Move the chosen").click()
    said(page, f"{inside} images")


class TestFindings:
    """Those of a run that was curated."""

    @pytest.fixture
    def browsed(self, curated: Path) -> Path:
        return curated

    def test_copies_and_blank_pictures_are_marked_as_junk(self, page: Page, browsed: Path) -> None:
        page.get_by_role("link", name="Duplicates").click()
        expect(page.locator("h1")).to_have_text("Duplicates")
        accessible(page)
        page.locator(".grid img").first.evaluate("image => image.decode()")
        boxes = page.locator("input[name=row]")
        count = boxes.count()
        kept = page.locator("input.keep").count()
        assert 0 < kept < count
        # By keyboard: all copies that are shown, but none of those to keep.
        page.get_by_role("button", name="Choose all shown").focus()
        page.keyboard.press("Enter")
        expect(page.locator("input[name=row]:checked")).to_have_count(count - kept)
        expect(page.locator("input.keep:checked")).to_have_count(0)
        page.get_by_role("button", name="Mark the chosen as junk").click()
        said(page, f"moved {count - kept} images to junk")
        expect(page.locator("main")).to_contain_text("Nothing is left")
        page.get_by_role("button", name="Undo the last step").click()
        said(page, "taken back")
        expect(boxes).to_have_count(count)
        page.get_by_role("button", name=f"Mark all {count - kept} copies as junk").click()
        said(page, f"moved {count - kept} images to junk")
        page.get_by_role("link", name="Blank pictures").click()
        accessible(page)
        page.locator("input[name=row]").check()
        page.get_by_role("button", name="Mark the chosen as junk").click()
        said(page, "moved 1 image to junk")
        page.get_by_role("link", name="Wrong-looking members").click()
        expect(page.get_by_role("heading", name="Rather in").first).to_be_visible()
        accessible(page)
        kinds = pq.read_table(browsed / "edits.parquet")["kind"].to_pylist()
        assert kinds == ["move", "undo", "move", "move"]
