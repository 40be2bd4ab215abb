"""The page as Chromium shows it, wide and narrow, light and dark."""

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from das_jax.evaluation.comparison import summarise_all
from das_jax.evaluation.report import write_pages
from tests.evaluation.conftest import EVALUATION, HELDOUT, write_run

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# The contrast of text with what is behind it, by WCAG 2; colours are sRGB without transparency.
CONTRAST = """
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = colour => {
  const [r, g, b] = numbers(colour).map(v => linear(v / 255));
  return .2126 * r + .7152 * g + .0722 * b;
};
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor, alpha = numbers(colour)[3];
    if (alpha === undefined) return colour;
    if (alpha !== 0) throw "transparent: " + colour;
  }
};
const contrast = (element, property) => {
  const [a, b] = [getComputedStyle(element)[property], behind(element)].map(light);
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
};
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two seeds each, with everything that a page can show."""
    directory = tmp_path_factory.mktemp("runs")
    for name, method in (("das", "das"), ("naive", "naive")):
        for seed in (0, 1):
            evaluation, heldout = copy.deepcopy(EVALUATION), copy.deepcopy(HELDOUT)
            evaluation["tasks"]["intent"]["rows"]["reviews"]["scores"]["accuracy"] = [
                0.3 + seed / 10
            ] * 3
            heldout["reviews"]["acl"] += seed
            heldout["acl"]["news"] += seed / 100
            write_run(directory, f"{name}/seed-{seed}", seed, method, heldout, evaluation)
    summaries = summarise_all([directory / "das", directory / "naive"])
    return write_pages(summaries, directory / "report")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        if "DAS_JAX_NEEDS_CHROMIUM" in os.environ:
            pytest.fail("there is no Chromium, which .ci/run installs")
        pytest.skip("there is no Chromium; install Debian's chromium and chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = Chrome(options, Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(
    scope="module", params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def shown(request: pytest.FixtureRequest, browser: Chrome, page: Path) -> Chrome:
    """The page, opened afresh, with all that is folded unfolded."""
    width, scheme = request.param
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    return browser


def asked_for(browser: Chrome) -> list[str]:
    """The addresses that were asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [each["params"]["request"]["url"] for each in sent]


def test_nothing_but_the_page_is_asked_for(shown: Chrome, page: Path) -> None:
    addresses = [address for address in asked_for(shown) if not address.startswith("data:")]
    assert addresses == [page.as_uri()]
    assert shown.get_log("browser") == []


def test_the_page_never_scrolls_sideways(shown: Chrome) -> None:
    wide, window = shown.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert wide <= window
    outside = shown.execute_script(
        "return [...document.querySelectorAll('main *, header *')]"
        ".filter(e => !e.parentElement.closest('.scroll, pre, svg'))"
        ".filter(e => e.getBoundingClientRect().right > window.innerWidth + .5)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_every_plot_can_be_seen(shown: Chrome) -> None:
    boxes: list[dict[str, Any]] = shown.execute_script(
        "return [...document.querySelectorAll('svg.plot')].map(e => e.getBoundingClientRect().toJSON())"
    )
    # Two trade-offs, training and held-out losses of three texts; of each run two curves, and of das the
    # effective mask and three kinds of units.
    assert len(boxes) == 2 + 4 + 2 * 2 + 4
    window = shown.execute_script("return window.innerWidth")
    for box in boxes:
        assert box["width"] > 300
        assert box["height"] > 150
        assert 0 <= box["left"] < box["right"] <= window
    texts = shown.execute_script(
        "return [...document.querySelectorAll('svg.plot text')].map(e => e.getBoundingClientRect().toJSON())"
    )
    assert all(box["left"] >= 0 and box["right"] <= window and box["height"] > 7 for box in texts)


def test_text_can_be_read(shown: Chrome) -> None:
    faint = shown.execute_script(
        CONTRAST
        + """
        const found = [];
        for (const e of document.querySelectorAll('body *')) {
          const property = e.namespaceURI.endsWith('svg') ? 'fill' : 'color';
          const written = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
          if (written && e.tagName !== 'title' && contrast(e, property) < 4.5)
            found.push([e.outerHTML.slice(0, 80), contrast(e, property)]);
        }
        return found;
        """
    )
    assert faint == []


def test_cells_and_lines_are_told_apart(shown: Chrome) -> None:
    """What is better, worse and neither has other colours; lines stand out from the page."""
    colours = shown.execute_script(
        "return ['better-5', 'worse-3', 'unclear', 'before']"
        ".map(name => [...document.querySelectorAll('td.' + name)])"
        ".map(cells => [...new Set(cells.map(e => getComputedStyle(e).backgroundColor))])"
    )
    assert [len(each) for each in colours] == [1, 1, 1, 1]
    assert len({each[0] for each in colours}) == 4
    hatched = "return getComputedStyle(document.querySelector('td.unclear')).backgroundImage"
    assert "repeating-linear-gradient" in shown.execute_script(hatched)
    lines = shown.execute_script(
        CONTRAST
        + "return [...document.querySelectorAll('.keys line')].map(e => contrast(e, 'stroke'))"
    )
    assert min(lines) >= 3
    assert len(lines) > 20
