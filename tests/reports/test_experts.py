"""Tokens per expert and the error of the least used one, in every form of the report."""

from __future__ import annotations

import json
from dataclasses import replace

from vqcompress.checkpoint import LayerRecord
from vqcompress.reports import Comparison, to_html, to_markdown
from vqcompress.reports.experts import expert_uses, experts_table
from vqcompress.reports.variant import ExpertUse

PARTS = ("gate_proj", "up_proj", "down_proj")
TOKENS = (1200, 40, 3000, 360)


def record(layer: str, rows: int | None, error: float) -> LayerRecord:
    return LayerRecord("transformer", layer, "trellis", 3.0, error, None, rows, 64)


def records(rows: tuple[int | None, ...] = TOKENS) -> list[LayerRecord]:
    routed = [
        record(f"blocks.{block}.moe.experts.{expert}.{part}", count, 0.01 * (expert + 1))
        for block in range(2)
        for expert, count in enumerate(rows)
        for part in PARTS
    ]
    return [record("blocks.0.attn.qkv", 9000, 0.5), *routed, record("blocks.0.moe.shared_experts.up_proj", 9000, 0.5)]


def with_experts(comparison: Comparison) -> Comparison:
    lead = replace(comparison.variants[0], experts=expert_uses(records()))
    return replace(comparison, variants=(lead, *comparison.variants[1:]))


def test_layers_of_an_expert_are_taken_together() -> None:
    uses = expert_uses(records())
    assert [use.tokens for use in uses] == [*TOKENS, *TOKENS]
    assert {use.mixture for use in uses} == {"blocks.0.moe", "blocks.1.moe"}
    assert [round(use.error, 4) for use in uses[:4]] == [0.01, 0.02, 0.03, 0.04]
    assert expert_uses([record("blocks.0.attn.qkv", 1, 0.0)]) == ()


def test_the_least_used_expert_is_named_with_its_error(comparison: Comparison) -> None:
    assert experts_table(comparison) is None
    table = experts_table(with_experts(comparison))
    assert [line.label for line in table.lines] == [f"{comparison.variants[0].label}, blocks.{n}.moe" for n in range(2)]
    tokens, least, error, others = table.lines[0].cells
    assert tokens.text.replace("\N{NARROW NO-BREAK SPACE}", "") == "1200 40 3000 360"
    assert (least.text, least.remark) == ("expert 1", "(40)")
    assert error.text.startswith("2")
    assert others.text.startswith("2.7")


def test_without_calibration_there_are_errors_but_no_tokens(comparison: Comparison) -> None:
    lead = replace(comparison.variants[0], experts=expert_uses(records((None,) * 4)))
    line = experts_table(replace(comparison, variants=(lead,))).lines[0]
    assert [cell.text for cell in line.cells[:3]] == ["–"] * 3
    assert line.cells[3].text.startswith("2.5")


def test_every_form_has_the_table(comparison: Comparison) -> None:
    found = with_experts(comparison)
    for text in (to_html(found), to_markdown(found)):
        assert "expert 1" in text
        assert "blocks.1.moe" in text
    assert "expert 1" not in to_markdown(comparison)
    again = Comparison.from_json(json.loads(json.dumps(found.to_json())))
    assert again.variants[0].experts == found.variants[0].experts
    assert isinstance(again.variants[0].experts[0], ExpertUse)
