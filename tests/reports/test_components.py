"""What each compressed component costs: measured alone, and shown in every page."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vqcompress.reports import to_html, to_markdown
from vqcompress.reports.comparison import Comparison
from vqcompress.reports.components import component_costs, components_table
from vqcompress.reports.drawing import Drawing
from vqcompress.reports.variant import ComponentCost
from vqcompress.sampling_config import ResolvedSampling

DRAWING = Drawing(("a", "b"), 0, ResolvedSampling(2, 1.0, 8, 8))
PART = {"component_bits_per_weight": 3.1, "bytes": 1000}


class Painter:
    """An architecture whose images are the sum of what the pipeline's parts add."""

    defaults = SimpleNamespace(height=8, width=8)

    def sample(self, pipeline, prompts, *, seeds, **options):
        base = torch.rand(len(seeds), 3, 16, 16, generator=torch.Generator().manual_seed(seeds[0])) / 2
        return base + pipeline.unet + pipeline.text_encoder


def test_each_component_is_alone_in_the_original():
    original, variant = (SimpleNamespace(unet=u, text_encoder=t) for u, t in ((0.0, 0.0), (0.01, 0.1)))
    images = Painter().sample(original, DRAWING.prompts, seeds=[0, 1])
    steps = []
    costs = component_costs(
        original,
        variant,
        Painter(),
        DRAWING,
        images,
        {"unet": PART, "text_encoder": PART},
        lambda *at: steps.append(at),
    )
    assert [(cost.component, round(cost.psnr)) for cost in costs] == [("unet", 40), ("text_encoder", 20)]
    assert (original.unet, original.text_encoder) == (0.0, 0.0)
    assert steps == [(1, 2), (2, 2)]


def test_one_component_needs_no_table(comparison):
    assert component_costs(None, None, None, DRAWING, torch.zeros(1), {"unet": PART}, lambda *_: None) == ()
    assert components_table(comparison) is None
    assert "each component" not in to_markdown(comparison)


@pytest.mark.parametrize("page", [to_markdown, to_html])
def test_pages_show_it_and_json_keeps_it(comparison, page):
    costs = (
        ComponentCost("unet", 3.14, 7_000_000, 31.25, 0.987),
        ComponentCost("text_encoder", 5.02, 9_000_000, 40.5, 0.999),
    )
    first = replace(comparison.variants[0], components=costs)
    shown = replace(comparison, variants=(first, *comparison.variants[1:]))
    text = page(shown)
    assert "What each component costs" in text
    for part in ("text_encoder", "5.02", "40.5", "0.987"):
        assert part in text.replace("\\_", "_"), part
    assert Comparison.from_json(shown.to_json()).variants[0].components == costs
