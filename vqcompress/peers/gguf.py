"""GGUF's K- and IQ-quants, by ggml itself: the library in the ``pywhispercpp`` wheel, called through ctypes.

Rows whose length the format's blocks do not divide get the format that llama.cpp's quantize falls back to. With a
second moment its diagonal is the importance matrix: the mean squares of the inputs.
"""

from __future__ import annotations

import ctypes
from functools import cache, partial
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.peers.peer import Peer, PeerWeight, UnfitForPeerError, installed

FORMATS = (
    "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs", "iq4_nl",
)  # fmt: skip
FALLBACK = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""For rows that are no multiple of 256, by llama.cpp's ``tensor_type_fallback``; ``iq4_nl`` for all others."""


@cache
def _library() -> ctypes.CDLL:
    """ggml's base library, wherever the wheel put it."""
    for file in distribution("pywhispercpp").files or ():
        if file.name.startswith("libggml-base"):
            library = ctypes.CDLL(str(Path(str(file.locate()))))
            library.ggml_quantize_chunk.restype = ctypes.c_size_t
            library.ggml_quantize_chunk.argtypes = [
                ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
                ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
            ]  # fmt: skip
            library.ggml_quantize_init.argtypes = [ctypes.c_int]
            return library
    raise UnfitForPeerError("the installed pywhispercpp holds no libggml-base; install another build of it")


def _format(name: str, columns: int) -> tuple[int, int, int]:
    """ggml's number of the format to use, weights and bytes of its blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for candidate in (name, FALLBACK.get(name, "iq4_nl")):
        number = GGMLQuantizationType[candidate.upper()]
        weights, nbytes = GGML_QUANT_SIZES[number]
        if columns % weights == 0:
            return int(number), weights, nbytes
    raise UnfitForPeerError(f"GGUF stores rows in blocks of 32 weights or more, {columns} columns are no multiple")


def _encode(name: str, matrix: Tensor, moment: SecondMoment | None) -> PeerWeight:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows, columns = matrix.shape
    number, weights, nbytes = _format(name, columns)
    source = np.ascontiguousarray(matrix.numpy(), dtype=np.float32)
    importance = np.ones(columns, np.float32)
    if moment is not None:
        importance = np.ascontiguousarray(moment.diagonal().float().cpu().numpy())
    packed = np.zeros((rows, columns // weights * nbytes), np.uint8)
    library = _library()
    library.ggml_quantize_init(number)
    written = library.ggml_quantize_chunk(
        number, source.ctypes.data, packed.ctypes.data, 0, rows, columns, importance.ctypes.data
    )
    if written != packed.nbytes:
        raise UnfitForPeerError(f"ggml wrote {written} bytes for {name} instead of {packed.nbytes}")
    dense = dequantize(packed, GGMLQuantizationType(number))
    made = GGMLQuantizationType(number).name.lower()
    note = "" if made == name else f"as {made}, which llama.cpp falls back to for rows that are no multiple of 256"
    return PeerWeight(torch.from_numpy(np.asarray(dense, np.float32)), packed.nbytes, note)


def peers() -> list[Peer]:
    """``gguf-q3_k`` and its like."""
    found = partial(installed, "pywhispercpp", "gguf")
    return [
        Peer(f"gguf-{name}", "gguf", partial(_encode, name), found, "pip install pywhispercpp gguf", calibrated=True)
        for name in FORMATS
    ]
