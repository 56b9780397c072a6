"""Safetensors headers written by hand: what a parser in Rust, one in Python and a config may read differently."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import Mutation, files, hostile, weight_file

SAME_WIDTH = {
    1: ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3"), 2: ("F16", "BF16", "I16", "U16"),
    4: ("F32", "I32", "U32"), 8: ("F64", "I64", "U64", "C64"),
}  # fmt: skip
LENGTHS = (0, 1, 7, 8, 9, 100_000_000, 100_000_001, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
STRANGE_KEYS = (
    "", "__metadata__", "x\0y", "\ud800", "ﬁ", "unét.weight", "unét.weight", "conv_in.weight ", "CONV_IN.WEIGHT",
    "a" * 70000, "../../x", "vq_shared.book.x", "vq_shared.", ".weight", "conv_in", "0", "\u202e",
)  # fmt: skip


@dataclass
class Header:
    """``entries`` in order, names repeated as often as they come, and ``data`` behind the header.

    ``before`` and ``after`` surround the object of the entries; ``length`` is what the file says of the header, None
    for the truth.
    """

    entries: list[tuple[str, Any]]
    data: bytes
    length: int | None = None
    before: bytes = b""
    after: bytes = b""

    def tensor(self, rng: random.Random) -> dict[str, Any]:
        """One of the tensors' entries."""
        return rng.choice([entry for key, entry in self.entries if key != "__metadata__"])

    def to_bytes(self) -> bytes:
        """The file."""
        inside = ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in self.entries)
        text = self.before + ("{" + inside + "}").encode() + self.after
        length = len(text) if self.length is None else self.length
        return length.to_bytes(8, "little") + text + self.data


def overlap(rng: random.Random, header: Header) -> str:
    one, other = header.tensor(rng), header.tensor(rng)
    one["data_offsets"] = list(other["data_offsets"])
    return "two tensors share bytes"


def hole(rng: random.Random, header: Header) -> str:
    start = header.tensor(rng)["data_offsets"][0]
    room = rng.choice((1, 8, 4096))
    for key, entry in header.entries:
        if key != "__metadata__" and entry["data_offsets"][0] >= start:
            entry["data_offsets"] = [offset + room for offset in entry["data_offsets"]]
    header.data = header.data[:start] + rng.randbytes(room) + header.data[start:]
    return f"a hole of {room} bytes"


def trailing_bytes(rng: random.Random, header: Header) -> str:
    header.data += bytes(rng.choice((1, 8, 4096)))
    return "bytes after the data"


def length_field(rng: random.Random, header: Header) -> str:
    header.length = rng.choice(LENGTHS)
    return f"a header of {header.length} bytes"


def twice(rng: random.Random, header: Header) -> str:
    key, entry = rng.choice(header.entries)
    other = json.loads(json.dumps(rng.choice([entry, header.tensor(rng)])))
    if isinstance(other, dict) and "shape" in other and rng.random() < 0.5:
        other["shape"] = hostile(rng)
    header.entries.insert(rng.choice((0, len(header.entries))), (key, other))
    return f"{key:.60} is there twice"


def no_text(rng: random.Random, header: Header) -> str:
    text = header.to_bytes()[8 : -len(header.data) or None]
    place = text.index(b'"', rng.randrange(max(1, len(text) // 2))) + 1
    header.before = text[:place] + rng.choice((b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"\n", b"\\u0000"))
    header.before += text[place:]
    header.entries, header.length = [], None
    return "a name that is no UTF-8"


def zero_sizes(rng: random.Random, header: Header) -> str:
    entry = header.tensor(rng)
    start = entry["data_offsets"][0]
    entry["shape"] = rng.choice(([0], [], [0, 1 << 62], [1 << 63, 0], [0] * 40, [4, 0, 4]))
    if rng.random() < 0.6:
        entry["data_offsets"] = [start, start]
    return f"a tensor of shape {entry['shape']!r:.40}"


def other_dtype(rng: random.Random, header: Header) -> str:
    entry = header.tensor(rng)
    alike = next(names for names in SAME_WIDTH.values() if entry["dtype"] in names)
    entry["dtype"] = rng.choice((*alike, "f16", "F16 ", None, 2, ["F16"]))
    return f"dtype {entry['dtype']!r}"


def same_count(rng: random.Random, header: Header) -> str:
    entry = header.tensor(rng)
    shape, count = entry["shape"], 1
    for size in shape:
        count *= size
    entry["shape"] = rng.choice((
        shape[::-1], [count], [1, *shape], [*shape, 1], [-size for size in shape], [float(size) for size in shape],
        [str(size) for size in shape], [1 << 32, 1 << 32], [(1 << 64) // max(1, count), count], [1] * 100 + shape,
        [True, *shape],
    ))  # fmt: skip
    return f"a shape of as many numbers, {entry['shape']!r:.60}"


def other_offsets(rng: random.Random, header: Header) -> str:
    entry = header.tensor(rng)
    start, stop = entry["data_offsets"]
    size = len(header.data)
    entry["data_offsets"] = rng.choice((
        [stop, start], [-1, stop], [start, stop + 1], [start + 1, stop + 1], [size, size + stop - start],
        [float(start), float(stop)], [start], [start, stop, stop], [str(start), str(stop)], {}, None, [True, stop],
        [(1 << 64) + start, (1 << 64) + stop], [1 << 63, (1 << 63) + stop - start],
    ))  # fmt: skip
    return f"offsets {entry['data_offsets']!r:.60}"


def another_order(rng: random.Random, header: Header) -> str:
    rng.shuffle(header.entries)
    return "entries in another order"


def padding(rng: random.Random, header: Header) -> str:
    spaces = rng.choice((b" ", b"       ", b"\n", b"\t", b" " * (1 << 20), b"\0" * 8, b"}", b"//", b" " * (40 << 20)))
    if rng.random() < 0.3:
        header.before = rng.choice((b" ", b"\xef\xbb\xbf", b"\n", b"["))
    else:
        header.after = spaces
    return f"{len(header.before)} bytes before and {len(header.after)} after the header's object"


def metadata(rng: random.Random, header: Header) -> str:
    values = ({}, None, [], "pt", {"format": "tf"}, {"format": "np"}, {"format": "flax"}, {"format": 1}, {"x": "y"})
    more = ({"format": "pt", "x": "y" * (1 << 20)}, {"format": "pt", "a": {"b": 1}}, {"format": "pt", "\ud800": "x"})
    value = rng.choice((*values, *more, {"format": "pt", "vqcompress_bundle": rng.choice(("{}", "", "[", "null"))}))
    header.entries = [(key, entry) for key, entry in header.entries if key != "__metadata__"]
    header.entries.insert(0, ("__metadata__", value))
    return f"metadata {value!r:.60}"


def strange_key(rng: random.Random, header: Header) -> str:
    place = rng.randrange(len(header.entries))
    key = header.entries[place][0]
    name = rng.choice((*STRANGE_KEYS, f"{key} ", f"{key}\0", f" {key}", key.replace("t", "\uff54"), f"module.{key}"))
    header.entries[place] = name, header.entries[place][1]
    return f"{key:.60} is named {name!r:.40}"


def more_tensors(rng: random.Random, header: Header) -> str:
    count, size = rng.choice((1, 100, 20000)), len(header.data)
    prefix = rng.choice(("extra.", "conv_in.", "vq_shared.", "down_blocks.0.resnets.0.conv1."))
    empty = {"dtype": rng.choice(("F16", "I8", "U8")), "shape": [0], "data_offsets": [size, size]}
    header.entries += [(f"{prefix}{index}", empty) for index in range(count)]
    return f"{count} empty tensors more"


GAMES: tuple[Callable[[random.Random, Header], str], ...] = (
    overlap, hole, trailing_bytes, length_field, twice, twice, no_text, zero_sizes, zero_sizes, other_dtype,
    other_dtype, same_count, same_count, other_offsets, other_offsets, another_order, padding, metadata, strange_key,
    strange_key, more_tensors,
)  # fmt: skip


def play(rng: random.Random, path: Path) -> str:
    """One of the games with the header of a safetensors file, where it still has one."""
    data = path.read_bytes()
    stop = 8 + int.from_bytes(data[:8], "little")
    try:
        entries = json.loads(data[8:stop])
        header = Header([(key, entries[key]) for key in sorted(entries)], data[stop:])
        said = rng.choice(GAMES)(rng, header)
        path.write_bytes(header.to_bytes())
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, StopIteration, OverflowError) as error:
        return f"no header ({type(error).__name__})"
    return f"{path.name}: {said}"


def weight_header(rng: random.Random, folder: Path) -> str:
    return play(rng, weight_file(rng, folder))


def dense_header(rng: random.Random, folder: Path) -> str:
    """Of the decoder, which is not packed."""
    found = [path for path in files(folder / "vae") if path.suffix == ".safetensors"]
    return play(rng, found[0] if found else weight_file(rng, folder))


MUTATIONS: tuple[Mutation, ...] = (weight_header, weight_header, weight_header, dense_header)
