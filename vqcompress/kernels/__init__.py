"""``y = x · Wᵀ + b`` straight from the packed form, by the first kernel of an ordered table that supports the case."""

from vqcompress.kernels.choice import KernelChoice, kernel_choice
from vqcompress.kernels.compute import conv2d, decode, linear, packed_conv2d, packed_linear
from vqcompress.kernels.packed_layout import PackedLayout, layout_to_text
from vqcompress.kernels.table import KERNELS, Kernel, choose_kernel

__all__ = [
    "KERNELS",
    "Kernel",
    "KernelChoice",
    "PackedLayout",
    "choose_kernel",
    "conv2d",
    "decode",
    "kernel_choice",
    "layout_to_text",
    "linear",
    "packed_conv2d",
    "packed_linear",
]
