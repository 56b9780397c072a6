"""Bundles: a pipeline folder as one safetensors file, and back, byte for byte.

Tensors are named ``<component>.<key>``. The file's metadata contains every other file of the folder as text and the
headers of its weight files, so that extraction restores exactly the same files. Data are copied in blocks: no tensor
is read into memory.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from vqcompress.errors import CheckpointError

MARK = "vqcompress_bundle"
VERSION = 1
ALIGNMENT = 8
"""Bytes. The data of each weight file start at a multiple of it, so that tensors are aligned for their dtype."""

LENGTH_BYTES = 8
HEADER_LIMIT = 100_000_000
"""The largest header, in bytes, that the safetensors format allows."""


@dataclass(frozen=True)
class WeightFile:
    """One weight file of the folder: its original header, and the position of its data in the bundle's data."""

    name: str
    header: str
    start: int
    length: int


@dataclass(frozen=True)
class Bundle:
    """A bundle's contents. ``texts`` maps relative paths to file contents. Tensor data begin at ``data_start``."""

    path: Path
    data_start: int
    texts: dict[str, str]
    weights: tuple[WeightFile, ...]

    @property
    def index(self) -> dict[str, Any]:
        """The pipeline's ``model_index.json``."""
        return json.loads(self.texts["model_index.json"])


def write_bundle(folder: str | Path, path: str | Path) -> Path:
    """Write the pipeline in ``folder`` as one file ``path``, complete or not at all, and return the path.

    Raises `CheckpointError` if ``folder`` is not a pipeline or has pickles or other binary files, or ``path`` exists.
    """
    folder, path = Path(folder), Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists; name another file, or remove it first")
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder} is no pipeline folder: it has no model_index.json")
    texts, weights = _contents(folder)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as out:
            _write(out, folder, texts, weights)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_bundle(path: str | Path) -> Bundle | None:
    """The table of contents of ``path``, or None if it is not a bundle. ``path`` can be any file.

    Raises `CheckpointError` for a bundle of a newer version or a truncated one.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    with path.open("rb") as file:
        header = _header(file)
    marked = _plain(header).get("__metadata__", {}).get(MARK)
    if header is None or marked is None:
        return None
    found = json.loads(marked)
    if found["version"] > VERSION:
        raise CheckpointError(
            f"{path} is a bundle of version {found['version']}, this vqcompress reads {VERSION}; update it"
        )
    bundle = Bundle(path, LENGTH_BYTES + len(header), found["texts"], tuple(WeightFile(**w) for w in found["weights"]))
    end = bundle.data_start + max((w.start + w.length for w in bundle.weights), default=0)
    if path.stat().st_size < end:
        raise CheckpointError(f"{path} is cut off: {path.stat().st_size} bytes of {end}; copy or download it again")
    return bundle


def extract_bundle(bundle: Bundle, folder: Path, component: str | None = None) -> Path:
    """Write the files of ``bundle``, or of one ``component`` only, to ``folder``. Returns the folder."""
    wanted = "" if component is None else f"{component}/"
    for name, text in bundle.texts.items():
        if name.startswith(wanted):
            _inside(folder, name).write_bytes(text.encode())
    with bundle.path.open("rb") as file:
        for weight in bundle.weights:
            if weight.name.startswith(wanted):
                _extract_weights(file, bundle, weight, _inside(folder, weight.name))
    return folder


def temporary_folder(bundle: Bundle, component: str | None = None) -> TemporaryDirectory:
    """A temporary folder with the contents of ``bundle``, from which a pipeline can be opened. See `keep_for`."""
    directory = TemporaryDirectory(prefix="vqcompress-")
    extract_bundle(bundle, Path(directory.name), component)
    return directory


def keep_for(owner: object, directory: TemporaryDirectory) -> None:
    """Remove ``directory`` when ``owner`` is freed. Until then weights may be read from its files."""
    weakref.finalize(owner, directory.cleanup)


def _extract_weights(file: BinaryIO, bundle: Bundle, weight: WeightFile, path: Path) -> None:
    header = weight.header.encode()
    file.seek(bundle.data_start + weight.start)
    with path.open("wb") as out:
        out.write(len(header).to_bytes(LENGTH_BYTES, "little") + header)
        _copy(file, out, weight.length)


def _inside(folder: Path, name: str) -> Path:
    """The path of a bundle's file inside ``folder``. Raises `CheckpointError` for names that lead outside of it."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"a bundle names the file {name!r}, which lies outside of its folder; it is not opened")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _contents(folder: Path) -> tuple[dict[str, str], list[WeightFile]]:
    texts, weights, start = {}, [], 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            header = _header_of(path)
            length = path.stat().st_size - LENGTH_BYTES - len(header)
            weights.append(WeightFile(name, header.decode(), start, length))
            start += length + -length % ALIGNMENT
        else:
            texts[name] = _text(path)
    return texts, weights


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(
            f"{path} is neither text nor safetensors, so it cannot go into one file; save the pipeline again with "
            "safe_serialization=True and fast tokenizers"
        ) from None


def _write(out: BinaryIO, folder: Path, texts: dict[str, str], weights: list[WeightFile]) -> None:
    entries: dict[str, Any] = {}
    for weight in weights:
        entries |= _entries(weight)
    contents = {"version": VERSION, "texts": texts, "weights": [asdict(weight) for weight in weights]}
    header = json.dumps({"__metadata__": {"format": "pt", MARK: json.dumps(contents)}, **entries}).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    if len(header) > HEADER_LIMIT:
        raise CheckpointError(
            f"{folder} holds {len(header)} bytes of configs and headers; safetensors allows {HEADER_LIMIT}"
        )
    out.write(len(header).to_bytes(LENGTH_BYTES, "little") + header)
    for weight in weights:
        with (folder / weight.name).open("rb") as file:
            file.seek(LENGTH_BYTES + len(weight.header.encode()))
            _copy(file, out, weight.length)
        out.write(bytes(-weight.length % ALIGNMENT))


def _entries(weight: WeightFile) -> dict[str, Any]:
    """The bundle header's entries for the tensors of a weight file and for the padding up to the next file's data."""
    component = weight.name.split("/")[0]
    entries = {
        f"{component}.{key}": {**entry, "data_offsets": [weight.start + offset for offset in entry["data_offsets"]]}
        for key, entry in json.loads(weight.header).items()
        if key != "__metadata__"
    }
    if gap := -weight.length % ALIGNMENT:
        end = weight.start + weight.length
        entries[f"_fill.{weight.name}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
    return entries


def _header_of(path: Path) -> bytes:
    with path.open("rb") as file:
        header = _header(file)
    if header is None or not _plain(header):
        raise CheckpointError(f"{path} cannot be read as safetensors; copy or download it again")
    return header


def _header(file: BinaryIO) -> bytes | None:
    """The header of a safetensors file, or None if the file cannot be one."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if not 0 < length <= HEADER_LIMIT:
        return None
    header = file.read(length)
    return header if len(header) == length and header.startswith(b"{") else None


def _plain(header: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(header or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _copy(source: BinaryIO, target: BinaryIO, length: int, block: int = 1 << 24) -> None:
    for size in _blocks(length, block):
        target.write(source.read(size))


def _blocks(length: int, block: int) -> Iterator[int]:
    for start in range(0, length, block):
        yield min(block, length - start)
