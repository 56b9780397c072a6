"""Other packages in a comparison, by a format made here: float16 halves of every weight, shrunk by a hundredth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.reports.test_compare import PROMPTS, tiny_sdxl, written
from vqcompress.architectures import architecture_of
from vqcompress.calibration.prompts import load_prompts
from vqcompress.peers import Peer, PeerWeight, UnfitForPeerError
from vqcompress.recipe import Recipe
from vqcompress.reports import EvaluationConfig, EvaluationSet, compare_candidates, to_html, to_markdown
from vqcompress.reports.peers import calibration_run, exchanged_weights, quantize_with_peers
from vqcompress.sampling_config import SamplingConfig

CONFIG = EvaluationConfig(2, seed=5, sampling=SamplingConfig(2, 4.0), trajectory_prompts=2, layer_prompts=1)


def shrink(matrix, moment):
    if matrix.shape[1] % 32:
        raise UnfitForPeerError(f"{matrix.shape[1]} columns")
    return PeerWeight((0.99 * matrix).half().float(), 2 * matrix.numel())


SHRINK = Peer("shrink-16", "hqq", shrink, lambda: "shrink 1.0", "pip install shrink")
ABSENT = Peer("gone-3", "hqq", shrink, lambda: "", "pip install gone")


def test_a_peer_is_a_variant_and_an_absent_one_a_sentence(tmp_path):
    original = tiny_sdxl()
    before = {name: value.clone() for name, value in original.unet.state_dict().items()}
    candidate = written(tmp_path / "ours", 4, "trellis")
    found = compare_candidates(
        original, architecture_of(original), [candidate], EvaluationSet(PROMPTS), CONFIG, peers=(SHRINK, ABSENT)
    )
    ours, peer = found.variants
    assert (peer.label, peer.family, peer.peer, peer.allocated) == ("shrink-16", "peer", "shrink 1.0", False)
    errors = [each.error for each in peer.layer_errors]
    assert errors == pytest.approx([1e-4] * len(errors), rel=5e-2)  # (1 - 0.99)², and the rounding to float16
    assert 0 < peer.denoiser_error < 1
    assert len(peer.image_values["psnr"]) == 2
    # All weights at 16 bits, whether the format took them or not.
    assert peer.denoiser_bytes == 2 * sum(p.numel() for p in original.unet.parameters())
    assert peer.bits_per_weight == pytest.approx(16)
    assert len(peer.layer_errors) + len(peer.dense_layers) == len(ours.layer_errors)
    assert all(torch.equal(before[name], value) for name, value in original.unet.state_dict().items())
    assert found.missing == ("gone-3: not installed. To compare with it: pip install gone",)
    text = to_markdown(found)
    assert "## Not compared" in text
    assert "pip install gone" in text
    assert "shrink-16" in to_html(found)


def test_calibrated_peers_get_each_layers_own_moment(tmp_path):
    seen = {}

    def remember(matrix, moment):
        seen[float(matrix[0, 0])] = moment
        return shrink(matrix, moment)

    calibrated = Peer("a", "a", remember, lambda: "a 1", "", calibrated=True)
    blind = replace(calibrated, name="b", calibrated=False, encode=shrink)
    layers = {"one": torch.full((4, 32), 1.0), "two": torch.full((4, 32), 2.0), "odd": torch.full((4, 31), 3.0)}
    calls = []
    made = quantize_with_peers(
        [calibrated, blind, replace(blind, name="c", found=lambda: "")],
        layers,
        lambda: iter([("two", "second"), ("one", "first"), ("odd", "third")]),
        tmp_path,
        lambda done, total: calls.append((done, total)),
    )
    assert seen == {1.0: "first", 2.0: "second", 3.0: "third"}
    assert [result.name for result in made] == ["a", "b"]
    assert made[0].weights.keys() == {"one", "two"}
    assert made[0].dense == {"odd": "31 columns"}
    assert made[1].nbytes == 2 * 2 * 4 * 32
    assert calls[-1] == (6, 6)
    assert torch.allclose(made[1].weights["two"].decode(), torch.full((4, 32), 1.98), atol=1e-3)


def test_a_failure_leaves_the_original_as_it_was(tmp_path):
    layer = torch.nn.Sequential(torch.nn.Linear(32, 4))
    before = layer[0].weight.clone()
    made = quantize_with_peers([SHRINK], {"0": layer[0].weight.detach()}, None, tmp_path, lambda *_: None)

    def fail():
        with exchanged_weights(layer, made[0].weights):
            assert not torch.equal(layer[0].weight, before)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(layer[0].weight, before)


def test_peers_calibrate_on_the_recipes_own_prompts():
    pipeline = tiny_sdxl()
    recipe = Recipe(model="tiny", seed=3, calibration={"count": 5, "batch_size": 2, "steps": 2})
    run = calibration_run(pipeline, architecture_of(pipeline), recipe)
    assert (len(run.prompts), run.seed, run.batch_size, run.steps) == (5, 3, 2, 2)
    assert set(run.prompts) <= set(load_prompts("general").prompts)
