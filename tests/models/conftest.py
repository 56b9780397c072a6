"""Recorded outputs of the official classes: weights, inputs, outputs, and how far a network is from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "fixtures"
TOLERANCE = 2e-5


@dataclass(frozen=True)
class OfficialCall:
    """One recorded call; ``inputs`` are keyword arguments, dotted names already made lists and dicts."""

    method: str
    inputs: dict[str, object]
    outputs: list[Tensor]

    def deviation(self, module: nn.Module) -> float:
        """Largest ``max|a - b| / max|b|`` over the outputs of the module."""
        with torch.no_grad():
            given = getattr(module, self.method)(**self.inputs)
        given = given[0] if isinstance(given, tuple) else getattr(given, "sample", given)
        given = [given] if isinstance(given, Tensor) else list(given)
        assert [g.shape for g in given] == [o.shape for o in self.outputs]
        return max(float((g - o).abs().max() / o.abs().max()) for g, o in zip(given, self.outputs, strict=True))


@dataclass(frozen=True)
class OfficialRun:
    """A fixture folder in memory; ``auxiliary`` has the other recorded tensors (expert indices) by full name."""

    folder: Path
    config: dict[str, object]
    weights: dict[str, Tensor]
    calls: list[OfficialCall]
    auxiliary: dict[str, Tensor]


def _nested(flat: Mapping[str, object]) -> dict[str, object]:
    nested: dict[str, object] = {name: value for name, value in flat.items() if "." not in name}
    for name in sorted(flat.keys() - nested.keys()):
        head, tail = name.split(".", 1)
        if tail.isdecimal():
            nested.setdefault(head, []).append(flat[name])
        else:
            nested.setdefault(head, {})[tail] = flat[name]
    return nested


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensors[name] for name in sorted(tensors) if name.startswith(prefix)}


def _read(name: str) -> OfficialRun:
    config = json.loads((FOLDER / name / "config.json").read_text())
    recorded = load_file(FOLDER / name / "io.safetensors")
    calls = []
    for entry in config["calls"]:
        prefix = f"call{entry['call']}."
        inputs = _nested(_under(recorded, f"{prefix}in.")) | entry["scalars"]
        calls.append(OfficialCall(entry["method"], inputs, list(_under(recorded, f"{prefix}out").values())))
    auxiliary = {name: tensor for name, tensor in recorded.items() if ".aux." in name}
    weights = load_file(FOLDER / name / "weights.safetensors")
    return OfficialRun(FOLDER / name, config["constructor"], weights, calls, auxiliary)


@pytest.fixture
def official_run() -> Callable[[str], OfficialRun]:
    """``official_run("dit")``: the fixture folder of that name."""
    return _read


@pytest.fixture
def tolerance() -> float:
    """Bound on ``max|a - b| / max|b|`` for a network that computes the official function in float32."""
    return TOLERANCE
