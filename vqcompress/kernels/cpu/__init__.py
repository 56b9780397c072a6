"""CPU kernels: loops compiled by numba."""
