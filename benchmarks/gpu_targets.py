"""The project's targets on an H100 or H200, judged from the results of `gpu_check.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

AHEAD = "trellis, ahead"
Results = Mapping[str, Mapping[str, Any]]
"""Section -> name -> result."""


@dataclass(frozen=True)
class Target:
    """A number of the results that must be at most ``limit``; ``measured`` raises `KeyError` where they lack it."""

    name: str
    limit: float
    unit: str
    measured: Callable[[Results], float]


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured, and whether that is within it; None where nothing was measured."""

    target: Target
    measured: float | None

    @property
    def met(self) -> bool | None:
        return None if self.measured is None else self.measured <= self.target.limit

    def __str__(self) -> str:
        word = {None: "not measured", True: "met", False: "NOT MET"}[self.met]
        value = "" if self.measured is None else f"{self.measured:.3g} {self.target.unit} "
        return f"{word:<13} {self.target.name}: {value}(target {self.target.limit:g} {self.target.unit})"


def judged(results: Results) -> list[Verdict]:
    """A verdict on each target."""
    return [Verdict(target, _measured(target, results)) for target in TARGETS]


def _measured(target: Target, results: Results) -> float | None:
    try:
        return target.measured(results)
    except (KeyError, ValueError, StopIteration):  # its section was left out, ended early or failed
        return None


def _decoding(results: Results) -> float:
    return 1e3 * results["decoding"]["SDXL, trellis"]["seconds"]


def _products(results: Results, fits: Callable[[int], bool]) -> float:
    """The largest ratio to dense among products of the trellis with so many samples."""
    return max(
        value["of dense"]["trellis"]
        for name, value in results["products"].items()
        if "samples" in name and fits(int(name.split(", ")[1].split()[0]))
    )


def _peers(results: Results) -> float:
    """The largest ratio of the trellis' time to the fastest other package's, for one shape and number of samples."""
    others = {"dense", "trellis", "additive", "torchao int4", "AQLM 2x8"}
    return max(
        value["seconds"]["trellis"] / min(taken for way, taken in value["seconds"].items() if way not in others)
        for name, value in results["products"].items()
        if "samples" in name and set(value["seconds"]) - others
    )


def _line(results: Results, weights: str, way: str) -> Mapping[str, Any]:
    lines = results["SDXL step"]["lines"]
    return next(line for line in lines if line["weights"] == weights and line["way"] == way)


def _beyond_activations(results: Results, weights: str = "trellis") -> float:
    """MB that a packed step takes beyond its weights and the dense step's activations."""
    packed, dense = _line(results, weights, "eager"), _line(results, "dense", "eager")
    own, activations = (line["peak_bytes"] - line["weight_bytes"] for line in (packed, dense))
    return (own - activations) / 1e6


def _convolutions(results: Results) -> float:
    return max(value["of dense"] for value in results["convolutions"].values() if isinstance(value, dict))


def _host_share(results: Results) -> float:
    return 1e6 * results["decoding"]["host, packed call"] - 1e6 * results["decoding"]["host, dense call"]


TARGETS = (
    Target("decode all layers of SDXL, in a graph", 2.0, "ms", _decoding),
    Target("linear layers, 2048 samples or more", 1.10, "x dense", lambda r: _products(r, lambda n: n >= 2048)),
    Target("linear layers, 16 samples or fewer", 1.0, "x dense", lambda r: _products(r, lambda n: n <= 16)),
    Target("linear layers, against NF4 and GGUF", 1.0, "x theirs", _peers),
    Target("convolutions", 1.10, "x dense", _convolutions),
    Target("host time of a packed call beyond a dense one", 10, "µs", _host_share),
    Target("SDXL step, in a graph", 1.05, "x dense", lambda r: _line(r, "trellis", "CUDA graph")["ratio_to_dense"]),
    Target("SDXL step, eager", 1.15, "x dense", lambda r: _line(r, "trellis", "eager")["ratio_to_dense"]),
    Target("memory of an SDXL step beyond codes and activations", 300, "MB", _beyond_activations),
    Target(
        "SDXL step, in a graph, decoded ahead",
        1.05,
        "x dense",
        lambda r: _line(r, AHEAD, "CUDA graph")["ratio_to_dense"],
    ),
    Target("SDXL step, eager, decoded ahead", 1.15, "x dense", lambda r: _line(r, AHEAD, "eager")["ratio_to_dense"]),
    Target("memory of that beyond codes and activations", 300, "MB", lambda r: _beyond_activations(r, AHEAD)),
)
