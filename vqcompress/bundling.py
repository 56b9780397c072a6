"""Bundles: a pipeline folder as one safetensors file, and back, byte for byte.

Tensors are named ``<component>.<key>``. The file's metadata contains every other file of the folder as text and the
headers of its weight files, so that extraction restores exactly the same files. Data are copied in blocks: no tensor
is read into memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from vqcompress.errors import CheckpointError
from vqcompress.folder_files import (
    StrPath,
    is_regular,
    json_object,
    name_problem,
    open_regular,
    read_bytes,
    regular_size,
    walk,
)
from vqcompress.safetensors_header import (
    LENGTH_BYTES,
    LONGEST,
    METADATA,
    allowed_length,
    read_header,
    understood,
)
from vqcompress.time_limit import check_time

MARK = "vqcompress_bundle"
VERSION = 1
ALIGNMENT = 8
"""Bytes. The data of each weight file start at a multiple of it, so that tensors are aligned for their dtype."""


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
        return json_object(self.texts.get("model_index.json", ""), f"model_index.json in {self.path}")

    @property
    def names(self) -> list[str]:
        """Relative paths of all its files."""
        return [*self.texts, *(weight.name for weight in self.weights)]


def write_bundle(folder: StrPath, path: StrPath) -> Path:
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


def read_bundle(path: StrPath) -> Bundle | None:
    """The table of contents of ``path``, or None if it is not a bundle. ``path`` can be any file.

    Raises `CheckpointError` for a bundle of a newer version, a truncated one, and one whose table of contents is not
    as `write_bundle` makes it: files that share bytes, lie outside of the bundle or have names that lead elsewhere.
    Nothing is written.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or (size := regular_size(path)) is None:
        return None
    with open_regular(path) as file:
        header = read_header(file)
    if header is None or MARK.encode() not in header:
        return None
    metadata = understood(header or b"").entries.get(METADATA)
    if not isinstance(metadata, dict) or MARK not in metadata:
        return None
    bundle = _from_contents(path, LENGTH_BYTES + len(header), metadata[MARK])
    end = bundle.data_start + max((w.start + w.length for w in bundle.weights), default=0)
    end += -(end - bundle.data_start) % ALIGNMENT
    if size != end:
        wrong = "is cut off" if size < end else "goes on after its end"
        raise CheckpointError(f"{path} {wrong}: {size} bytes of {end}; copy or download it again")
    return bundle


def bundle_digest(bundle: Bundle, name: str) -> tuple[int, str]:
    """Length and SHA-256 of the file ``name`` in ``bundle``, as `extract_bundle` would write it."""
    if name in bundle.texts:
        data = bundle.texts[name].encode()
        return len(data), hashlib.sha256(data).hexdigest()
    weight = next(weight for weight in bundle.weights if weight.name == name)
    head, digest = _head(weight), hashlib.sha256()
    digest.update(head)
    with open_regular(bundle.path) as file:
        file.seek(bundle.data_start + weight.start)
        for block in _read_blocks(file, weight.length):
            digest.update(block)
    return len(head) + weight.length, digest.hexdigest()


def _from_contents(path: Path, data_start: int, marked: object) -> Bundle:
    """The bundle that its metadata describe. Raises `CheckpointError` where `write_bundle` would not write them."""
    contents = json_object(marked if isinstance(marked, str) else "", f"the table of contents of {path}")
    version, texts, weights = (contents.get(key) for key in ("version", "texts", "weights"))
    if type(version) is not int or version < 1:
        raise _wrong(path, "it has no version")
    if version > VERSION:
        raise CheckpointError(f"{path} is a bundle of version {version}, this vqcompress reads {VERSION}; update it")
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise _wrong(path, "its texts are no texts")
    if not isinstance(weights, list) or not all(map(_is_weight_file, weights)):
        raise _wrong(path, "its weight files have no name, header, start and length")
    bundle = Bundle(path, data_start, texts, tuple(WeightFile(**weight) for weight in weights))
    if problem := _names_problem(bundle.names) or _layout_problem(bundle.weights):
        raise _wrong(path, problem)
    return bundle


def _wrong(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path} is not opened: {problem}; it is not as vqcompress wrote it, download it again")


def _is_weight_file(entry: object) -> bool:
    kinds = {"name": str, "header": str, "start": int, "length": int}
    return (
        isinstance(entry, dict)
        and entry.keys() == kinds.keys()
        and all(type(entry[key]) is kind for key, kind in kinds.items())
    )


def _names_problem(names: list[str]) -> str | None:
    """Files that could not lie beside each other in one folder."""
    if problem := next((problem for name in names if (problem := name_problem(name))), None):
        return f"a file of it, {problem}"
    if len(set(names)) < len(names):
        return "two files of it have one name"
    folders = {name[:index] for name in names for index, letter in enumerate(name) if letter == "/"}
    if both := folders & set(names):
        return f"{min(both)!r} is a file and a folder in it"
    return None


def _layout_problem(weights: tuple[WeightFile, ...]) -> str | None:
    """Weight files that share bytes, or whose header says another length than the table of contents."""
    end = 0
    for weight in weights:
        if not weight.name.endswith(".safetensors"):
            return f"{weight.name!r} is no weight file"
        if weight.start < end or weight.length < 0:
            return f"the data of {weight.name!r} lie within another file's"
        end = weight.start + weight.length
        if _data_length(weight.header) != weight.length:
            return f"the header of {weight.name!r} is not that of {weight.length} bytes"
    return None


def _data_length(header: str) -> int | None:
    """Bytes that the tensors of a safetensors header take, ``None`` for a text that is no such header."""
    try:
        return understood(header.encode()).end
    except UnicodeEncodeError:
        return None


def extract_bundle(bundle: Bundle, folder: Path, component: str | None = None) -> Path:
    """Write the files of ``bundle``, or of one ``component`` only, to ``folder``. Returns the folder.

    Their names stay inside, and together they are no longer than the bundle: `read_bundle` has checked that.
    """
    wanted = "" if component is None else f"{component}/"
    for name, text in bundle.texts.items():
        if name.startswith(wanted):
            _inside(folder, name).write_bytes(text.encode())
    with open_regular(bundle.path) as file:
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
    file.seek(bundle.data_start + weight.start)
    with path.open("wb") as out:
        out.write(_head(weight))
        _copy(file, out, weight.length)


def _head(weight: WeightFile) -> bytes:
    """What precedes a weight file's data: the length of its header, and the header."""
    header = weight.header.encode()
    return len(header).to_bytes(LENGTH_BYTES, "little") + header


def _inside(folder: Path, name: str) -> Path:
    """The path of a bundle's file inside ``folder``. Raises `CheckpointError` where a link there leads elsewhere."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"a bundle names the file {name!r}, which lies outside of its folder; it is not opened")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _contents(folder: Path) -> tuple[dict[str, str], list[WeightFile]]:
    texts: dict[str, str] = {}
    weights: list[WeightFile] = []
    start, room = 0, LONGEST
    for name, entry in sorted(walk(folder), key=lambda item: item[0].split("/")):
        path = folder / name
        if not is_regular(entry):
            raise CheckpointError(f"{path} is no regular file, so it cannot go into a bundle; remove it")
        if path.suffix == ".safetensors":
            header = _header_of(path)
            length = path.stat().st_size - LENGTH_BYTES - len(header.encode())
            if _data_length(header) != length:
                raise CheckpointError(f"{path} is cut off or damaged; copy or download it again")
            weights.append(WeightFile(name, header, start, length))
            start += length + -length % ALIGNMENT
        else:
            room -= path.stat().st_size
            if room < 0:
                raise CheckpointError(
                    f"{folder} holds more than {LONGEST} bytes of texts; safetensors allows no longer header"
                )
            texts[name] = _text(path)
    return texts, weights


def _text(path: Path) -> str:
    try:
        return read_bytes(path, LONGEST).decode("utf-8")
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
    header = json.dumps({METADATA: {"format": "pt", MARK: json.dumps(contents)}, **entries}).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    data = sum(weight.length + -weight.length % ALIGNMENT for weight in weights)
    if len(header) > (most := allowed_length(LENGTH_BYTES + len(header) + data)):
        raise CheckpointError(
            f"{folder} holds {len(header)} bytes of configs and headers; beside these weights at most {most}"
        )
    out.write(len(header).to_bytes(LENGTH_BYTES, "little") + header)
    for weight in weights:
        with open_regular(folder / weight.name) as file:
            file.seek(LENGTH_BYTES + len(weight.header.encode()))
            _copy(file, out, weight.length)
        out.write(bytes(-weight.length % ALIGNMENT))


def _entries(weight: WeightFile) -> dict[str, Any]:
    """The bundle header's entries for the tensors of a weight file and for the padding up to the next file's data."""
    component = weight.name.split("/")[0]
    entries = {
        f"{component}.{key}": {**entry, "data_offsets": [weight.start + offset for offset in entry["data_offsets"]]}
        for key, entry in json.loads(weight.header).items()
        if key != METADATA
    }
    if gap := -weight.length % ALIGNMENT:
        end = weight.start + weight.length
        entries[f"_fill.{weight.name}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
    return entries


def _header_of(path: Path) -> str:
    with open_regular(path) as file:
        header = read_header(file)
    try:
        text = (header or b"").decode()
    except UnicodeDecodeError:
        text = ""
    if not understood(text.encode()).entries:
        raise CheckpointError(f"{path} cannot be read as safetensors; copy or download it again")
    return text


def _copy(source: BinaryIO, target: BinaryIO, length: int, block: int = 1 << 24) -> None:
    for data in _read_blocks(source, length, block):
        target.write(data)


def _read_blocks(source: BinaryIO, length: int, block: int = 1 << 24) -> Iterator[bytes]:
    for start in range(0, length, block):
        check_time()
        yield source.read(min(block, length - start))
