"""The benchmark of single layers: rows of other packages, and what it says of those that are not here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import layer_error
from layer_error import Result
from vqcompress.errors import VQCompressError
from vqcompress.peers import PEERS, Peer, PeerWeight, UnfitForPeerError


def half(matrix, moment):
    if matrix.shape[1] == 4:
        raise UnfitForPeerError("four columns")
    return PeerWeight(matrix.half().float(), 2 * matrix.numel())


def test_a_layer_that_does_not_fit_has_dashes():
    results = [Result("half", "b", 16.0, 1e-7, 0.5, None, 0.1), Result("ours", "a", 3.0, 0.01, 0.1, 0.02, 1.0)]
    table = layer_error.markdown(results, ["a", "b"]).splitlines()
    assert table[2] == "| half | – / 16.000 | – | 1e-07 | – / 0.500 | – | – | – / 0.10 |"
    assert table[3] == "| ours | 3.000 / – | 0.01 | – | 0.100 / – | 0.02 | – | 1.00 / – |"


def test_peers_are_rows_and_absent_ones_sentences(monkeypatch):
    present = Peer("half", "half", half, lambda: "half 1.0", "pip install half")
    monkeypatch.setitem(PEERS, "half", present)
    monkeypatch.setitem(PEERS, "absent", replace(present, name="absent", found=lambda: ""))
    rows, missing = layer_error.other_packages("half, absent")
    assert missing == ["absent is not installed: pip install half"]
    decoded, bits = rows["half"](torch.randn(8, 16), torch.eye(16))
    assert (decoded.shape, bits) == ((8, 16), 16)
    with pytest.raises(UnfitForPeerError):
        rows["half"](torch.randn(8, 4), None)
    with pytest.raises(VQCompressError, match="unknown peer"):
        layer_error.other_packages("hqq3")
