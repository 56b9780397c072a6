"""Headers that `vqcompress.safetensors_header` calls sound, against the library that opens the files afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vqcompress.safetensors_header import ELEMENT_BYTES, LENGTH_BYTES, stored_header, understood

TENSORS = {
    "down.weight": torch.zeros(3, 5, dtype=torch.int8),
    "down.scale": torch.zeros(3, 1, dtype=torch.float16),
    "empty": torch.zeros(0, 7),
    "number": torch.tensor(1.0),
    "é-0": torch.zeros(2, dtype=torch.bool),
}
SAVED = save(TENSORS, {"format": "pt"})
LENGTH = int.from_bytes(SAVED[:LENGTH_BYTES], "little")
HEADER = SAVED[LENGTH_BYTES : LENGTH_BYTES + LENGTH].decode()


def written(path: Path, header: str) -> Path:
    text = header.encode("utf-8", "surrogatepass")
    path.write_bytes(len(text).to_bytes(LENGTH_BYTES, "little") + text + SAVED[LENGTH_BYTES + LENGTH :])
    return path


def opens(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return all(file.get_tensor(key) is not None for key in file.keys())  # noqa: SIM118 - no mapping
    except SafetensorError:
        return False


def is_sound(path: Path) -> bool:
    header, said = stored_header(path)
    return header.sound and said == path.stat().st_size


def test_what_the_library_writes_is_sound(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", HEADER)
    assert opens(path)
    assert is_sound(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"shape":[3,5]', '"shape":[5,3]'),
        ('"shape":[3,5]', '"shape":[3,6]'),
        ('"shape":[3,5]', '"shape":[-3,-5]'),
        ('"shape":[3,5]', '"shape":[3.0,5]'),
        ('"shape":[0,7]', '"shape":[0,-0]'),
        ('"shape":[0,7]', '"shape":[0,18446744073709551616]'),
        ('"shape":[0,7]', '"shape":[0,true]'),
        ('"shape":[3,5]', '"shape":[3,5],"shape":[3,5]'),
        ('"shape":[3,5]', '"shape":[3,5],"more":NaN'),
        ('"shape":[3,5]', '"shape":[1000000000,"a"]'),
        ('"dtype":"I8"', '"dtype":"I9"'),
        ('"dtype":"I8"', '"dtype":["I8"]'),
        ('{"format":"pt"}', '{"format":1}'),
        ('{"format":"pt"}', '"pt"'),
        ('{"format":"pt"}', '{"format":"\\ud800"}'),
        ('"__metadata__":{"format":"pt"}', '"__metadata__":{"format":"pt"},"__metadata__":{}'),
        ('"number"', '"\\ud800"'),
        ('"number"', '"\ud800"'),
        ('"number"', '"empty"'),
        ('"number"', '"\x01"'),
        ('"data_offsets":[0,', '"data_offsets":[-0,'),
        ('"data_offsets":[0,', '"data_offsets":[0.0,'),
        ('"data_offsets":[0,', '"data_offsets":[00,'),
        ("{", "\ufeff{"),
    ],
)
def test_sound_headers_are_those_that_the_library_takes(tmp_path: Path, old: str, new: str) -> None:
    assert old in HEADER
    path = written(tmp_path / "a.safetensors", HEADER.replace(old, new, 1))
    assert opens(path) or not is_sound(path)


NUMBERS = st.one_of(st.integers(-3, 40), st.floats(), st.booleans(), st.none(), st.integers())
ENTRIES: st.SearchStrategy[Any] = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*ELEMENT_BYTES, "F8_E4M3", "C64", "?"]),
            "shape": st.lists(NUMBERS, max_size=3),
            "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
        },
        optional={"more": NUMBERS},
    ),
    st.dictionaries(st.text(max_size=3), NUMBERS, max_size=2),
    NUMBERS,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(["__metadata__", *TENSORS]), entry=ENTRIES)
def test_another_entry(tmp_path: Path, key: str, entry: Any) -> None:
    entries = json.loads(HEADER) | {key: entry}
    path = written(tmp_path / "a.safetensors", json.dumps(entries, ensure_ascii=False))
    assert opens(path) or not is_sound(path)


@pytest.mark.parametrize("seed", range(2))
def test_other_characters(tmp_path: Path, seed: int) -> None:
    """Half of the mutations hit what the header's meaning hangs on: digits, commas, brackets and quotes."""
    random, path = Random(seed), tmp_path / "a.safetensors"
    marks = [at for at, mark in enumerate(HEADER) if mark in '0123456789,:[]{}"']
    for _ in range(400):
        at = random.choice(marks) if random.random() < 0.5 else random.randrange(len(HEADER))
        put = random.choice('0123456789,:[]{}"-eE. \\u\n\tx')
        cut = at + random.randrange(2)
        written(path, HEADER[:at] + put + HEADER[cut:])
        assert opens(path) or not is_sound(path), path.read_bytes()


def test_a_dtype_that_no_layer_of_ours_has_is_left_to_the_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": torch.zeros(4, dtype=torch.float8_e4m3fn)}))
    assert opens(path)
    assert not is_sound(path)
    assert stored_header(path)[1] == path.stat().st_size


def test_a_header_is_read_once() -> None:
    assert understood(HEADER.encode()) is understood(HEADER.encode())
