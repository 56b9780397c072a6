"""Files of a pipeline that name classes and code, and entries of a folder that are no plain files."""

from __future__ import annotations

import json
import os
import random
import socket
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import MANIFEST, Mutation, edit, files, hostile, weight_file

CLASSES: tuple[Any, ...] = (
    ["os", "system"], ["subprocess", "Popen"], ["builtins", "exec"], ["builtins", "dict"], ["torch", "load"],
    ["torch.nn", "Linear"], ["diffusers", "DiffusionPipeline"], ["diffusers", "__version__"], ["diffusers", "nothing"],
    ["diffusers", "UNet3DConditionModel"], ["transformers", "pipeline"], ["transformers", "CLIPModel"],
    ["transformers", "AutoModel"], ["vqcompress", "load"], ["vqcompress", "quantize"], ["evil", "Evil"],
    ["unet.evil", "Evil"], ["pipeline_evil", "Evil"], ["diffusers_modules", "X"], ["../x", "X"], ["", ""], [None, "X"],
    ["diffusers", None], [None, None], ["diffusers"], ["diffusers", "A", "B"], [1, 2], [["diffusers"], "A"],
    "diffusers", 7, None, {}, ["stable_diffusion", "StableDiffusionSafetyChecker"],
    ["diffusers", "FlaxUNet2DConditionModel"],
    ["onnxruntime", "InferenceSession"], ["pickle", "loads"], ["shutil", "rmtree"], ["\0", "\0"], ["os.path", "join"],
)  # fmt: skip
PIPELINES: tuple[Any, ...] = (
    "StableDiffusionXLPipeline", "FluxPipeline", "DiffusionPipeline", "OnnxStableDiffusionPipeline", "evil",
    "os.system",
    ["evil", "Evil"], ["pipeline_evil", "Evil"], ["../x", "Evil"], 7, None, "", "StableDiffusionPipeline\0", {},
    "ClipPixArtPipeline", "ConsistencyModelPipeline", "__class__", "AutoPipelineForText2Image",
)  # fmt: skip
SCHEDULERS = ("EulerDiscreteScheduler", "DDIMSchedulerX", "os.system", "UNet2DConditionModel", "", 7, None, "Mixin")
TOKENIZERS = ("PreTrainedTokenizerFast", "CLIPTokenizerFast", "LlamaTokenizer", "T5Tokenizer", "evil", "", 7, None)
EVIL = "raise SystemExit(77)\n"
LINKS = (
    "/proc/self/environ",
    "/proc/self/maps",
    "/dev/stdin",
    "/dev/tty",
    "/dev/fd/0",
    "/proc/self/mem",
    "/etc/passwd",
)


def component_class(rng: random.Random, folder: Path) -> str:
    """A class from elsewhere for a component, perhaps with a file of that name to import."""

    def change(index: Any) -> str:
        key = rng.choice((*sorted(key for key in index if not key.startswith("_")), "new", "../x", "evil"))
        index[key] = rng.choice(CLASSES)
        return f"{key} is {index[key]!r:.60}"

    for place in ("evil.py", "unet/evil.py", "pipeline_evil.py", "evil/evil.py") if rng.random() < 0.4 else ():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(EVIL)
    return edit(folder / "model_index.json", change)


def pipeline_class(rng: random.Random, folder: Path) -> str:
    def change(index: Any) -> str:
        key = rng.choice(("_class_name", "_class_name", "_module", "_diffusers_version", "_name_or_path", "custom"))
        index[key] = rng.choice(PIPELINES)
        return f"{key} is {index[key]!r:.60}"

    (folder / "pipeline.py").write_text(EVIL) if rng.random() < 0.3 else None
    return edit(folder / "model_index.json", change)


def scheduler(rng: random.Random, folder: Path) -> str:
    def change(config: Any) -> str:
        key = rng.choice((*sorted(config), "trained_betas", "num_train_timesteps", "timesteps", "lower_order_final"))
        values = {"_class_name": SCHEDULERS, "trained_betas": ([], [0.1], ["x"], [[0.1]], [0.1] * 100_000, "x")}
        config[key] = rng.choice(values[key]) if key in values else hostile(rng, config.get(key))
        return f"{key} = {config[key]!r:.60}"

    return edit(folder / "scheduler" / "scheduler_config.json", change)


def tokenizer(rng: random.Random, folder: Path) -> str:
    """The tokenizer's config, or its vocabulary: ids twice, huge, missing, other types."""

    def change_config(config: Any) -> str:
        key = rng.choice((*sorted(config), "auto_map", "added_tokens_decoder", "chat_template", "tokenizer_file"))
        values: dict[str, tuple[Any, ...]] = {
            "tokenizer_class": TOKENIZERS, "auto_map": ({"AutoTokenizer": ["evil.Evil", None]}, 7, "evil"),
            "added_tokens_decoder": ({"7": {"content": "x"}}, {"x": 1}, {str(1 << 40): {"content": "y"}}, [], 7),
            "tokenizer_file": ("/etc/passwd", "../../x", 7), "chat_template": ("{{ self.__init__ }}", "{%", 7),
        }  # fmt: skip
        config[key] = rng.choice(values[key]) if key in values else hostile(rng, config.get(key))
        return f"{key} = {config[key]!r:.60}"

    def change_vocabulary(data: Any) -> str:
        part = data[key] if isinstance(data[key := rng.choice(sorted(data))], dict) and data[key] else data
        inner = rng.choice(sorted(part))
        if isinstance(part[inner], dict) and part[inner]:
            part, inner = part[inner], rng.choice(sorted(part[inner]))
        part[inner] = hostile(rng, part[inner])
        return f"{key}.{inner:.40} = {part[inner]!r:.60}"

    if rng.random() < 0.5:
        return edit(folder / "tokenizer" / "tokenizer_config.json", change_config)
    return edit(folder / "tokenizer" / "tokenizer.json", change_vocabulary)


def older_tokenizer(rng: random.Random, folder: Path) -> str:
    """Files of slow tokenizers beside the fast one's."""
    texts = {"vocab.json": ("{}", "[]", '{"a": -1, "b": 99999999999}', "{"), "merges.txt": ("a b\n", "", "\0", "#")}
    texts |= {"special_tokens_map.json": ('{"bos_token": 7}', "[]"), "added_tokens.json": ('{"x": -1}', "7")}
    name = rng.choice(sorted(texts))
    (folder / "tokenizer" / name).write_text(rng.choice(texts[name]))
    return f"tokenizer/{name} is new"


def link(rng: random.Random, folder: Path) -> str:
    """A link to a file of the process, of the system or of the folder, or a hard link to another file of it."""
    path = rng.choice([*files(folder), weight_file(rng, folder)])
    other = rng.choice([found for found in files(folder) if found != path])
    path.unlink()
    match rng.randrange(5):
        case 0:
            os.link(other, path)
            return f"{path.name} is {other.name} by a hard link"
        case 1:
            path.symlink_to(os.path.relpath(other, path.parent))
            return f"{path.name} is a link to {other.name}"
        case 2:
            path.symlink_to(rng.choice((".", "..", "../..", "x" * 255)))
            return f"{path.name} is a link to a folder"
        case 3:
            with socket.socket(socket.AF_UNIX) as opened:
                here = Path.cwd()
                try:
                    os.chdir(path.parent)  # its whole path may be too long for an address
                    opened.bind(path.name)
                finally:
                    os.chdir(here)
            return f"{path.name} is a socket"
    path.symlink_to(target := rng.choice(LINKS))
    return f"{path.name} is a link to {target}"


def sparse(rng: random.Random, folder: Path) -> str:
    """A file that says it is longer than the disk, and a manifest that agrees or not."""
    path = rng.choice([*files(folder), weight_file(rng, folder), folder / MANIFEST])
    os.truncate(path, length := rng.choice((1 << 30, 1 << 36, 1 << 42)))

    def change(manifest: Any) -> str:
        manifest[path.relative_to(folder).as_posix()]["bytes"] = length
        return "and the manifest agrees"

    agrees = edit(folder / MANIFEST, change) if path.name != MANIFEST and rng.random() < 0.5 else ""
    return f"{path.name} has {length} bytes, most of them holes {agrees}"


def names_alike(rng: random.Random, folder: Path) -> str:
    """A file or folder with the name of another but for its case, a space or a normal form; the old one may stay."""
    path = rng.choice([*files(folder), *(path for path in folder.iterdir() if path.is_dir())])
    changes = (
        str.upper,
        str.title,
        lambda name: name + " ",
        lambda name: name.replace("e", "е", 1),
        lambda name: f"{name}.",
    )
    new = path.with_name(rng.choice(changes)(path.name))
    if new.exists():
        return "nothing"
    if path.is_file() and rng.random() < 0.5:
        new.write_bytes(path.read_bytes())
        return f"{new.name!r} beside {path.name}"
    path.rename(new)
    return f"{path.name} is named {new.name!r}"


def bytes_in_a_name(rng: random.Random, folder: Path) -> str:
    """A file whose name is no UTF-8, has a line break or is as long as names may be."""
    name = rng.choice(
        (b"\xff\xfe.safetensors", b"a\nb.json", b"x" * 255, b"\xe2\x80\xae.json", b"-rf", b"config.json~")
    )
    parent = rng.choice([folder, folder / "unet", folder / "text_encoder"])
    (Path(os.fsdecode(os.fsencode(parent) + b"/" + name))).write_bytes(b"{}")
    return f"a file named {name[:20]!r}"


def manifest_game(rng: random.Random, folder: Path) -> str:
    """Names that lead to the same file, entries of more or other fields, everything listed or nothing."""

    def change(manifest: Any) -> str:
        name = rng.choice(sorted(manifest))
        match rng.randrange(6):
            case 0:
                alias = rng.choice((f"./{name}", name.replace("/", "//"), f"unet/../{name}", f"/{name}", name.upper()))
                manifest[alias] = manifest[name]
                return f"{alias} too"
            case 1:
                manifest[name] = {**manifest[name], "more": 1}
                return f"{name} with a field more"
            case 2:
                manifest[name]["sha256"] = manifest[name]["sha256"].upper()
                return f"{name} in capitals"
            case 3:
                manifest.clear()
                return "nothing listed"
            case 4:
                manifest[MANIFEST] = manifest[name]
                return "itself listed"
        manifest["unet"] = manifest[name]
        return "a folder listed"

    return edit(folder / MANIFEST, change)


def recipe(rng: random.Random, folder: Path) -> str:
    text = rng.choice(
        ("a: &a [1]\nb: [" + "*a," * 2000 + "]", "!!python/object/apply:os.system ['x']", "\0", "a: {" * 900)
    )
    (folder / "vqcompress_recipe.yaml").write_text(text)
    return f"recipe {text[:30]!r}"


def extra_component(rng: random.Random, folder: Path) -> str:
    """A folder more, that the index names or not."""
    name = rng.choice(("safety_checker", "feature_extractor", "image_encoder", "new"))
    (folder / name).mkdir(exist_ok=True)
    (folder / name / rng.choice(("config.json", "preprocessor_config.json"))).write_text(
        json.dumps(
            rng.choice(({}, {"model_type": "clip"}, {"quantization_config": {"quant_method": "vqcompress"}}, []))
        )
    )

    def change(index: Any) -> str:
        index[name] = rng.choice((["transformers", "CLIPVisionModel"], ["diffusers", "AutoencoderKL"], [None, None]))
        return f"{name} is {index[name]!r}"

    return edit(folder / "model_index.json", change)


MUTATIONS: tuple[Mutation, ...] = (
    component_class, component_class, pipeline_class, scheduler, tokenizer, tokenizer, older_tokenizer, link, link,
    sparse, names_alike, bytes_in_a_name, manifest_game, recipe, extra_component,
)  # fmt: skip
