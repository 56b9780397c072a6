"""The methods of quantization: their names and traits as data, without importing any of them.

The recipe, the command line, the quantizers and the reports read this table. To add a method, write
``vqcompress/quantizers/<name>.py`` with a `vqcompress.quantizers.Quantizer` in it and add one row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

Family = Literal["vector", "scalar"]
Budget = Literal["layer", "model"]


@dataclass(frozen=True)
class Method:
    """One row of the table.

    ``quantizer`` names the `vqcompress.quantizers.Quantizer` as ``"module:attribute"``; it is imported on first use.
    ``whole_bits`` methods take an integer number of bits a code and store scales (or codebooks) on top; for the others
    ``bits`` counts all that is stored. ``calibrated`` methods use the second moment of a layer's inputs.
    ``output_feedback`` methods can also use the moment of its outputs' gradients. A ``baseline`` is there to be
    compared with, and is used as its own users do: with the same bits in every layer.
    """

    name: str
    family: Family
    quantizer: str
    description: str
    whole_bits: bool = False
    calibrated: bool = True
    output_feedback: bool = False
    baseline: bool = False

    @property
    def default_budget(self) -> Budget:
        """Whether a recipe without a budget gives every layer the same bits or allocates them over the model."""
        return "layer" if self.baseline else "model"


_ROWS = (  # in the order in which they are listed and shown; the first is the default
    Method(
        "trellis",
        "vector",
        "vqcompress.quantizers.trellis:TRELLIS",
        "trellis codes found by Viterbi search",
        output_feedback=True,
    ),
    Method(
        "additive",
        "vector",
        "vqcompress.quantizers.additive:ADDITIVE",
        "sums of codewords found by beam search",
    ),
    Method(
        "kmeans",
        "vector",
        "vqcompress.quantizers.kmeans:KMEANS",
        "residual k-means, the plain vector baseline",
        baseline=True,
    ),
    Method(
        "gptq",
        "scalar",
        "vqcompress.quantizers.gptq:GPTQ",
        "scalar grid with error feedback, a baseline",
        whole_bits=True,
        baseline=True,
    ),
    Method(
        "rtn",
        "scalar",
        "vqcompress.quantizers.rtn:RTN",
        "scalar grid, round to nearest without calibration, a baseline",
        whole_bits=True,
        calibrated=False,
        baseline=True,
    ),
)

SCALAR_FORMAT = "scalar"

METHODS: dict[str, Method] = {method.name: method for method in _ROWS}
DEFAULT_METHOD = _ROWS[0].name


def gave_way(method: str, packed_format: str) -> bool:
    """Whether a layer's vector code gave way to a scalar code, which was better in no more bytes."""
    return METHODS[method].family == "vector" and packed_format == SCALAR_FORMAT


if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
    """The names as a type that pydantic validates."""
