"""Other packages' formats with bits allocated as ours: a width for each layer, no more bytes, less of what counts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reports.test_compare import PROMPTS, on_row_grid, tiny_sdxl, written
from tests.reports.test_peer_variants import CONFIG
from vqcompress.architectures import architecture_of
from vqcompress.checkpoint import LayerRecord, read_layer_table, save_pipeline
from vqcompress.errors import VQCompressError
from vqcompress.layers import swap
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.peers import ALLOCATED, PEERS, AllocatedPeer, Peer, PeerWeight, UnfitForPeerError, peer_named
from vqcompress.reports import EvaluationSet, compare_candidates, to_html, to_markdown
from vqcompress.reports.allocated_peers import allocated_weights, importance_of, single_peers
from vqcompress.reports.candidate import Candidate
from vqcompress.reports.peers import quantize_with_peers


def rounded(bits: int, matrix: Tensor, moment: SecondMoment | None) -> PeerWeight:
    """Rounding to a grid of the weight's range."""
    if matrix.shape[1] % 8:
        raise UnfitForPeerError(f"{matrix.shape[1]} columns")
    step = (matrix.max() - matrix.min()) / (2**bits - 1)
    return PeerWeight(torch.round((matrix - matrix.min()) / step) * step + matrix.min(), bits * matrix.numel() // 8)


WIDTHS = tuple(
    Peer(f"grid-{bits}", "hqq", partial(rounded, bits), lambda: "grid 1.0", "pip install grid") for bits in (2, 3, 4, 8)
)
THREE = AllocatedPeer(WIDTHS[1], WIDTHS)


def layers() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(32, 64, generator=generator) for name in ("dear", "usual", "cheap", "cheaper")}


def test_bits_go_where_errors_cost_most_in_no_more_bytes(tmp_path):
    weights = layers()
    scaled = {name: SecondMoment(torch.eye(64) * (4.0 if name == "usual" else 1.0)) for name in weights}
    found = quantize_with_peers(WIDTHS, weights, lambda: iter(scaled.items()), tmp_path, lambda *_: None, weighed=True)
    made = {each.name: each for each in found}
    exact = weights["usual"] - made["grid-3"].weights["usual"].decode()
    assert made["grid-3"].weights["usual"].left == pytest.approx(4 * float(exact.square().sum()), rel=1e-4)
    importance = {"dear": 100.0, "usual": 1.0, "cheap": 0.05, "cheaper": 0.01}
    result = allocated_weights(THREE, made, dict.fromkeys(weights, 32 * 64), importance)
    bits = {name: weight.bits_per_weight for name, weight in result.weights.items()}
    assert result.nbytes <= made["grid-3"].nbytes
    assert bits["dear"] >= 4 > 3 >= bits["cheap"] >= bits["cheaper"]
    assert (result.name, result.curve, result.scheme) == ("grid-3-allocated", "hqq", "mixed")

    def cost(chosen):
        return sum(importance[name] * weight.left for name, weight in chosen.items())

    assert cost(result.weights) < 0.5 * cost(made["grid-3"].weights)


def test_what_the_uniform_width_cannot_take_stays_dense(tmp_path):
    weights = {**layers(), "odd": torch.randn(4, 9)}
    found = quantize_with_peers(WIDTHS, weights, lambda: ((n, None) for n in weights), tmp_path, print, weighed=True)
    counts, importance = {name: w.numel() for name, w in weights.items()}, dict.fromkeys(weights, 1.0)
    result = allocated_weights(THREE, {each.name: each for each in found}, counts, importance)
    assert result.dense == {"odd": "9 columns"}
    assert {name: w.bits_per_weight for name, w in result.weights.items()} == dict.fromkeys(layers(), 3.0)


def allocated_folder(folder: Path) -> Candidate:
    """A folder whose layer table says that an error in any layer costs ten times that in the one before."""
    pipeline = tiny_sdxl()
    plans = architecture_of(pipeline).layers(pipeline, "unet")
    weights = {plan.name: pipeline.unet.get_submodule(plan.name).weight for plan in plans if plan.reason is None}
    records = [
        LayerRecord("unet", name, "scalar", 4.0, 0.0, 10.0**place, 100, weight.shape[1], 0, None)
        for place, (name, weight) in enumerate(weights.items())
    ]
    swap(pipeline.unet, {name: on_row_grid(weight, 4) for name, weight in weights.items()})
    recipe = {"model": "tiny", "method": "trellis", "bits": 4.0, "calibration": {"count": 2, "steps": 2}}
    save_pipeline(pipeline, folder, recipe=recipe, layers=records)
    return Candidate("trellis 4-bit", folder, "trellis")


def test_a_report_allocates_by_what_the_folder_says(tmp_path):
    original = tiny_sdxl()
    candidate = allocated_folder(tmp_path / "ours")
    importance = importance_of([read_layer_table(candidate.folder)], "unet")
    assert list(importance.values())[:3] == [1.0, 10.0, 100.0]
    found = compare_candidates(
        original, architecture_of(original), [candidate], EvaluationSet(PROMPTS), CONFIG, peers=(THREE, WIDTHS[1])
    )
    _, mixed, plain = found.variants
    assert (mixed.label, mixed.allocated, plain.allocated) == ("grid-3-allocated", True, False)
    assert mixed.denoiser_bytes <= plain.denoiser_bytes
    dearest, cheapest = max(importance, key=importance.get), min(importance, key=importance.get)
    errors = [{each.layer: each.error for each in variant.layer_errors} for variant in (mixed, plain)]
    assert errors[0].get(dearest, 0.0) < 0.1 * errors[1][dearest]  # or it stays dense
    assert errors[0][cheapest] > 2 * errors[1][cheapest]
    rivals = {verdict.measure: verdict.larger or verdict.smaller for verdict in found.verdicts}
    assert rivals["denoiser_error"].label == "grid-3-allocated"
    assert "layers in grid-" in to_markdown(found)
    assert "grid-3-allocated" in to_html(found)


def test_without_importance_nothing_is_run(tmp_path):
    original = tiny_sdxl()
    uniform = written(tmp_path / "ours", 4, "trellis")
    with pytest.raises(VQCompressError, match="made with --budget model"):
        compare_candidates(
            original, architecture_of(original), [uniform], EvaluationSet(PROMPTS), CONFIG, peers=(THREE,)
        )


def test_the_table_has_them_where_a_format_has_widths():
    assert peer_named("hqq-3-allocated").uniform is PEERS["hqq-3"]
    assert {peer.name for peer in peer_named("hqq-3-allocated").widths} == {f"hqq-{bits}" for bits in (2, 3, 4, 8)}
    assert not {"nf4-allocated", "torchao-int4-allocated"} & ALLOCATED.keys()
    with pytest.raises(VQCompressError, match="did you mean hqq-3-allocated"):
        peer_named("hqq-3-alocated")


def test_a_width_that_two_need_is_made_once():
    assert single_peers([THREE, WIDTHS[3], AllocatedPeer(WIDTHS[2], WIDTHS)]) == list(WIDTHS)
