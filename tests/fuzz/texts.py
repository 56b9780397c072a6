"""JSON that is written by hand: keys twice, numbers of every notation, nesting, encodings, names that look alike."""

from __future__ import annotations

import random
import re
from pathlib import Path

from tests.fuzz.mutations import Mutation, files

NUMBERS = (
    "1e400", "-1e400", "1E+308", "1e-400", "1e5", "16.0", "1.6e1", "0x10", "007", "１６", "Infinity", "-Infinity",
    "NaN", "-0", "+1", ".5", "9" * 5000, "1" + "0" * 300, "1e999999999", "true", "null", "[]", "{}", '""', '"16"',
    "[[16]]",
)  # fmt: skip
DEPTHS = (50, 500, 990, 1100, 5000, 100_000)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "utf-7")
ENDS = (",", "}", "]", "\0", "{}", "//", "/* */", '"', "\\", "\n\n", " " * 4096)
ALIKE = (("a", "а"), ("e", "é"), ("t", "\uff54"), ("i", "i\u0307"), ("_", "\u2017"), ("s", "ſ"), ("", "\u200b"))


def _text(rng: random.Random, folder: Path) -> tuple[Path, str]:
    path = rng.choice([path for path in files(folder) if path.suffix == ".json"])
    if rng.random() < 0.4:
        path = rng.choice([found for found in files(folder) if found.name == "config.json"] or [path])
    return path, path.read_bytes().decode("utf-8", "surrogateescape")


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def number(rng: random.Random, folder: Path) -> str:
    """Another notation, or another kind, in place of a number."""
    path, text = _text(rng, folder)
    found = list(re.finditer(r"(?<=[\s\[,:])-?[0-9][0-9.eE+-]*", text))
    if not found:
        return "no number"
    place, new = rng.choice(found), rng.choice(NUMBERS)
    _write(path, text[: place.start()] + new + text[place.end() :])
    return f"{path.parent.name}/{path.name}: {new:.30} for {place[0]:.30} at {place.start()}"


def key_twice(rng: random.Random, folder: Path) -> str:
    """The first wins in some parsers, the last in others."""
    path, text = _text(rng, folder)
    pairs = list(re.finditer(r'"(\w+)"\s*:\s*("[^"]*"|-?[0-9.]+|true|false|null)', text))
    if not pairs:
        return "no pair"
    place = rng.choice(pairs)
    other = f'"{place[1]}": {rng.choice((*NUMBERS, place[2], chr(34) + "x" + chr(34)))}'
    new = f"{place[0]}, {other}" if rng.random() < 0.5 else f"{other}, {place[0]}"
    _write(path, text[: place.start()] + new + text[place.end() :])
    return f"{path.parent.name}/{path.name}: {place[1]} twice, {other:.60}"


def nested_value(rng: random.Random, folder: Path) -> str:
    path, text = _text(rng, folder)
    places = [place.end() for place in re.finditer(r"[\[:]\s*", text)]
    if not places:
        return "no value"
    start, depth = rng.choice(places), rng.choice(DEPTHS)
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    new = opening * depth + "1" + closing * depth
    rest = re.sub(r'^("(?:[^"\\]|\\.)*"|[\w.+-]+)', "", text[start:])
    _write(path, text[:start] + (new + rest if rest != text[start:] else new + "," + rest))
    return f"{path.parent.name}/{path.name}: {depth} levels at {start}"


def encoding(rng: random.Random, folder: Path) -> str:
    path, text = _text(rng, folder)
    code = rng.choice(ENCODINGS)
    path.write_bytes(text.encode(code, "replace"))
    return f"{path.parent.name}/{path.name} in {code}"


def ending(rng: random.Random, folder: Path) -> str:
    path, text = _text(rng, folder)
    end = rng.choice((*ENDS, text))
    _write(path, text + end if rng.random() < 0.6 else end + text)
    return f"{path.parent.name}/{path.name}: {end!r:.20} before or behind"


def look_alike(rng: random.Random, folder: Path) -> str:
    """A key or value with a letter that looks like the right one, or that another normal form makes of it."""
    path, text = _text(rng, folder)
    words = list(re.finditer(r'"([A-Za-z_.0-9]+)"', text))
    if not words:
        return "no word"
    place, (old, new) = rng.choice(words), rng.choice(ALIKE)
    word = place[1].replace(old, new, 1) if rng.random() < 0.7 else rng.choice((place[1] + "\\u0000", "\\ud800", ""))
    _write(path, text[: place.start(1)] + word + text[place.end(1) :])
    return f"{path.parent.name}/{path.name}: {word!r:.60}"


def large_value(rng: random.Random, folder: Path) -> str:
    path, text = _text(rng, folder)
    pairs = list(re.finditer(r':\s*("[^"]*"|-?[0-9.]+|true|false|null)', text))
    if not pairs:
        return "no pair"
    place = rng.choice(pairs)
    kind, new = rng.choice((
        ("numbers", "[" + ",".join(["1"] * 100_000) + "]"), ("letters", '"' + "x" * (1 << 20) + '"'),
        ("objects", "[" + ",".join(["{}"] * 100_000) + "]"), ("escapes", '"' + "\\ud83d\\ude00" * 50_000 + '"'),
        ("keys", "{" + ",".join(f'"k{i}":{i}' for i in range(50_000)) + "}"),
    ))  # fmt: skip
    _write(path, text[: place.start(1)] + new + text[place.end(1) :])
    return f"{path.parent.name}/{path.name}: many {kind} at {place.start(1)}"


MUTATIONS: tuple[Mutation, ...] = (
    number, number, key_twice, key_twice, nested_value, encoding, ending, look_alike, look_alike, large_value,
)  # fmt: skip
