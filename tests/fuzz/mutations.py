"""What is done to an honest folder or bundle: bytes, tensors, headers, configs, indices, manifests, links, pipes."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vqcompress.bundling import MARK

MANIFEST = "vqcompress_manifest.json"
COMPONENTS = ("unet", "text_encoder")
HOSTILE_INTEGERS = (
    -1, 0, 1, 2, 3, 7, 8, 9, 16, 63, 64, 255, 256, 1000, 4096, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32,
    (1 << 33) + 3, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 31), -(1 << 63), 10**30,
)  # fmt: skip
HOSTILE_VALUES: tuple[Any, ...] = (
    True, False, None, "", "1", "../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "x" * 5000, "training", "forward",
    1.5, -0.0, 1e308, float("nan"), float("inf"), [], {}, [1], [-1, 4], [1 << 40, 1 << 40], {"a": 1}, [[[]]],
)  # fmt: skip
HOSTILE_NAMES = ("../out", "/tmp/out", "a/../../b", "", ".", "unet", "a\0b", "x" * 300, "unet/config.json", "é/\ud800")

Mutation = Callable[[random.Random, Path], str]


def hostile(rng: random.Random, old: Any = None) -> Any:
    """A value to put in place of ``old``: mostly integers for integers, or something near it."""
    if type(old) is int and rng.random() < 0.35:
        return old + rng.choice((-1, 1, 2, 8)) if rng.random() < 0.7 else old * rng.choice((-1, 2, 1 << 16, 1 << 32))
    return rng.choice(HOSTILE_INTEGERS if rng.random() < 0.6 else HOSTILE_VALUES)


def files(folder: Path) -> list[Path]:
    """Every regular file, in one order everywhere, but those that are mostly a hole."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path for path in found if path.stat().st_size < 1 << 28)


def weight_file(rng: random.Random, folder: Path) -> Path:
    """One of the packed components' weight files."""
    found = [path for name in COMPONENTS for path in (folder / name).glob("*.safetensors")]
    return rng.choice(sorted(set(found) & set(files(folder))))


# Bytes of any file


def flip_bits(rng: random.Random, folder: Path) -> str:
    path = rng.choice(files(folder))
    return f"{_flip(rng, path)} of {path.name}"


def flip_weight_bits(rng: random.Random, folder: Path) -> str:
    path = weight_file(rng, folder)
    return f"{_flip(rng, path)} of {path.name}"


def _flip(rng: random.Random, path: Path) -> str:
    data = bytearray(path.read_bytes())
    if not data:
        return "no bits"
    places = [
        rng.randrange(min(len(data), rng.choice((64, 4096, len(data))))) for _ in range(rng.choice((1, 1, 4, 50)))
    ]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"bits flipped in bytes {places[:4]}"


def change_length(rng: random.Random, folder: Path) -> str:
    path = rng.choice(files(folder))
    size = path.stat().st_size
    length = rng.choice((0, 1, 7, 8, size // 2, max(0, size - 1), size + 1, size + 4096, size + (1 << 22)))
    os.truncate(path, length)
    return f"{path.name} has {length} bytes, not {size}"


def fill(rng: random.Random, folder: Path) -> str:
    path = rng.choice(files(folder))
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice((1, 8, 256, 1 << 20)))
    data[start:stop] = bytes([rng.choice((0, 255, 0x5B, 0x22))]) * (stop - start)
    path.write_bytes(data)
    return f"bytes {start} to {stop} of {path.name} overwritten"


def lose_file(rng: random.Random, folder: Path) -> str:
    path = rng.choice(files(folder))
    path.unlink()
    return f"{path.name} is gone"


def swap_files(rng: random.Random, folder: Path) -> str:
    first, second = rng.choice(files(folder)), rng.choice(files(folder))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    return f"{first.name} and {second.name} change places"


def other_kind(rng: random.Random, folder: Path) -> str:
    path = rng.choice([*files(folder), folder / MANIFEST, weight_file(rng, folder)])
    kind = rng.choice(("pipe", "/dev/zero", "/dev/null", "/dev/full", "/dev/urandom", "nowhere", "loop", "folder"))
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        path.symlink_to(kind if kind.startswith("/") else "does-not-exist")
    return f"{path.name} is a {kind}"


def strange_file(rng: random.Random, folder: Path) -> str:
    parent = rng.choice([folder, folder / "unet", folder / "text_encoder", folder / "vae"])
    name = rng.choice((
        "diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json", "pytorch_model.bin",
        "diffusion_pytorch_model.bin", "extra.safetensors", "evil.py", "adapter_config.json", "generation_config.json",
        "model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
    ))  # fmt: skip
    weights = {"weight_map": {"conv_in.weight": rng.choice(("../x", "/etc/passwd", "nothing.safetensors", 7))}}
    path = parent / name
    path.write_bytes(json.dumps(weights).encode() if name.endswith("json") else rng.randbytes(rng.choice((0, 9, 999))))
    return f"{path.relative_to(folder)} is new"


# Tensors


def change_tensor(rng: random.Random, folder: Path) -> str:
    path = weight_file(rng, folder)
    try:
        tensors = load_file(path)
    except Exception:  # noqa: BLE001 - an earlier mutation has broken it
        return "nothing"
    key = rng.choice(sorted(tensors))
    if rng.random() < 0.7:  # those whose contents are read as numbers
        key = rng.choice(sorted(k for k in tensors if not k.endswith("weight")) or [key])
    change = rng.choice(sorted(TENSOR_CHANGES))
    TENSOR_CHANGES[change](rng, tensors, key)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return f"{key} of {path.name}: {change}"


def _set(change: Callable[[random.Random, torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    def apply(rng: random.Random, tensors: dict[str, torch.Tensor], key: str) -> None:
        tensors[key] = change(rng, tensors[key].clone())

    return apply


def _one(rng: random.Random, tensor: torch.Tensor, value: float) -> torch.Tensor:
    if tensor.numel():
        tensor.view(-1)[rng.randrange(tensor.numel())] = value
    return tensor


def _noise(rng: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    data = torch.frombuffer(bytearray(rng.randbytes(max(1, tensor.nbytes))), dtype=torch.uint8)[: tensor.nbytes]
    return data.view(tensor.dtype).view(tensor.shape) if tensor.numel() else tensor


def _swap_tensors(rng: random.Random, tensors: dict[str, torch.Tensor], key: str) -> None:
    other = rng.choice(sorted(tensors))
    tensors[key], tensors[other] = tensors[other], tensors[key]


def _copy_of_alike(rng: random.Random, tensors: dict[str, torch.Tensor], key: str) -> None:
    alike = [
        k for k in sorted(tensors) if tensors[k].shape == tensors[key].shape and tensors[k].dtype == tensors[key].dtype
    ]
    tensors[key] = tensors[rng.choice(alike)]


def _lose(rng: random.Random, tensors: dict[str, torch.Tensor], key: str) -> None:
    del tensors[key]


def _rename(rng: random.Random, tensors: dict[str, torch.Tensor], key: str) -> None:
    tensors[rng.choice((key + ".x", key.upper(), "vq_shared.training", "", "weight", "a" * 400))] = tensors.pop(key)


OTHER_DTYPES = (torch.float32, torch.int32, torch.int8, torch.bfloat16, torch.bool)
TENSOR_CHANGES: dict[str, Callable[..., None]] = {
    "one is NaN": _set(lambda rng, t: _one(rng, t, float("nan")) if t.is_floating_point() else _one(rng, t, -1)),
    "one is infinite": _set(lambda rng, t: _one(rng, t, float("inf")) if t.is_floating_point() else _one(rng, t, 127)),
    "all zero": _set(lambda rng, t: t.zero_()),
    "all ones": _set(lambda rng, t: t.fill_(-1)),
    "noise": _set(_noise),
    "reversed": _set(lambda rng, t: t.flatten().flip(0).view(t.shape)),
    "shorter": _set(lambda rng, t: t[..., : max(0, t.shape[-1] - rng.choice((1, 2, 16)))] if t.dim() else t),
    "longer": _set(lambda rng, t: torch.cat([t, t[..., :1]], -1) if t.dim() and t.numel() else t),
    "empty": _set(lambda rng, t: t.flatten()[:0]),
    "flat": _set(lambda rng, t: t.flatten()),
    "one more dimension": _set(lambda rng, t: t[None]),
    "another dtype": _set(lambda rng, t: t.to(rng.choice(OTHER_DTYPES))),
    "swapped with another": _swap_tensors,
    "that of an alike tensor": _copy_of_alike,
    "lost": _lose,
    "renamed": _rename,
}  # fmt: skip


def change_header(rng: random.Random, folder: Path) -> str:
    path = weight_file(rng, folder)
    return f"{path.name}: {_change_header(rng, path)}"


def _change_header(rng: random.Random, path: Path) -> str:
    """A safetensors header with a number, shape, dtype or length that is not so; the data stay."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        key = rng.choice(sorted(header))
        entry = header[key]
        field = rng.choice(sorted(entry))
        if isinstance(entry[field], list) and entry[field] and rng.random() < 0.8:
            place = rng.randrange(len(entry[field]))
            entry[field][place] = hostile(rng, entry[field][place])
        else:
            entry[field] = rng.choice(("F32", "F16", "I8", "U8", "BOOL", "F8_E4M3", "X", hostile(rng)))
        text = json.dumps(header).encode()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return "no header"
    said = rng.choice((len(text),) * 5 + (len(text) - 1, 0, 1 << 40, (1 << 64) - 1))
    path.write_bytes(said.to_bytes(8, "little") + text + data[8 + length :])
    return f"{key}.{field} in its header, of {said} bytes"


# JSON


def edit(path: Path, change: Callable[[Any], str]) -> str:
    if path not in files(path.parent):  # an earlier change has put something else there
        return "nothing"
    try:
        data = json.loads(path.read_bytes())
        said = change(data)
        path.write_bytes(json.dumps(data).encode())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        return f"nothing ({type(error).__name__})"
    return f"{path.parent.name}/{path.name}: {said}"


def change_layer(rng: random.Random, folder: Path) -> str:
    """A field of a packed layer's description."""

    def change(config: Any) -> str:
        layers = config["quantization_config"]["layers"]
        name = rng.choice(sorted(layers))
        entry = layers[name]
        match rng.randrange(10):
            case 0:
                other = rng.choice(sorted(layers))
                layers[name], layers[other] = layers[other], layers[name]
                return f"{name} and {other} swapped"
            case 1:
                layers[rng.choice(("conv_in", "x", "", "a.b.c", name + ".x"))] = layers.pop(name)
                return f"{name} renamed"
            case 2:
                layers[name] = hostile(rng)
                return f"{name} is {layers[name]!r:.60}"
            case 3:
                del entry[key := rng.choice(sorted(entry))]
                return f"{name} lacks {key}"
            case 4:
                key = rng.choice(
                    ("rotation", "gains", "outliers", "codebook", "codebook_rates", "phase", "column_scales")
                )
            case _:
                key = rng.choice(sorted(entry))
        if key == "shape" and rng.random() < 0.7:
            place = rng.randrange(len(entry["shape"]))
            entry["shape"][place] = hostile(rng, entry["shape"][place])
        elif key == "format" and rng.random() < 0.7:
            entry["format"] = rng.choice(("scalar", "additive", "trellis"))
        else:
            entry[key] = hostile(rng, entry.get(key))
        return f"{name}.{key} = {entry[key]!r:.60}"

    return edit(folder / rng.choice(COMPONENTS) / "config.json", change)


def change_description(rng: random.Random, folder: Path) -> str:
    """A key of the quantization_config beside the layers."""

    def change(config: Any) -> str:
        description = config["quantization_config"]
        key = rng.choice([*sorted(description), "shared", "dense", "kept", "bits", "modules_to_not_convert", "new"])
        if key == "shared" and description.get("shared") and rng.random() < 0.6:
            name = rng.choice(sorted(description["shared"]))
            shape = description["shared"][name]
            if rng.random() < 0.5:
                place = rng.randrange(len(shape))
                shape[place] = hostile(rng, shape[place])
                return f"shared.{name} = {shape!r:.60}"
            description["shared"][rng.choice(("forward", "training", "a.b", "", "new"))] = shape
            return "shared codebook added"
        if rng.random() < 0.2:
            description.pop(key, None)
            return f"lacks {key}"
        description[key] = hostile(rng, description.get(key))
        return f"{key} = {description[key]!r:.60}"

    return edit(folder / rng.choice(COMPONENTS) / "config.json", change)


def change_network(rng: random.Random, folder: Path) -> str:
    """A number or word of a packed component's own config."""

    def change(config: Any) -> str:
        key = rng.choice(sorted(k for k in config if k != "quantization_config"))
        if isinstance(config[key], list) and config[key] and rng.random() < 0.7:
            place = rng.randrange(len(config[key]))
            config[key][place] = hostile(rng, config[key][place])
        elif rng.random() < 0.1:
            del config[key]
            return f"lacks {key}"
        else:
            config[key] = hostile(rng, config[key])
        return f"{key} = {config[key]!r:.60}"

    return edit(folder / rng.choice(COMPONENTS) / "config.json", change)


def change_any_json(rng: random.Random, folder: Path) -> str:
    """A value anywhere in any JSON file."""
    return edit(
        rng.choice([path for path in files(folder) if path.suffix == ".json"]), lambda data: _anywhere(rng, data)
    )


def _anywhere(rng: random.Random, data: Any) -> str:
    place, path = data, []
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        path.append(str(key))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.15:
            break
        place = place[key]
    if rng.random() < 0.15:
        del place[key]
        return f"{'.'.join(path):.80} is gone"
    place[key] = hostile(rng, place[key])
    return f"{'.'.join(path):.80} = {place[key]!r:.60}"


def strange_json(rng: random.Random, folder: Path) -> str:
    """JSON that is deep, long or of another kind."""
    path = rng.choice([path for path in files(folder) if path.suffix == ".json"])
    kind, text = rng.choice((
        ("nested", "[" * 200000), ("nested objects", '{"a":' * 100000), ("a list", "[]"), ("a number", "1"),
        ("null", "null"), ("empty", ""), ("long integer", '{"a": ' + "9" * 6000 + "}"), ("no UTF-8", "\udcff"),
        ("many keys", json.dumps({f"k{i}": {"sha256": "0" * 64, "bytes": i} for i in range(20000)})),
        ("empty object", "{}"), ("blanks", " " * (1 << 20)), ("twice", '{"unet": ["a", "b"], "unet": 3}'),
    ))  # fmt: skip
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return f"{path.relative_to(folder)} is {kind}"


def change_manifest(rng: random.Random, folder: Path) -> str:
    def change(manifest: Any) -> str:
        name = rng.choice(sorted(manifest))
        match rng.randrange(5):
            case 0:
                del manifest[name]
                return f"{name} unlisted"
            case 1:
                manifest[rng.choice(HOSTILE_NAMES)] = manifest[name]
                return "a strange name"
            case 2:
                manifest[name] = hostile(rng)
                return f"{name} is {manifest[name]!r:.40}"
            case 3:
                manifest[name]["bytes"] = hostile(rng, manifest[name]["bytes"])
                return f"bytes of {name}"
        manifest[name]["sha256"] = rng.choice(("0" * 64, "", hostile(rng)))
        return f"hash of {name}"

    return edit(folder / MANIFEST, change)


def change_index(rng: random.Random, folder: Path) -> str:
    indices = sorted(folder.rglob("*.index.json"))
    if not indices:
        return change_layer(rng, folder)

    def change(index: Any) -> str:
        if rng.random() < 0.2:
            key = rng.choice(sorted(index))
            index[key] = hostile(rng)
            return f"{key} = {index[key]!r:.60}"
        key = rng.choice(sorted(index["weight_map"]))
        if rng.random() < 0.2:
            del index["weight_map"][key]
            return f"{key} unlisted"
        index["weight_map"][key] = rng.choice((*HOSTILE_NAMES, *set(index["weight_map"].values()), hostile(rng)))
        return f"{key} in {index['weight_map'][key]!r:.60}"

    return edit(rng.choice(indices), change)


def swap_components(rng: random.Random, folder: Path) -> str:
    first, second = rng.sample(sorted(path.name for path in folder.iterdir() if path.is_dir()), 2)
    (folder / first).rename(folder / "between")
    (folder / second).rename(folder / first)
    (folder / "between").rename(folder / second)
    return f"{first} and {second} change places"


def link_component(rng: random.Random, folder: Path) -> str:
    name = rng.choice(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    kind = rng.choice(("gone", "link to itself", "link to /proc", "link to its copy"))
    if kind == "link to its copy":
        (folder / name).rename(folder / f".{name}")
        (folder / name).symlink_to(f".{name}")
        return f"{name}: {kind}"
    shutil.rmtree(folder / name)
    if kind != "gone":
        (folder / name).symlink_to(name if kind == "link to itself" else "/proc")
    return f"{name}: {kind}"


FOLDER_MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, flip_weight_bits, change_length, fill, lose_file, swap_files, other_kind, strange_file, change_tensor,
    change_tensor, change_tensor, change_tensor, change_header, change_header, change_layer, change_layer, change_layer,
    change_layer, change_layer, change_description, change_description, change_network, change_network, change_any_json,
    strange_json, change_manifest, change_index, swap_components, link_component,
)  # fmt: skip


# Bundles


def bundle_bytes(rng: random.Random, path: Path) -> str:
    return _flip(rng, path)


def bundle_length(rng: random.Random, path: Path) -> str:
    size = path.stat().st_size
    os.truncate(path, length := rng.choice((0, 7, 8, 100, size // 2, max(0, size - 1), max(0, size - 8), size + 1)))
    return f"{length} bytes, not {size}"


def bundle_header(rng: random.Random, path: Path) -> str:
    return _change_header(rng, path)


def bundle_contents(rng: random.Random, path: Path) -> str:
    """The table of contents: names, offsets, texts, types, entries twice."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        contents = json.loads(header["__metadata__"][MARK])
        said = _change_contents(rng, contents)
        header["__metadata__"][MARK] = json.dumps(contents)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        return f"nothing ({type(error).__name__})"
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return said


def _change_contents(rng: random.Random, contents: Any) -> str:
    weights, texts = contents["weights"], contents["texts"]
    weight = rng.choice(weights)
    match rng.randrange(9):
        case 0:
            many = rng.choice((2, 50, 1000))
            weights += [{**weight, "name": f"unet/{i}.safetensors"} for i in range(many)]
            return f"{many} entries share bytes"
        case 1:
            weight[key] = hostile(rng, weight[key := rng.choice(sorted(weight))])
            return f"{key} of {weight['name']!r:.40} = {weight[key]!r:.40}"
        case 2:
            weight["name"] = rng.choice((*HOSTILE_NAMES, rng.choice(sorted(texts))))
            return f"a weight file named {weight['name']!r:.40}"
        case 3:
            texts[rng.choice(HOSTILE_NAMES)] = "text"
            return "a strange name"
        case 4:
            texts[rng.choice(sorted(texts))] = rng.choice(("", "{}", "[", 7, None, "\ud800", "[" * 50000))
            return "a strange text"
        case 5:
            key = rng.choice(("version", "texts", "weights"))
            contents[key] = hostile(rng, contents[key])
            return f"{key} = {contents[key]!r:.40}"
        case 6:
            del texts[name := rng.choice(sorted(texts))]
            return f"{name} is gone"
        case 7:
            weights.remove(weight)
            return f"{weight['name']} is gone"
    del weight[key := rng.choice(sorted(weight))]
    return f"an entry lacks {key}"


BUNDLE_MUTATIONS: tuple[Mutation, ...] = (
    bundle_bytes, bundle_length, bundle_header, bundle_contents, bundle_contents, bundle_contents,
)  # fmt: skip
