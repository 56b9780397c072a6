import csv
import json
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from vqcompress.reports import Comparison, to_html
from vqcompress.reports.blocks import blocks_table
from vqcompress.reports.pictures import encode
from vqcompress.reports.viewer import viewer

VOID = {"meta", "img", "br", "link", "input"}
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
    assert {tag for tag, _ in page.tags} & {"link", "iframe", "object", "base"} == set()
    assert all("src" not in attributes for tag, attributes in page.tags if tag == "script")
    assert all(source.startswith("data:image/png;base64,") for source in page.values("src"))
    assert all(link.startswith(("#", "data:")) for link in page.values("href", "xlink:href"))
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(", html)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_ids_are_unique_and_references_resolve(html, page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]*)\)", html)) | {
        link[1:] for link in page.values("href") if link.startswith("#")
    }
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
    expected = len(comparison.pictures) * len(comparison.settings.prompts) + 2 * shown + 2
    assert sum(tag == "img" for tag, _ in page.tags) == expected
    assert sum("plot" in (attributes.get("class") or "").split() for _, attributes in page.tags) == 7


def linked(page, name: str) -> str:
    (found,) = {attributes["href"] for tag, attributes in page.tags if attributes.get("download") == name}
    return b64decode(found.split(",", 1)[1]).decode()


def test_the_numbers_of_each_figure_are_in_the_page(comparison, page):
    assert Comparison.from_json(json.loads(linked(page, "report.json"))) == comparison
    sizes = list(csv.DictReader(linked(page, "quality-by-size.csv").splitlines()))
    assert [row["variant"] for row in sizes] == [variant.label for variant in comparison.variants]
    lead = comparison.variants[0]
    assert float(sizes[0]["error"]) == pytest.approx(lead.denoiser_error, rel=0.1)
    assert float(sizes[0]["psnr_low"]) == lead.psnr_median.low
    layers = list(csv.DictReader(linked(page, "layers.csv").splitlines()))
    assert len(layers) == sum(len(variant.layer_errors) for variant in comparison.variants)
    assert layers[0]["block"] == "down 0"
    images = list(csv.DictReader(linked(page, "images.csv").splitlines()))
    assert images[5]["prompt"] == comparison.settings.prompts[5]


def test_blocks_say_what_was_kept(comparison):
    lead = comparison.variants[0]
    layers = [replace(each, gap=0.1, outliers=2, is_scalar=at == 0) for at, each in enumerate(lead.layer_errors)]
    kept = replace(lead, layer_errors=tuple(layers), dense_layers=("down_blocks.0.conv",))
    table = blocks_table(replace(comparison, variants=(kept,)))
    assert [line.label for line in table.lines][:2] == ["down 0", "down 1"]
    first = dict(zip((heading.name for heading in table.headings), table.lines[0].cells, strict=True))
    worst = max(layers[:9], key=lambda each: each.error)
    assert [first[name].text for name in ("layers", "kept", "scalar", "outliers", "gap")] == [
        "9",
        "1",
        "1",
        "18",
        "0.100",
    ]
    assert first["worst"].remark == worst.layer
    assert "gap-by-layer" in to_html(replace(comparison, variants=(kept,)))


def test_large_images_are_offered_in_full_and_without_pixels(comparison):
    large = encode(Image.new("RGB", (640, 480)))
    lead = comparison.variants[0].label
    found = replace(comparison, full_size={"original": (large,) * 4, lead: (large,) * 4})
    offered = viewer(found)
    assert (offered.width, offered.height, offered.shown_width, offered.is_small) == (640, 480, 640, False)
    assert offered.labels == (lead,)
    assert [image.name.split(":")[0] for image in offered.images[:2]] == ["worst", "median"]
    text = to_html(found)
    assert 'class="stage"' in text
    assert "Images are in full size." in text


def test_page_without_judge_layers_pictures_and_verdicts(comparison):
    unjudged = {"caption_accuracy": {}, "right_images": ()}
    variants = tuple(replace(variant, layer_errors=(), **unjudged) for variant in comparison.variants[:1])
    bare = replace(
        comparison,
        variants=variants,
        verdicts=(),
        pictures={},
        original=replace(comparison.original, **unjudged),
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
