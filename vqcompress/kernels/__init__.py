"""``y = x · Wᵀ + b`` straight from the packed form, by the first kernel of an ordered table that supports the case."""

from vqcompress.kernels.compute import conv2d, decode, linear
from vqcompress.kernels.table import KERNELS, Kernel, choose_kernel

__all__ = ["KERNELS", "Kernel", "choose_kernel", "conv2d", "decode", "linear"]
