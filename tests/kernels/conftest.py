"""Triton's interpreter in the place of a GPU."""

from __future__ import annotations

import pytest

from vqcompress.kernels import triton_device


@pytest.fixture
def interpreted(monkeypatch):
    """Triton kernels run, slowly, on CPU tensors while this fixture lives; the kernel table then chooses them."""
    pytest.importorskip("triton")
    monkeypatch.setattr(triton_device, "INTERPRETED", True)
