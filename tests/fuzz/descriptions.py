"""Descriptions of packed layers that are right in each part and wrong together, and configs of other libraries."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.fuzz.mutations import COMPONENTS, HOSTILE_INTEGERS, HOSTILE_VALUES, Mutation, edit, files, hostile

OF_FORMAT: dict[str, dict[str, Any]] = {
    "scalar": {"bits": 4, "group_size": 8, "scale_bits": 5},
    "additive": {
        "code_bits": 4, "code_bytes": 84, "codebook": "book", "codebooks": 3, "dimension": 4, "min_rate": 2,
        "rate_bits": 1, "row_scales": True,
    },
    "trellis": {
        "code_bytes": 96, "min_rate": 3, "rate_bits": 0, "row_scales": False, "state_bits": 12, "tail": 0.0,
        "rotation": 16, "gains": True, "outliers": 3, "half_rates": True, "codebook": "tables",
        "codebook_rates": [1, 2],
    },
}  # fmt: skip
OTHER_LIBRARIES: tuple[dict[str, Any], ...] = (
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"quant_method": "gptq"},
    {"quant_method": "awq", "bits": 4}, {"quant_method": "torchao", "quant_type": "int8wo"}, {"quant_method": "quanto"},
    {"quant_method": "gguf"}, {"quant_method": "fp8"}, {"quant_method": "VQCompress"}, {"quant_method": ["vqcompress"]},
    {"quant_method": "vqcompress"}, {"quant_method": "vqcompress", "format_version": 1}, {},
)  # fmt: skip
CLASSES = (
    "UNet3DConditionModel", "FluxTransformer2DModel", "AutoencoderKL", "ModelMixin", "CLIPTextModelWithProjection",
    "CLIPModel", "T5EncoderModel", "GPT2LMHeadModel", "os", "../x", "", 7, None, ["UNet2DConditionModel"],
)  # fmt: skip
OWN_KEYS: dict[str, tuple[Any, ...]] = {
    "_class_name": CLASSES, "architectures": ([], ["CLIPModel"], ["GPT2LMHeadModel"], ["evil"], "CLIPTextModel", 7),
    "model_type": ("llama", "t5", "clip", "bert", "", 7, None), "dtype": ("float64", "bogus", 7, "int8", "os.system"),
    "torch_dtype": ("float64", "bogus", 7, "int8"), "auto_map": ({"AutoModel": "evil.Evil"}, "evil.Evil", 7),
    "_attn_implementation": ("flash_attention_2", "bogus", 7), "tie_word_embeddings": (True, 7),
    "_diffusers_version": ("0.0.1", "99.0", 7, None), "_name_or_path": ("/etc/passwd", 7, "\0"),
    "transformers_version": ("99.0", 7), "vqcompress": (True, {}), "hidden_act": ("gelu", "os.system", 7, ["gelu"]),
    "act_fn": ("silu", "relu", "eval", 7), "is_decoder": (True,), "gradient_checkpointing": (True,),
}  # fmt: skip


def _config(rng: random.Random, folder: Path) -> Path:
    return folder / rng.choice(COMPONENTS) / "config.json"


def other_format(rng: random.Random, folder: Path) -> str:
    """Fields of another format on a layer, all or one of them."""

    def change(config: Any) -> str:
        layers = config["quantization_config"]["layers"]
        name, other = rng.choice(sorted(layers)), rng.choice(sorted(OF_FORMAT))
        fields = OF_FORMAT[other]
        if rng.random() < 0.5:
            key = rng.choice(sorted(fields))
            layers[name][key] = fields[key]
            return f"{name} has {key} = {fields[key]!r}"
        layers[name] = {**layers[name], **fields, "format": rng.choice((other, layers[name]["format"], other.title()))}
        return f"{name} is {layers[name]!r:.100}"

    return edit(_config(rng, folder), change)


def like_another(rng: random.Random, folder: Path) -> str:
    """A layer described as another is, with its own shape, or with that of the other."""

    def change(config: Any) -> str:
        layers = config["quantization_config"]["layers"]
        name, other = rng.choice(sorted(layers)), rng.choice(sorted(layers))
        shape = rng.choice((layers[name]["shape"], layers[other]["shape"], layers[name]["shape"][::-1]))
        layers[name] = {**layers[other], "shape": shape}
        return f"{name} is described as {other}"

    return edit(_config(rng, folder), change)


def two_fields(rng: random.Random, folder: Path) -> str:
    """Two fields of a layer that make up for each other in part, such as a rate and a number of bits."""

    def change(config: Any) -> str:
        layers = config["quantization_config"]["layers"]
        entry = layers[name := rng.choice(sorted(layers))]
        numbers = sorted(key for key, value in entry.items() if type(value) is int)
        first, second = rng.sample(numbers, 2) if len(numbers) > 1 else (numbers[0], numbers[0])
        step = rng.choice((1, 2, 8, 64, 1 << 31))
        entry[first], entry[second] = entry[first] + step, entry[second] - rng.choice((step, -step))
        return f"{name}: {first} = {entry[first]}, {second} = {entry[second]}"

    return edit(_config(rng, folder), change)


def sharing(rng: random.Random, folder: Path) -> str:
    """Who shares which codebook."""

    def change(config: Any) -> str:
        description = config["quantization_config"]
        layers, shared = description["layers"], description["shared"]
        coded = sorted(name for name, entry in layers.items() if "codebook" in entry)
        entry = layers[name := rng.choice(coded or sorted(layers))]
        match rng.randrange(6):
            case 0:
                entry["codebook"] = rng.choice((*sorted(shared), "none", "", "layers", "weight", "book.x", 7, None))
                return f"{name} shares {entry['codebook']!r}"
            case 1 if shared:
                names = sorted(shared)
                shared[names[0]], shared[names[-1]] = shared[names[-1]], shared[names[0]]
                return "shapes of two codebooks swapped"
            case 2 if shared:
                shared[key] = [*shared[key := rng.choice(sorted(shared))], 1]
                return f"{key} has a dimension more"
            case 3:
                entry["codebook_rates"] = rng.choice(([2, 1], [1, 1], [1], [1, 2, 3], [0, 1], [1, 99], [[1, 2]], "12"))
                return f"{name}: tables for {entry['codebook_rates']!r}"
            case 4 if shared:
                shared[rng.choice(("__class__", "weight", "a.b", "a" * 200, "1"))] = shared.pop(sorted(shared)[0])
                return "a codebook renamed"
        entry.pop("codebook", None)
        return f"{name} shares none"

    return edit(_config(rng, folder), change)


def half_rates(rng: random.Random, folder: Path) -> str:
    def change(config: Any) -> str:
        layers = config["quantization_config"]["layers"]
        rated = sorted(name for name, entry in layers.items() if "min_rate" in entry)
        entry = layers[name := rng.choice(rated)]
        entry["half_rates"] = rng.choice((not entry.get("half_rates", False), True, False, 1, None, "true"))
        if rng.random() < 0.5:
            entry["min_rate"] = entry["min_rate"] * 2 if rng.random() < 0.5 else entry["min_rate"] + 1
        return f"{name}: half_rates {entry['half_rates']!r}, min_rate {entry['min_rate']}"

    return edit(_config(rng, folder), change)


def another_library(rng: random.Random, folder: Path) -> str:
    def change(config: Any) -> str:
        other = rng.choice(OTHER_LIBRARIES)
        old = config.get("quantization_config") or {}
        config["quantization_config"] = other if rng.random() < 0.7 else {**old, **other}
        return f"quantization_config {config['quantization_config']!r:.80}"

    return edit(folder / rng.choice((*COMPONENTS, "vae")) / "config.json", change)


def own_key(rng: random.Random, folder: Path) -> str:
    """Keys by which a library chooses classes, dtypes and code."""

    def change(config: Any) -> str:
        key = rng.choice(sorted(OWN_KEYS))
        config[key] = rng.choice(OWN_KEYS[key])
        return f"{key} = {config[key]!r:.60}"

    (folder / "unet" / "evil.py").write_text("raise SystemExit(77)\n") if rng.random() < 0.3 else None
    return edit(folder / rng.choice((*COMPONENTS, "vae")) / "config.json", change)


def any_type(rng: random.Random, folder: Path) -> str:
    """Any field of any component's config, with a value of any type."""

    def change(config: Any) -> str:
        key = rng.choice(sorted(key for key in config if key != "quantization_config"))
        config[key] = rng.choice(
            (*HOSTILE_VALUES, *HOSTILE_INTEGERS, [config[key]], {"a": config[key]}, str(config[key]))
        )
        return f"{key} = {config[key]!r:.60}"

    return edit(folder / rng.choice((*COMPONENTS, "vae")) / "config.json", change)


def tensor_numbers(rng: random.Random, folder: Path) -> str:
    """One number of a tensor that is read as a rate, position, scale or table entry; the file stays well formed."""
    files = [path for name in COMPONENTS for path in (folder / name).glob("*.safetensors") if path.is_file()]
    path = rng.choice(sorted(files))
    try:
        tensors = load_file(path)
        key = rng.choice(sorted(k for k in tensors if not k.endswith(("weight", "bias"))))
        flat = tensors[key] = tensors[key].clone()
        flat = flat.view(-1)
        place, value = rng.randrange(len(flat)), hostile(rng)
        whole = type(value) in (int, bool, float) and value == value and abs(value) < 1 << 15
        value = int(value) if whole and not flat.is_floating_point() else value if whole else -1
        flat[place] = max(-128, min(127, value)) if flat.dtype == torch.int8 else value
        if "position" in key and len(flat) > 1 and rng.random() < 0.6:  # twice the same, or not in order
            flat[0] = flat[1] if rng.random() < 0.5 else flat[-1] + 1
    except Exception as error:  # noqa: BLE001 - an earlier mutation has broken it
        return f"nothing ({type(error).__name__})"
    save_file(tensors, path, metadata={"format": "pt"})
    return f"{key} of {path.name}: number {place} is {flat[place].item()}"


def swapped_configs(rng: random.Random, folder: Path) -> str:
    """Each component described as the other."""
    first, second = (folder / name / "config.json" for name in COMPONENTS)
    if not {first, second} <= set(files(folder)):
        return "nothing"
    one, other = json.loads(first.read_bytes()), json.loads(second.read_bytes())
    key = "quantization_config"
    one[key], other[key] = other.get(key), one.get(key)
    first.write_text(json.dumps(one))
    second.write_text(json.dumps(other))
    return "descriptions change places"


MUTATIONS: tuple[Mutation, ...] = (
    other_format, other_format, like_another, like_another, two_fields, two_fields, two_fields, sharing, sharing,
    half_rates, another_library, own_key, own_key, any_type, any_type, tensor_numbers, tensor_numbers, swapped_configs,
)  # fmt: skip
