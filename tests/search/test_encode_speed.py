"""The benchmark of encoding speed: what its table adds up, and which searches it times."""

from __future__ import annotations

import encode_speed


def test_a_layer_costs_its_columns_products_and_factor():
    layer = encode_speed.layer_seconds((200, 100), {200: 1e4}, 6e6, {100: 0.5})
    assert (layer["coding"], layer["products"], layer["factoring"]) == (2.0, 1.0, 0.5)
    assert layer["weights per second"] == 200 * 100 / 3.5


def test_the_table_sums_over_layers_and_cores():
    layers = [encode_speed.layer_seconds((200, 100), {200: 1e4}, 6e6, {100: 0.5}) | {"count": 7200}]
    table = encode_speed.markdown(layers, cores=2).splitlines()
    assert table[2] == "| 200 x 100 | 7200 | 0.01 M | 2.00 | 1.00 | 0.50 |"
    assert table[-1] == "7200 layers, 0.14 G weights: 7.00 CPU hours, 3.50 h on 2 cores"


def test_it_times_the_searches_of_the_presets():
    states = [encode_speed.states_of(preset, rate) for preset in ("fast", "default", "best") for rate in (3, 4)]
    assert states == [10, 10, 12, 14, 14, 14]
