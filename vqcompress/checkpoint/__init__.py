"""Compressed pipelines as folders: save, verify, load, inspect and dequantize them."""

from vqcompress.checkpoint.dequantization import dequantize
from vqcompress.checkpoint.inspection import inspect
from vqcompress.checkpoint.layer_table import LayerRecord, read_layer_table
from vqcompress.checkpoint.loading import load
from vqcompress.checkpoint.manifest import MANIFEST_NAME
from vqcompress.checkpoint.one_file import bundle
from vqcompress.checkpoint.saving import RECIPE_NAME, save_pipeline
from vqcompress.checkpoint.verification import check_hashes, verify

__all__ = [
    "MANIFEST_NAME",
    "RECIPE_NAME",
    "LayerRecord",
    "bundle",
    "check_hashes",
    "dequantize",
    "inspect",
    "load",
    "read_layer_table",
    "save_pipeline",
    "verify",
]
