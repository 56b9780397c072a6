"""Kernels in CUDA C++, compiled where they run."""
