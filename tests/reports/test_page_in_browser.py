"""The page as a browser shows it: nothing in the console, no overflow, the viewer by keyboard and by pointer."""

from __future__ import annotations

import pytest

from tests.reports.browser import Browser, program
from vqcompress.reports import to_html

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium is installed")

PART = "document.querySelector('[data-part=\"{}\"]')"
SLIDER, STAGE = PART.format("slider"), PART.format("stage")


@pytest.fixture(scope="module")
def path(comparison, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(to_html(comparison), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_page_fits_its_window_and_says_nothing(browser, path, width, scheme):
    browser.said.clear()
    browser.open(path, width, 900, scheme)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("[...document.images].every(i => i.complete && i.naturalWidth > 0 || i.loading === 'lazy')")
    light = browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)"
    assert light == (scheme == "light")
    assert browser.ask("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    assert browser.said == []


def test_slider_moves_by_keyboard_and_by_pointer(browser, path):
    browser.open(path, 1440, 900)
    browser.ask(f"{STAGE}.scrollIntoView({{block: 'center'}}); {SLIDER}.focus()")
    assert browser.ask(f"{SLIDER}.value") == "50"
    browser.key("ArrowRight", 39)
    assert browser.ask(f"{SLIDER}.value") == "51"
    assert browser.ask(f"{STAGE}.style.getPropertyValue('--split')") == "51%"
    assert browser.ask(f"{SLIDER}.getAttribute('aria-valuetext')") == "51 % original, 49 % trellis 3-bit"
    box = browser.ask(f"JSON.parse(JSON.stringify({STAGE}.getBoundingClientRect()))")
    middle = box["y"] + box["height"] / 2
    browser.drag((box["x"] + 0.5 * box["width"], middle), (box["x"] + 0.25 * box["width"], middle))
    assert browser.ask(f"{SLIDER}.value") == "25"
    clip = browser.ask(f"getComputedStyle({PART.format('after')}).clipPath")
    assert "25%" in clip
    assert browser.said == []


def test_other_ways_of_comparing(browser, path):
    browser.open(path, 390, 900)
    choose = "document.querySelector('input[value={}]').click()"
    browser.ask(choose.format("difference"))
    said = browser.ask(
        f"new Promise(done => {{ const look = () => {PART.format('said')}.textContent.includes('dB') ? "
        f"done({PART.format('said')}.textContent) : setTimeout(look, 20); look(); }})"
    )
    assert "largest difference" in said
    assert browser.ask(f"{PART.format('heat')}.width") == 32
    assert browser.ask(f"getComputedStyle({PART.format('heat')}).display") == "block"
    browser.ask(choose.format("flicker"))
    assert browser.ask(f"new Promise(done => setTimeout(() => done({STAGE}.classList.contains('swapped')), 1000))")
    browser.ask(f"{PART.format('image')}.value = '1'; {PART.format('image')}.dispatchEvent(new Event('change'))")
    third = "document.querySelector('.gallery img[data-label=original][data-place=\"1\"]').src"
    assert browser.ask(f"{PART.format('before')}.src === {third}")
    assert browser.said == []
