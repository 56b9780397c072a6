"""Layers that store only the packed form, and replacement of dense layers by them."""

from vqcompress.layers.decode_ahead import set_decode_ahead
from vqcompress.layers.dense_budget import set_dense_budget
from vqcompress.layers.description import FORMAT_VERSION, QUANT_METHOD, check_description, describe, empty_layers
from vqcompress.layers.packed import PackedLayer, VQConv2d, VQLinear
from vqcompress.layers.shared_codebooks import SHARED_NAME, SharedCodebooks
from vqcompress.layers.swap import make_dense, swap, vq_layers

__all__ = [
    "FORMAT_VERSION",
    "QUANT_METHOD",
    "SHARED_NAME",
    "PackedLayer",
    "SharedCodebooks",
    "VQConv2d",
    "VQLinear",
    "check_description",
    "describe",
    "empty_layers",
    "make_dense",
    "set_decode_ahead",
    "set_dense_budget",
    "swap",
    "vq_layers",
]
