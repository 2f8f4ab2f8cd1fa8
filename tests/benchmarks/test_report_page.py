"""The report in a real browser: drawn, whole, quiet, readable on a desk and on a phone."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

import pytest

from benchmarks import report, systems
from tests.benchmarks import made_records

# Texts of plots that stick out of their card, or out of the window: cut for the reader.
CUT = """
const cut = [];
for (const plot of document.querySelectorAll('.plot')) {
  const frame = plot.getBoundingClientRect();
  for (const text of plot.querySelectorAll('svg text')) {
    const box = text.getBoundingClientRect();
    if (!box.width || !text.textContent.trim()) continue;
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
        box.bottom > frame.bottom + 1 || box.right > innerWidth)
      cut.push(plot.dataset.figure + ': ' + text.textContent);
  }
}
return cut;
"""
# Names of ticks that lie on each other.
CROWDED = """
const crowded = [];
for (const plot of document.querySelectorAll('.plot'))
  for (const axis of ['.xtick', '.ytick']) {
    const texts = [...plot.querySelectorAll(axis + ' text')];
    const boxes = texts.map(text => [text, text.getBoundingClientRect()]);
    boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
      if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
        crowded.push(plot.dataset.figure + ': ' + one.textContent + ', ' + other.textContent);
    }));
  }
return crowded;
"""
DRAWN = """
const marks = '.scatterlayer path.js-line, .scatterlayer path.point, .barlayer path';
return [...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll(marks).length);
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Reports of made-up records and of published figures alone."""
    root = tmp_path_factory.mktemp("pages")
    records = made_records.write(root / "records", made_records.everything())
    found = {}
    for name, folder in (("local", records), ("juwels", None), ("juron", None)):
        (page, _), _ = report.build_report(systems.load(name), folder, root / name)
        found[name] = page
    return found


def show(browser: Any, page: pathlib.Path, width: int, scheme: str) -> None:
    """Load a page and wait until its plots are drawn."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    drawn = "return document.documentElement.dataset.drawn"
    for _ in range(600):
        if browser.execute_script(drawn):
            return
        time.sleep(0.1)
    raise AssertionError(f"not drawn: {browser.get_log('browser')}")


def asked(browser: Any) -> list[str]:
    """What the page asked for, other than itself and what it holds."""
    urls = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.append(message["params"]["request"]["url"])
    assert any(url.startswith("file:") for url in urls), "the log must have seen the page itself"
    # A browser's own pages (chrome:) are no part of this one.
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome:"))]


@pytest.mark.chromium
@pytest.mark.parametrize("name", ["local", "juwels", "juron"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_chromium(
    browser: Any, pages: dict[str, pathlib.Path], name: str, width: int, scheme: str
) -> None:
    show(browser, pages[name], width, scheme)
    drawn = browser.execute_script(DRAWN)
    assert len(drawn) == (pages[name].read_text(encoding="utf-8")).count('data-figure="')
    assert min(drawn) > 0
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    assert browser.execute_script(CUT) == []
    assert browser.execute_script(CROWDED) == []
    ink = browser.execute_script(
        "return getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    )
    assert ink == {"light": "rgb(27, 35, 40)", "dark": "rgb(230, 235, 238)"}[scheme]
    assert asked(browser) == []
    assert browser.get_log("browser") == []


@pytest.mark.chromium
def test_the_plots_follow_the_window(browser: Any, pages: dict[str, pathlib.Path]) -> None:
    """From a desk to a phone and back, as one that is turned: as if loaded there."""
    heights = "return [...document.querySelectorAll('.plot')].map(plot => plot.offsetHeight)"
    found = []
    for width in (390, 1280):
        show(browser, pages["local"], width, "light")
        found.append(browser.execute_script(heights))
    for width, expected in zip((390, 1280), found, strict=True):
        size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for _ in range(100):
            if browser.execute_script(heights) == expected:
                break
            time.sleep(0.1)
        assert browser.execute_script(heights) == expected
        assert browser.execute_script(CUT) == []
        assert browser.execute_script(CROWDED) == []


@pytest.mark.chromium
def test_the_plots_follow_the_readers_scheme(browser: Any, pages: dict[str, pathlib.Path]) -> None:
    show(browser, pages["juron"], 1280, "light")
    fill = "return getComputedStyle(document.querySelector('.plot .main-svg')).backgroundColor"
    before = browser.execute_script(fill)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for _ in range(50):
        if browser.execute_script(fill) != before:
            break
        time.sleep(0.1)
    assert (before, browser.execute_script(fill)) == ("rgb(255, 255, 255)", "rgb(26, 33, 37)")


@pytest.mark.chromium
def test_tables_open_by_the_keyboard(browser: Any, pages: dict[str, pathlib.Path]) -> None:
    show(browser, pages["juron"], 1280, "light")
    summary = browser.find_element("css selector", "summary")
    browser.execute_script("arguments[0].focus()", summary)
    browser.switch_to.active_element.send_keys(" ")
    assert browser.execute_script("return document.querySelector('details').open")
    table = browser.find_element("css selector", "details table")
    assert "38.58" in table.text
