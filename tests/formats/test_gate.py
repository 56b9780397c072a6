"""The gate: every field of every spec, every tensor, with values that a stranger may have written."""

from __future__ import annotations

import json

import pytest
import torch

from tests.conftest import random_additive, random_scalar, random_trellis
from tests.fuzz.folders import with_column_scales_and_outliers
from vqcompress.errors import CheckpointError
from vqcompress.formats import check, spec_from_dict, spec_to_dict
from vqcompress.layers.description import layer_specs

SHAPE = (16, 12)
WEIGHTS = {
    "trellis": with_column_scales_and_outliers(SHAPE, 0),
    "additive": random_additive(SHAPE, dimension=4, code_bits=4),
    "scalar": random_scalar(SHAPE, bits=3),
}
HOSTILE = [
    -1, 1 << 31, (1 << 33) + 3, 1 << 53, 1 << 63, 1 << 64, -(1 << 63), 10**30, True, False, None, "3", 2.5,
    float("nan"), float("inf"), [], [1 << 40], {}, {"a": [1]},
]  # fmt: skip


def _entries() -> list[tuple[str, str]]:
    return [
        (kind, field) for kind, weight in WEIGHTS.items() for field in spec_to_dict(weight.spec) if field != "format"
    ]


@pytest.mark.parametrize(("kind", "field"), _entries())
def test_no_hostile_value_asks_for_more_than_is_stored(kind: str, field: str) -> None:
    """A value is refused in one line, or the tensors that are there are all that the spec reads."""
    weight, stored = WEIGHTS[kind], WEIGHTS[kind].state_dict()
    for value in HOSTILE:
        if (problem := _problem({**spec_to_dict(weight.spec), field: value}, stored)) is not None:
            assert "\n" not in problem
            assert len(problem) < 400
            continue
        spec = spec_from_dict({**spec_to_dict(weight.spec), field: value})
        codebooks = {"codebooks": torch.zeros(spec.codebook_shape)} if spec.codebook else {}
        assert spec.decode_transposed(*SHAPE, {**stored, **codebooks}).shape == SHAPE[::-1], (field, value)


def _problem(entry: dict, stored: dict[str, torch.Tensor]) -> str | None:
    try:
        check(spec_from_dict(entry), SHAPE, stored)
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("trellis", {"min_rate": -1}, "min_rate is -1"),
        ("trellis", {"rate_bits": 40}, "rate_bits is 40"),
        ("trellis", {"min_rate": 2**33 + 3}, "min_rate is 8589934595"),
        ("trellis", {"code_bytes": 64 << 30}, "code_bytes is 68719476736"),
        ("trellis", {"rotation": 12}, "no power of two"),
        ("trellis", {"rotation": 32}, "does not divide 16 outputs"),
        ("trellis", {"state_bits": 9}, "state_bits is 9"),
        ("trellis", {"outliers": 193}, "outliers is 193"),
        ("trellis", {"tail": float("nan")}, "tail is nan"),
        ("additive", {"code_bits": 2**53}, "code_bits is 9007199254740992"),
        ("additive", {"codebook": "a.b"}, "codebook is 'a.b'"),
        ("scalar", {"group_size": -1}, "group_size is -1"),
        ("scalar", {"group_size": 2**63}, "group_size is 9223372036854775808"),
        ("scalar", {"bits": 1000}, "bits is 1000"),
        ("scalar", {"bits": True}, "bits is True"),
    ],
)
def test_numbers_that_read_beyond_a_tensor_are_named(kind: str, change: dict, message: str) -> None:
    entry = {**spec_to_dict(WEIGHTS[kind].spec), **change, "shape": list(SHAPE)}
    with pytest.raises(CheckpointError, match=message):
        layer_specs({"layers": {"a": entry}, "shared": {}})


@pytest.mark.parametrize(
    "shape", [(), (16,), (16, 12, 1), (16, -12), (0, 12), (16, 1 << 45), (True, 12), (16.0, 12), None, "ab", [[1], [2]]]
)
def test_shapes_that_no_layer_has_are_refused(shape: object) -> None:
    entry = {**spec_to_dict(WEIGHTS["scalar"].spec), "shape": shape}
    with pytest.raises(CheckpointError, match="shape"):
        layer_specs(json.loads(json.dumps({"layers": {"a": entry}, "shared": {}})))


def _changed(kind: str, name: str, change) -> dict[str, torch.Tensor]:
    tensors = {key: tensor.clone() for key, tensor in WEIGHTS[kind].state_dict().items()}
    tensors[name] = change(tensors[name])
    return tensors


def _at(index: int, value: float):
    return lambda tensor: tensor.index_fill(0, torch.tensor([index]), value)


@pytest.mark.parametrize(
    ("kind", "name", "change", "message"),
    [
        ("trellis", "rates", lambda t: t.fill_(-1), "rates needs"),  # the issue of a damaged download: more than stored
        ("trellis", "rates", lambda t: t.zero_(), "rates needs"),
        ("trellis", "weight", lambda t: t[:, :-1], "weight is int8"),
        ("trellis", "scale", _at(3, float("inf")), "scale holds values that are not finite"),
        ("trellis", "scale", lambda t: t.float(), "scale is float32"),
        ("trellis", "outlier_values", _at(0, float("nan")), "outlier_values holds values that are not finite"),
        ("trellis", "outlier_positions", _at(2, 192), "outside of the 192 weights"),
        ("trellis", "outlier_positions", _at(0, -1), "outside of the 192 weights"),
        ("trellis", "outlier_positions", lambda t: t[[0, 0, 2]], "do not rise"),
        ("additive", "rates", lambda t: t.fill_(-1), "rates needs"),
        ("additive", "codebooks", lambda t: t * float("nan"), "codebooks holds values that are not finite"),
        ("scalar", "group_scale", lambda t: t / 0, "group_scale holds values that are not finite"),
        ("scalar", "group_zero", lambda t: t[:1], "group_zero is int8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(kind: str, name: str, change, message: str) -> None:
    weight = WEIGHTS[kind]
    check(weight.spec, SHAPE, weight.state_dict())
    with pytest.raises(CheckpointError, match=message):
        check(weight.spec, SHAPE, _changed(kind, name, change))


def test_a_rate_beyond_the_format_is_refused() -> None:
    weight = random_trellis(SHAPE, state_bits=8, min_rate=4, rate_bits=0)
    entry = {**spec_to_dict(weight.spec), "rate_bits": 1}
    rates = torch.full((1, 2), -1, dtype=torch.int8)
    with pytest.raises(CheckpointError, match="holds the rate 5, the format ends at 4"):
        check(spec_from_dict(entry), SHAPE, {**weight.state_dict(), "rates": rates})
