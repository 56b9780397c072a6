import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from vqcompress.report import to_html

VOID = {"meta", "img", "br", "link"}
PATHS = {"path", "use", "circle", "rect", "image", "line"}


class Page(HTMLParser):
    """Checks nesting and collects attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def values(self, *names: str) -> list[str]:
        return [value or "" for _, attributes in self.tags for name, value in attributes.items() if name in names]


@pytest.fixture(scope="module")
def html(comparison) -> str:
    return to_html(comparison)


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_page_is_self_contained(html, page):
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"} == set()
    assert all(source.startswith("data:image/png;base64,") for source in page.values("src"))
    assert all(link.startswith("#") for link in page.values("href", "xlink:href"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_ids_are_unique_and_references_resolve(html, page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]*)\)", html)) | {link[1:] for link in page.values("href")}
    assert used <= set(ids)


def test_every_colour_variable_is_defined(html):
    defined = set(re.findall(r"(--[\w-]+):", html))
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= defined


def test_no_standin_colour_is_left(html):
    assert not re.search(r"#01020|#04050|#07080", html)


def test_same_findings_give_the_same_page(comparison, html):
    assert to_html(comparison) == html


def test_prompts_cannot_break_the_page(html):
    assert "<b>bold</b>" not in html
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; &#34;quoted&#34;" in html


def test_first_screen_answers_the_question(html):
    first = html[: html.index("<main")]
    for part in ("trellis 3-bit", "6.07", "0.66", "34.0", "90", "28.8"):
        assert part in first


def test_all_variants_all_pictures_and_all_plots_are_there(comparison, html, page):
    for variant in comparison.variants:
        assert html.count(variant.label) >= 3
    shown = min(8, len(comparison.settings.prompts))
    expected = len(comparison.pictures) * len(comparison.settings.prompts) + 2 * shown
    assert sum(tag == "img" for tag, _ in page.tags) == expected
    assert sum("plot" in (attributes.get("class") or "").split() for _, attributes in page.tags) == 5


def test_page_without_judge_layers_pictures_and_verdicts(comparison):
    variants = tuple(replace(variant, caption_accuracy={}, layer_errors=()) for variant in comparison.variants[:1])
    bare = replace(
        comparison,
        variants=variants,
        verdicts=(),
        pictures={},
        original=replace(comparison.original, caption_accuracy={}),
    )
    text = to_html(bare)
    Page(text)
    assert "caption accuracy" not in text.lower()
    assert "neighbours in size</h2>" not in text


def test_a_broken_variant_is_shown_not_hidden(comparison):
    nan = float("nan")
    broken = replace(
        comparison.variants[0],
        denoiser_error=nan,
        image_metrics={**comparison.variants[0].image_metrics, "psnr": nan, "ssim": nan},
        image_values={"psnr": (nan,) * 6},
        energies=((nan, 1.0),) * 4,
        error_by_timestep={900.0: nan, 1.0: nan},
    )
    text = to_html(replace(comparison, variants=(broken, *comparison.variants[1:])))
    Page(text)
    assert "<b>–</b>" in text[: text.index("<main")]
