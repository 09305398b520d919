"""The gallery in a real browser: blur, filters and copying, wide and narrow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scdpo_core.scoring.gallery import write_gallery
from scdpo_core.scoring.run import FolderRun
from tests.support.scoring_helpers import Redness, plain

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the path")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cards (+5, +1, -1, -5 and a green one that costs nothing), one copy, one file without a score."""
    folder = tmp_path_factory.mktemp("a rather long name of a folder that has to break") / "images & more"
    colours = {"red": (255, 0, 0), "reddish": (102, 51, 0), "bluish": (0, 0, 51), "blue": (0, 0, 255)}
    for name, colour in colours.items():
        plain(folder / f"{name}.png", colour)
    plain(folder / "yellow.png", (255, 255, 0))
    shutil.copy(folder / "red.png", folder / "copy of red.png")
    (folder / "text.png").write_text("no image", encoding="utf-8")
    page = folder.parent / "gallery.html"
    write_gallery(page, list(FolderRun(Redness()).rows(sorted(folder.iterdir()))))
    return page


@pytest.fixture
def page(browser: Any, gallery: Path) -> Iterator[Any]:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on(
        "request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url)
    )
    opened.goto(gallery.as_uri())
    yield opened
    context.close()
    assert said == []  # no script failed, and nothing was asked of the network


def shown(page: Any) -> list[str]:
    return [card.get_attribute("data-paths") for card in page.locator("#sheet > li:visible").all()]


def blurred(page: Any) -> list[bool]:
    filters = page.locator("#sheet img").evaluate_all("all => all.map(one => getComputedStyle(one).filter)")
    return ["blur" in one for one in filters]


def test_everything_is_blurred_until_one_looks(page: Any) -> None:
    assert blurred(page) == [True] * 5
    page.locator(".shot").nth(1).click()
    assert blurred(page) == [True, False, True, True, True]
    page.locator(".shot").nth(1).press("Enter")  # with the keyboard too
    assert blurred(page) == [True] * 5
    page.get_by_label("Blur").uncheck()
    assert blurred(page) == [False] * 5


def test_filters(page: Any) -> None:
    names = [Path(paths.split("\n")[0]).stem for paths in shown(page)]
    assert names == ["copy of red", "reddish", "yellow", "bluish", "blue"]
    page.locator("[value=unsafe]").uncheck()
    assert len(shown(page)) == 4 and page.locator("#count").inner_text() == "4 of 5 shown"
    page.get_by_label("Cost from").fill("0")
    assert len(shown(page)) == 2
    page.get_by_label("Path").fill("YELLOW")
    assert [Path(one).stem for one in shown(page)] == ["yellow"]
    page.get_by_label("Cost from").fill("")
    page.get_by_label("Path").fill("")
    page.get_by_label("Above zero in").select_option("green")
    assert [Path(one).stem for one in shown(page)] == ["reddish", "yellow"]
    page.get_by_label("Path").fill("nothing of that name")
    assert shown(page) == [] and page.get_by_text("No image matches").is_visible()


def test_paths_are_copied(page: Any, gallery: Path) -> None:
    folder = gallery.parent / "images & more"
    button = page.locator("#sheet .copy").first
    button.click()
    playwright.expect(button).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == str(folder / "copy of red.png")
    playwright.expect(button).to_have_text("Copy", timeout=5000)
    page.locator("[value=safe]").uncheck()
    page.locator("[value=review]").uncheck()
    page.get_by_role("button", name="Copy the shown paths").click()
    playwright.expect(page.locator("#all")).to_have_text("Copied")
    both = {str(folder / "copy of red.png"), str(folder / "red.png")}
    assert set(page.evaluate("navigator.clipboard.readText()").split("\n")) == both


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(browser: Any, gallery: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(gallery.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    dark_paper = sum(map(int, paper[4:-1].split(","))) < 3 * 128
    assert dark_paper == (scheme == "dark") and (sum(map(int, ink[4:-1].split(","))) > 3 * 128) == dark_paper
    columns = page.locator("#sheet").evaluate(
        "one => getComputedStyle(one).gridTemplateColumns.split(' ').length"
    )
    assert columns == (2 if width == 400 else 5)
    page.close()
