"""Images and videos from a pipeline, compressed or not, and the files that they are written to."""

from vqcompress.generation.drawing import draw, generate, open_placed, prompt_list, seed_list
from vqcompress.generation.files import Drawn, OutputFiles, settings_of
from vqcompress.generation.given_image import read_image
from vqcompress.generation.loras import load_loras
from vqcompress.generation.prompt_length import cut_prompts

__all__ = [
    "Drawn",
    "OutputFiles",
    "cut_prompts",
    "draw",
    "generate",
    "load_loras",
    "open_placed",
    "prompt_list",
    "read_image",
    "seed_list",
    "settings_of",
]
