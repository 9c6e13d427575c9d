"""A report in a real browser: it fits a telephone, in light and in dark, and asks for nothing."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pipelines.report.run import build

SCHEMES, WIDTHS = ("light", "dark"), (360, 1280)
LEAST_CONTRAST = 4.4
# As tests/browser.sh looks for them.
NAMES = "chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable chrome".split()

# The greatest reach of any element that no element around it scrolls or cuts.
OVERFLOW = """() => {
  const cut = element => {
    for (let each = element.parentElement; each && each !== document.body; each = each.parentElement)
      if (getComputedStyle(each).overflowX !== "visible") return true;
    return false;
  };
  const wide = [...document.querySelectorAll("body *")].filter(element =>
    element.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && !cut(element));
  return [document.documentElement.scrollWidth - document.documentElement.clientWidth,
          wide.map(element => element.outerHTML.slice(0, 80))];
}"""
# Texts of SVGs lie in their drawings: what would be cut off at an edge.
CUT_TEXTS = """() => [...document.querySelectorAll("svg text")].filter(text => {
  const [inside, around] = [text.getBoundingClientRect(), text.closest(".scroll").getBoundingClientRect()];
  return inside.left < around.left - 1 || inside.bottom > around.bottom + 1 || inside.top < around.top - 1;
}).map(text => text.textContent)"""
COLOURS = """() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
  const rgb = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  return [...document.querySelectorAll(".heat td:not(.none)")].map(cell => {
    const style = getComputedStyle(cell);
    return [cell.textContent, rgb(style.backgroundColor), rgb(style.color)];
  });
}"""


DRAWN = """() => [
  getComputedStyle(document.body).backgroundColor,
  ...[...document.querySelectorAll("svg text")].slice(0, 20).map(each => getComputedStyle(each).fill),
  ...[...document.querySelectorAll("svg path")].slice(0, 60).map(each => getComputedStyle(each).stroke),
]"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        program = find_browser() or playwright.chromium.executable_path
        if not Path(program).exists():
            pytest.skip("no Chromium: `make browser` brings one, or ESPAN_BROWSER names one")
        # A container's root has no sandbox to run in, and the page is our own.
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(make_workspace: Callable[..., Any]) -> Path:
    return Path(build(str(make_workspace(full=True, found=True).folder)))


@pytest.fixture(scope="module")
def open_report(browser: Browser, report: Path) -> Callable[..., tuple[Page, list[str], list[str]]]:
    """Opens the report; returns the page, what the console said and what was asked for beside the file."""

    def open_report(scheme: str, width: int) -> tuple[Page, list[str], list[str]]:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        # Also what is folded.
        page.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true })")
        return page, said, [url for url in asked if url != report.as_uri()]

    return open_report


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_says_and_asks_nothing(
    open_report: Callable[..., Any], scheme: str, width: int, tmp_path: Path
) -> None:
    page, said, asked = open_report(scheme, width)
    assert (said, asked) == ([], [])
    assert page.evaluate(OVERFLOW) == [0, []]
    assert page.evaluate(CUT_TEXTS) == []
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png")  # for whoever wants to look
    page.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_numbers_of_heat_maps_stand_out_from_their_cells(
    open_report: Callable[..., Any], scheme: str
) -> None:
    page, _, _ = open_report(scheme, 1280)
    cells = page.evaluate(COLOURS)
    assert len(cells) > 200
    faint = [(text, ratio) for text, cell, ink in cells if (ratio := contrast(cell, ink)) < LEAST_CONTRAST]
    assert faint == []
    page.close()


def test_light_and_dark_are_two_sets_of_colours_also_in_charts(open_report: Callable[..., Any]) -> None:
    def colours(scheme: str) -> list[str]:
        page, _, _ = open_report(scheme, 1280)
        found = page.evaluate(DRAWN)
        page.close()
        return [colour for colour in found if colour != "none"]

    light, dark = colours("light"), colours("dark")
    assert len(light) == len(dark) > 40
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_every_chart_has_a_name_for_a_screen_reader(open_report: Callable[..., Any]) -> None:
    page, _, _ = open_report("light", 360)
    assert page.locator("svg").count() == page.get_by_role("img", name=re.compile(r"\w{4}")).count() > 8
    page.close()


def find_browser() -> str | None:
    """The Chromium, Chrome or Edge that `ESPAN_BROWSER` names, or the first on the path."""
    given = os.environ.get("ESPAN_BROWSER")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


def contrast(one: list[int], other: list[int]) -> float:
    """The contrast of two colours of three bytes, from 1 to 21 (WCAG 2.2)."""

    def luminance(colour: list[int]) -> float:
        linear = [
            each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4
            for each in (value / 255 for value in colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
