"""``y = x · Wᵀ + b`` straight from the packed form, by the first kernel of an ordered table that supports the case."""

from vqcompress.kernels.choice import KernelChoice, kernel_choice
from vqcompress.kernels.compute import conv2d, decode, laid_out_conv2d, laid_out_linear, linear
from vqcompress.kernels.layout import Layout, layout_to_text
from vqcompress.kernels.table import KERNELS, Kernel, choose_kernel

__all__ = [
    "KERNELS",
    "Kernel",
    "KernelChoice",
    "Layout",
    "choose_kernel",
    "conv2d",
    "decode",
    "kernel_choice",
    "laid_out_conv2d",
    "laid_out_linear",
    "layout_to_text",
    "linear",
]
