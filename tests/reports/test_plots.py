from dataclasses import replace

import pytest

from vqcompress.methods import METHODS
from vqcompress.peers import ALLOCATED, PEERS
from vqcompress.reports import plots
from vqcompress.reports.palette import MARKERS, PALETTES, STYLES


def test_every_method_has_a_style_and_families_differ_in_more_than_colour():
    other = {"trellis": "uniform", "additive": "uniform", "kmeans": "mixed", "gptq": "mixed", "rtn": "mixed"}
    ours = METHODS.keys() | {f"{method}-{scheme}" for method, scheme in other.items()}
    allocated = {f"{peer.curve}-mixed" for peer in ALLOCATED.values()}
    assert STYLES.keys() == ours | {peer.curve for peer in PEERS.values()} | allocated
    for curve, style in STYLES.items():
        assert style.dashed == (curve not in ours or METHODS[curve.split("-")[0]].family == "scalar")
    assert len({style for curve, style in STYLES.items() if curve not in ours}) == len(STYLES) - len(ours)
    styles = [style for palette in PALETTES.values() for pair in palette for style in pair]
    assert len({style.marker for style in styles}) == len(styles)
    assert {style.marker for style in styles} == MARKERS.keys()


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("down_blocks.1.attentions.0.proj_in", "down 1"),
        ("mid_block.resnets.0.conv1", "mid"),
        ("transformer_blocks.12.ff.net.2", "transformer 12"),
        ("conv_out", "conv out"),
        ("text_encoder.text_model.encoder.layers.0.fc1", "text encoder"),
    ],
)
def test_blocks_have_short_names(layer, block):
    assert plots.block_of(layer) == block


def test_peers_are_one_a_method_nearest_in_size(comparison):
    assert [variant.label for variant in plots.peers(comparison)] == [
        "trellis 3-bit", "additive 3-bit", "gptq 3-bit", "rtn 3-bit",
    ]  # fmt: skip


def test_trajectories_that_count_up_are_not_mirrored(comparison):
    up = replace(comparison.variants[0], error_by_timestep={0.0: 0.01, 0.5: 0.02, 1.0: 0.03})
    svg = plots.error_by_timestep(replace(comparison, variants=(up,)))
    positions = {text: float(x) for x, text in _texts(svg)}
    assert positions["0.0"] < positions["1.0"]


def test_a_single_point_is_drawn(comparison):
    one = replace(comparison.variants[0], error_by_timestep={999.0: 0.01})
    assert "<svg" in plots.error_by_timestep(replace(comparison, variants=(one,)))


def _texts(svg: str) -> list[tuple[str, str]]:
    import re

    return re.findall(r'<text[^>]* x="([\d.]+)"[^>]*>([^<]*)</text>', svg)
