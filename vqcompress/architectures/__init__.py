"""Pipeline families: how to open a pipeline, which layers to quantize, how to sample it."""

from vqcompress.architectures.architecture import VAE, Architecture, Pipeline
from vqcompress.architectures.families import FAMILIES, architecture_of
from vqcompress.architectures.layer_plan import IgnoreRules, LayerPlan
from vqcompress.architectures.opening import ALIASES, open_pipeline

__all__ = [
    "ALIASES",
    "FAMILIES",
    "VAE",
    "Architecture",
    "IgnoreRules",
    "LayerPlan",
    "Pipeline",
    "architecture_of",
    "open_pipeline",
]
