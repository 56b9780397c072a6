"""A kernel that cannot be launched here is the next kernel of the table, not a crash."""

from __future__ import annotations

import pytest
import torch

from random_weights import scalar
from vqcompress.errors import UnsupportedError
from vqcompress.kernels import choose_kernel, decode_case
from vqcompress.kernels.cuda.driver import CudaDriver
from vqcompress.kernels.tensor_cache import refuse_capture


def test_triton_that_launches_nothing_says_why():
    pytest.importorskip("triton")
    from vqcompress.kernels.triton.device import probe_problem

    if torch.cuda.is_available():
        assert probe_problem(torch.device("cuda", 0)) == ""
    else:
        assert "Triton launches nothing here" in probe_problem(torch.device("meta"))


def test_the_cuda_driver_says_why():
    driver = CudaDriver()
    assert "no GPU" in driver.unsupported_reason(torch.device("cpu"))
    spec, shape, _ = scalar((32, 4), 3, 4)
    assert choose_kernel(spec, shape, decode_case(torch.device("cpu"), torch.float32)).name == "cpu_numba"


def test_nothing_is_made_while_a_graph_is_recorded(monkeypatch):
    refuse_capture(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(UnsupportedError, match="run the model once before"):
        refuse_capture(torch.device("cuda"))
