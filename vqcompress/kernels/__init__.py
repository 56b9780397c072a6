"""``y = x · Wᵀ + b`` computed from the packed form, by the first kernel of an ordered table that supports it."""

from vqcompress.kernels.compute import conv2d, decode, linear, packed_conv2d, packed_linear
from vqcompress.kernels.kernel import Case, Kernel
from vqcompress.kernels.packed_layout import ConvGeometry, PackedLayout, layout_to_text
from vqcompress.kernels.table import (
    KERNELS,
    KernelChoice,
    choose_kernel,
    decode_case,
    kernel_choice,
    product_case,
)

__all__ = [
    "KERNELS",
    "Case",
    "ConvGeometry",
    "Kernel",
    "KernelChoice",
    "PackedLayout",
    "choose_kernel",
    "conv2d",
    "decode",
    "decode_case",
    "kernel_choice",
    "layout_to_text",
    "linear",
    "packed_conv2d",
    "packed_linear",
    "product_case",
]
