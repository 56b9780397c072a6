"""The bytes on disk mean for ever what they mean today, and docs/FORMAT.md says what that is.

The decoder below is written from docs/FORMAT.md alone, with none of vqcompress: if the two disagree, the page is wrong.
To change the format on purpose, run ``python tests/formats/make_golden.py``.
"""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch

from vqcompress.formats import spec_from_dict
from vqcompress.formats.trellis_table import GAUSSIAN_CODES, value_table
from vqcompress.kernels import decode
from vqcompress.quantized_weight import QuantizedWeight

HERE = Path(__file__).parent
DOCUMENT = (HERE.parents[1] / "docs" / "FORMAT.md").read_text()
FILES = sorted(HERE.glob("golden_*.json"))
TABLE = {
    (int(bits), int(rate)): (int(multiplier), float(gain))
    for bits, rate, multiplier, gain in re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|$", DOCUMENT, re.M)
}


def bits_of(data: bytes) -> list[int]:
    return [(byte >> (7 - place)) & 1 for byte in data for place in range(8)]


def number(bits: list[int]) -> int:
    return int("".join(map(str, bits)) or "0", 2)


def numbers(data: bytes, width: int, count: int) -> list[int]:
    bits = bits_of(data)
    return [number(bits[j * width : (j + 1) * width]) for j in range(count)]


class Page:
    """One stored weight, decoded as docs/FORMAT.md says."""

    def __init__(self, golden: dict) -> None:
        self.spec = golden["spec"]
        self.rows, self.columns = golden["shape"][0], math.prod(golden["shape"][1:])
        entries = {**golden["tensors"], **golden["shared"]}
        self.raw = {name: bytes.fromhex(entry["hex"]) for name, entry in entries.items()}
        self.shapes = {name: entry["shape"] for name, entry in entries.items()}

    def half(self, name: str) -> np.ndarray:
        return np.frombuffer(self.raw[name], "<f2").reshape(self.shapes[name]).astype(np.float32)

    def scale(self) -> np.ndarray:
        return np.broadcast_to(self.half("scale"), (self.rows,))

    def column_bytes(self, length) -> list[tuple[int, bytes]]:
        """(rate, bytes) of every column, in column order."""
        spec, rates = self.spec, [self.spec["min_rate"]] * self.columns
        if spec["rate_bits"]:
            rates = [spec["min_rate"] + r for r in numbers(self.raw["rates"], spec["rate_bits"], self.columns)]
        found, at = {}, 0
        for column in sorted(range(self.columns), key=lambda c: (rates[c], c)):
            found[column] = self.raw["weight"][at : at + length(rates[column])]
            at += length(rates[column])
        assert at == spec["code_bytes"] == len(self.raw["weight"])
        return [(rates[column], found[column]) for column in range(self.columns)]

    def trellis(self) -> np.ndarray:
        L, weight = self.spec["state_bits"], np.zeros((self.rows, self.columns), np.float32)
        unit = 1 if self.spec.get("half_rates") else 2
        for column, (rate, data) in enumerate(self.column_bytes(lambda r: math.ceil(self.rows * r * unit // 2 / 8))):
            size = self.rows * rate * unit // 2
            circle, end = bits_of(data)[:size], 0
            for t in range(self.rows):
                begin, end = end, (t + 1) * rate * unit // 2
                state = number([circle[b % size] for b in range(end - L, end)]) if size else 0
                weight[t, column] = (self.table(end - begin)[state] if size else 0) * self.scale()[t]
        return self.with_outliers(weight * self.gains())

    def with_outliers(self, weight: np.ndarray) -> np.ndarray:
        if self.spec.get("outliers"):
            positions = np.frombuffer(self.raw["outlier_positions"], "<i4")
            for position, value in zip(positions, self.half("outlier_values"), strict=True):
                weight[position % self.rows, position // self.rows] += value
        return weight

    def gains(self) -> np.ndarray:
        codes = numbers(self.raw["gains"], 4, self.columns) if self.spec.get("gains") else [4] * self.columns
        return np.array([2 ** ((4 - n) / 2) for n in codes], np.float32)

    def table(self, rate: int) -> np.ndarray:
        learned = self.spec.get("codebook_rates", [])
        if rate in learned:
            return self.half("codebooks")[learned.index(rate)]
        return page_table(self.spec["state_bits"], rate, self.spec["tail"])

    def additive(self) -> np.ndarray:
        d, b, weight = self.spec["dimension"], self.spec["code_bits"], np.zeros((self.rows, self.columns), np.float32)
        count, books = math.ceil(self.rows / d), self.half("codebooks")
        for column, (rate, data) in enumerate(self.column_bytes(lambda rate: math.ceil(count * rate * b / 8))):
            codes = numbers(data, b, count * rate)
            for t in range(self.rows):
                total = np.float32(0)
                for m in range(rate):
                    total = total + books[m, codes[t // d * rate + m], t % d]
                weight[t, column] = total * self.scale()[t]
        return self.with_outliers(weight * self.gains())

    def group_scale(self) -> np.ndarray:
        bits = self.spec.get("scale_bits", 16)
        if bits == 16:
            return self.half("group_scale")
        width = math.ceil(self.rows * bits / 8)
        starts = range(0, len(self.raw["group_scale"]), width)
        factors = [numbers(self.raw["group_scale"][start : start + width], bits, self.rows) for start in starts]
        return np.array(factors, np.float32) * self.half("scale")

    def scalar(self) -> np.ndarray:
        b, g, weight = self.spec["bits"], self.spec["group_size"], np.zeros((self.rows, self.columns), np.float32)
        width, scale = math.ceil(self.rows * b / 8), self.group_scale()
        for c in range(self.columns):
            codes = numbers(self.raw["weight"][c * width : (c + 1) * width], b, self.rows)
            zeros = numbers(self.raw["group_zero"][c // g * width : (c // g + 1) * width], b, self.rows)
            for t in range(self.rows):
                weight[t, c] = np.float32(codes[t] - zeros[t]) * scale[c // g, t]
        return weight


@lru_cache
def page_table(L: int, rate: int, tail: float) -> np.ndarray:
    multiplier, gain = TABLE[L, rate]
    inverse = NormalDist().inv_cdf
    z = np.array([inverse((s * multiplier % 2**L + 0.5) / 2**L) for s in range(2**L)])
    v = z * np.exp(tail * z**2 / 2)
    return (gain * v / np.sqrt(np.mean(v**2))).astype(np.float16).astype(np.float32)


def read(path: Path) -> tuple[dict, QuantizedWeight]:
    golden = json.loads(path.read_text())
    spec = spec_from_dict(golden["spec"])
    tensors = {name: _tensor(name, entry) for name, entry in golden["tensors"].items()}
    tensors["weight"] = tensors["weight"].reshape(1, -1)
    shared = {name: _tensor(name, entry) for name, entry in golden["shared"].items()}
    return golden, QuantizedWeight(spec, tuple(golden["shape"]), tensors, shared)


def _tensor(name: str, entry: dict) -> torch.Tensor:
    halves = ("scale", "codebooks", "outlier_values")
    packed = name == "group_scale" and len(entry["hex"]) < 4 * math.prod(entry["shape"])
    dtype = (
        torch.float16
        if name in halves or (name == "group_scale" and not packed)
        else torch.int32
        if name == "outlier_positions"
        else torch.int8
    )
    return torch.frombuffer(bytearray.fromhex(entry["hex"]), dtype=dtype).view(entry["shape"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_stored_bytes_decode_to_the_stored_weight(path):
    golden, weight = read(path)
    assert weight.decode().contiguous().numpy().tobytes().hex() == golden["decoded"]
    tensors = {**weight.tensors, **weight.shared}
    fast = decode(weight.spec, weight.shape, tensors, torch.float32)
    assert fast.contiguous().numpy().tobytes().hex() == golden["decoded"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_page_says_how(path):
    golden = json.loads(path.read_text())
    page = Page(golden)
    weight = getattr(page, golden["spec"]["format"])()
    assert weight.astype("<f4").tobytes().hex() == golden["decoded"]


def test_every_format_has_golden_bytes():
    from vqcompress.formats import FORMATS

    assert {json.loads(path.read_text())["spec"]["format"] for path in FILES} == set(FORMATS)


def test_the_page_has_the_table_of_the_code():
    assert {key: (multiplier, gain) for key, (multiplier, gain, _) in GAUSSIAN_CODES.items()} == TABLE


def test_the_page_s_formula_is_the_table():
    assert np.array_equal(page_table(10, 3, 0.02), value_table(10, 3, 0.02).float().numpy())
