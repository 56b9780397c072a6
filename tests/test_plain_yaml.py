"""Recipes from strangers: one line, quickly, whatever the file holds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vqcompress.errors import RecipeError
from vqcompress.plain_yaml import MAX_BYTES, MAX_VALUES, read_plain_yaml
from vqcompress.recipe import Recipe

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
HOSTILE = {
    "a billion values": (LAUGHS, "values, aliases written out|aliases"),
    "a value that contains itself": ("model: &a [*a]\n", "contains it"),
    "deep flow": ("model: " + "[" * 100_000, "levels of nesting"),
    "deep block": ("".join("  " * i + "a:\n" for i in range(300)), "levels of nesting"),
    "many values": ("model: [" + "1," * (MAX_VALUES + 1) + "]", "values"),
    "too long": ("# " + "x" * MAX_BYTES, "longer than"),
    "a date": ("model: shapes\nignore: {a: 2001-01-01}\n", "timestamp is not allowed.*quotes"),
    "no date at all": ("model: 2001-99-99\n", "timestamp"),
    "a set": ("model: !!set {a, b}\n", "set is not allowed"),
    "binary": ("model: !!binary aGVsbG8=\n", "binary is not allowed"),
    "an object": ("model: !!python/object/apply:os.system ['true']\n", "not allowed"),
    "a number of 10,000 digits": ("model: shapes\nseed: " + "9" * 10_000 + "\n", "digits"),
    "a large number in base 60": ("model: shapes\nbits: 1" + ":1" * 300 + ".0\n", "digits"),
    "a long number in base 60": ("model: shapes\nbits: 1" + ":1" * 100_000 + "\n", "digits"),
    "a long hexadecimal number": ("model: shapes\nbits: 0x" + "f" * 6000 + "\n", "digits"),
    "a NUL": ("model: sh\0apes\n", "special characters"),
    "a list as a key": ("{[1, 2]: 3}", "key"),
    "not closed": ("model: {", "expected"),
    "no mapping": ("- model\n", "not a mapping"),
    "a long value": ("model: shapes\nbits: " + "x" * 100_000, "bits"),
}


@pytest.mark.parametrize(("text", "expected"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_recipe_is_answered_in_one_line_within_a_second(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(RecipeError, match=expected) as caught:
        Recipe.read(path)
    assert time.process_time() - start < 1
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_a_billion_values_are_refused_in_little_memory(tmp_path: Path) -> None:
    """500 bytes, in a process of its own: with the aliases written out, no memory would do."""
    path = tmp_path / "recipe.yaml"
    path.write_text(LAUGHS)
    assert path.stat().st_size < 512
    code = (
        "import resource, sys; from vqcompress.recipe import Recipe; from vqcompress.errors import RecipeError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: Recipe.read(sys.argv[1])\n"
        "except RecipeError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=20)
    assert int(done.stdout) < 8_000  # KiB


def test_names_that_are_no_files(tmp_path: Path) -> None:
    loop, pipe = tmp_path / "loop.yaml", tmp_path / "pipe.yaml"
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    for name in (loop, pipe, tmp_path, tmp_path / "nowhere", "a\0b", "/dev/zero", str(tmp_path / ("x" * 5000))):
        with pytest.raises(RecipeError, match="cannot read recipe") as caught:
            Recipe.read(name)
        assert "\n" not in str(caught.value)


def test_what_people_write_is_read(tmp_path: Path) -> None:
    """Anchors, merged keys, a BOM, CRLF, comments, quotes; expected values by hand."""
    path = tmp_path / "recipe.yaml"
    path.write_bytes(
        b"\xef\xbb\xbf# mine\r\nbase: &base {steps: 2, guidance: 3.5}\r\n"
        b"calibration: {<<: *base, prompts: '2001-01-01'}\r\nbits: 3\r\nflag: yes\r\nnothing: ~\r\n"
    )
    base = {"steps": 2, "guidance": 3.5}
    assert read_plain_yaml(path) == {
        "base": base,
        "calibration": {**base, "prompts": "2001-01-01"},
        "bits": 3,
        "flag": True,
        "nothing": None,
    }
