"""Networks in ncnn's format (``.param``, a graph as text, and ``.bin``, its weights) as torch modules.

Only data is read. The format (ncnn's wiki, "param and model file structure") is a list of layers with numbered
settings, of which the few that super-resolution networks use are known here. Weights lie in the order of the graph, as
float16 or float32 behind a flag, padded to four bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAGIC = "7767517"
FLOAT16 = 0x01306B47
ARRAY = -23300  # key of an array setting: ARRAY - key


@dataclass(frozen=True)
class Node:
    """One layer of the graph: its type, its name, the tensors that it reads and writes, and its numbered settings."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: dict[int, list[float]]

    def number(self, key: int, default: float = 0) -> float:
        """A setting that is one number."""
        return self.settings.get(key, [default])[0]


class NcnnGraph(nn.Module):
    """Runs the nodes in order on ``x [batch, 3, height, width]``; convolutions are ordinary `nn.Conv2d` submodules."""

    def __init__(self, param: Path, weights: Path) -> None:
        super().__init__()
        self.nodes = read_param(param)
        stream = _Weights(weights)
        self.layers = nn.ModuleDict()
        for node in self.nodes:
            if node.kind in PARAMETERS:
                self.layers[node.name] = PARAMETERS[node.kind](node, stream)
        stream.check_end()

    def forward(self, x: Tensor) -> Tensor:
        """The last node's output."""
        known: dict[str, Tensor] = {}
        layers = dict(self.layers.items())
        for node in self.nodes:
            given = [known[name] for name in node.inputs]
            made = [x] if node.kind == "Input" else [OPERATIONS[node.kind](node, given, layers.get(node.name))]
            known.update(zip(node.outputs, made * (len(node.outputs) // len(made)), strict=True))
        return known[self.nodes[-1].outputs[0]]

    def prefixes(self) -> dict[str, str]:
        """Convolution -> the one of the most inputs whose first channels are this one's input, where there is one.

        In a dense block each convolution reads what the one before read, and that one's output.
        """
        parts: dict[str, tuple[str, ...]] = {}
        for node in self.nodes:
            read = tuple(part for name in node.inputs for part in parts[name])
            parts |= {name: read if node.kind in ("Split", "Concat") else (name,) for name in node.outputs}
        reads = {node.name: parts[node.inputs[0]] for node in self.nodes if node.kind == "Convolution"}
        widest = {
            reads[name][:end]: name for name in sorted(reads, key=lambda n: len(reads[n])) for end in _ends(reads[name])
        }
        return {f"layers.{name}": f"layers.{widest[read]}" for name, read in reads.items() if widest[read] != name}


def _ends(parts: tuple[str, ...]) -> range:
    return range(1, len(parts) + 1)


def read_param(path: Path) -> list[Node]:
    """The nodes of a ``.param`` file. Raises `ValueError` for another format and for an unknown type of layer."""
    first, _, *lines = path.read_text().splitlines()
    if first != MAGIC:
        raise ValueError(f"{path} is not an ncnn graph as text: it begins with {first[:20]!r}")
    nodes = [_node(line.split()) for line in lines if line.strip()]
    if unknown := {node.kind for node in nodes} - {"Input"} - OPERATIONS.keys():
        raise ValueError(f"{path} has layers of unknown type: {', '.join(sorted(unknown))}")
    return nodes


def _node(words: list[str]) -> Node:
    kind, name, reads, writes, *rest = words
    inputs, outputs = rest[: int(reads)], rest[int(reads) : int(reads) + int(writes)]
    settings = {}
    for word in rest[int(reads) + int(writes) :]:
        key, values = word.split("=")
        numbers = [float(value) for value in values.split(",")]
        settings[ARRAY - int(key) if int(key) <= ARRAY else int(key)] = numbers[1:] if int(key) <= ARRAY else numbers
    return Node(kind, name, tuple(inputs), tuple(outputs), settings)


class _Weights:
    """The ``.bin`` file, read from front to back."""

    def __init__(self, path: Path) -> None:
        self._data, self._at, self._path = path.read_bytes(), 0, path

    def flagged(self, count: int) -> Tensor:
        """``count`` values behind a flag that says how they are stored."""
        flag = int.from_bytes(self._take(4), "little")
        if flag not in (0, FLOAT16):
            raise ValueError(f"{self._path}: weights stored as {flag:#x}, only float32 and float16 are read")
        return self._values(count, np.dtype("<f2") if flag else np.dtype("<f4"))

    def plain(self, count: int) -> Tensor:
        """``count`` float32 values without a flag, as biases are stored."""
        return self._values(count, np.dtype("<f4"))

    def check_end(self) -> None:
        """Raises `ValueError` unless all bytes have been read."""
        if self._at != len(self._data):
            raise ValueError(f"{self._path}: {len(self._data) - self._at} bytes are left over")

    def _values(self, count: int, dtype: np.dtype) -> Tensor:
        values = np.frombuffer(self._take(-(-count * dtype.itemsize // 4) * 4), dtype)[:count]
        return torch.from_numpy(values.astype(np.float32))

    def _take(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._data):
            raise ValueError(f"{self._path} ends too early")
        return self._data[self._at - count : self._at]


def _convolution(node: Node, weights: _Weights) -> nn.Conv2d:
    outputs, kernel, count = int(node.number(0)), int(node.number(1)), int(node.number(6))
    inputs = count // (outputs * kernel * kernel)
    layer = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride=int(node.number(3, 1)),
        padding=int(node.number(4)),
        dilation=int(node.number(2, 1)),
        bias=bool(node.number(5)),
    )
    layer.weight.data = weights.flagged(count).reshape(layer.weight.shape)
    if layer.bias is not None:
        layer.bias.data = weights.plain(outputs)
    return layer


def _deconvolution(node: Node, weights: _Weights) -> nn.ConvTranspose2d:
    outputs, kernel, count = int(node.number(0)), int(node.number(1)), int(node.number(6))
    inputs = count // (outputs * kernel * kernel)
    stride, padding = int(node.number(3, 1)), int(node.number(4))
    layer = nn.ConvTranspose2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=bool(node.number(5)))
    layer.weight.data = weights.flagged(count).reshape(outputs, inputs, kernel, kernel).transpose(0, 1).contiguous()
    if layer.bias is not None:
        layer.bias.data = weights.plain(outputs)
    return layer


def _prelu(node: Node, weights: _Weights) -> nn.PReLU:
    layer = nn.PReLU(int(node.number(0)))
    layer.weight.data = weights.plain(int(node.number(0)))
    return layer


PARAMETERS: dict[str, Callable[[Node, _Weights], nn.Module]] = {
    "Convolution": _convolution,
    "Deconvolution": _deconvolution,
    "PReLU": _prelu,
}


def _activated(node: Node, x: Tensor) -> Tensor:
    kind = int(node.number(9))
    if kind == 1:
        return F.relu(x)
    return F.leaky_relu(x, node.settings[10][0]) if kind == 2 else torch.sigmoid(x) if kind == 4 else x


def _weighted_sum(node: Node, given: list[Tensor]) -> Tensor:
    weights = node.settings.get(1, [1.0] * len(given))
    return sum((weight * x for weight, x in zip(weights, given, strict=True)), torch.zeros(()))


def _binary(node: Node, given: list[Tensor]) -> Tensor:
    operations = (torch.add, torch.sub, torch.mul, torch.div)
    return operations[int(node.number(0))](given[0], given[1] if len(given) > 1 else node.number(2))


OPERATIONS: dict[str, Callable[[Node, list[Tensor], nn.Module | None], Tensor]] = {
    "BinaryOp": lambda node, given, layer: _binary(node, given),
    "Concat": lambda node, given, layer: torch.cat(given, 1),
    "Convolution": lambda node, given, layer: _activated(node, layer(given[0])),
    "Deconvolution": lambda node, given, layer: _activated(node, layer(given[0])),
    "Eltwise": lambda node, given, layer: _weighted_sum(node, given),
    "Interp": lambda node, given, layer: F.interpolate(
        given[0], scale_factor=node.number(1, 1), mode=("nearest", "bilinear")[int(node.number(0, 1)) - 1]
    ),
    "PReLU": lambda node, given, layer: layer(given[0]),
    "PixelShuffle": lambda node, given, layer: F.pixel_shuffle(given[0], int(node.number(0, 1))),
    "Split": lambda node, given, layer: given[0],
}
