"""``--json`` of every verb against the table of keys in docs/command-line.md."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import torch
from click.testing import CliRunner
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from tests.checkpoint.make_old_folders import tiny_pipeline
from tests.cli.test_bake_lora import lora
from tests.cli.test_convert import LABELLED
from tests.test_house_law import ROOT
from vqcompress.cli.main import VERBS, main
from vqcompress.models.dit_moe import DiTMoE

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
FEW = ("--count", "1", "--steps", "1", "--resolution", "8", "--budget", "layer", "--bits", "4", "--method", "rtn")
TRAINING = ("prompts=1", "held_out=1", "batch_size=1", "block_steps=1", "requantize=0")
WORDS = "a cat\ntwo dogs\na red hat\nthe sea\nan old tree\nrain\n"


def table() -> dict[str, str]:
    """Cell of verbs -> cell of keys."""
    text = (ROOT / "docs" / "command-line.md").read_text()
    _, _, section = text.partition("\n## JSON\n")
    rows = [row.strip("|").split(" | ") for row in section.partition("\n## ")[0].splitlines() if row.startswith("| `")]
    return {verbs: keys for verbs, keys, *_ in rows}


def documented(verb: str) -> set[str]:
    """Keys that the table lists for a verb; those in brackets belong to a key's value. Some are only of one verb."""
    (keys,) = [keys for verbs, keys in table().items() if f"`{verb}`" in verbs]
    common, _, own = keys.partition("; of ")
    also = own if own.startswith(f"`{verb}`") else ""
    plain = re.sub(r"\(.*?\)", "", common + also.removeprefix(f"`{verb}`"))
    return set(re.findall(r"`(\w+)`", plain))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny model, prompts, a LoRA, official weights, and places to write."""
    folder = tmp_path_factory.mktemp("desk")
    tiny_pipeline().save_pretrained(folder / "model")
    lora(tiny_pipeline(), ("unet",), folder / "style.safetensors", 1)
    (folder / "words.txt").write_text(WORDS)
    (folder / "config.json").write_text(json.dumps(LABELLED))
    torch.save(DiTMoE(**LABELLED).state_dict(), folder / "official.pt")
    places = {name.upper(): str(folder / name) for name in ("model", "out", "words.txt", "config.json", "official.pt")}
    return {**places, "LORA": str(folder / "style.safetensors"), "VAE": str(folder / "model" / "vae")}


def printed(desk: dict[str, str], *arguments: str) -> Any:
    """The document on stdout; nothing else is there, and nothing on stderr."""
    for logging in (diffusers_logging, transformers_logging):
        logging.enable_progress_bar()  # as in a process of its own
    words = [re.sub(r"^[A-Z]+(\.\w+)?(?=$|-)", lambda found: desk.get(found[0], found[0]), word) for word in arguments]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def compressed(desk: dict[str, str]) -> dict[str, Any]:
    """What `quantize` printed. Its folder is OUT."""
    return printed(desk, "quantize", "MODEL", "-o", "OUT", "--prompts", "WORDS.TXT", *FEW)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_it(verb: str) -> None:
    said = CliRunner().invoke(main, [verb, "--help"]).output
    assert "--json" in said
    assert any(f"`{verb}`" in verbs for verbs in table())


def test_keys_of_quantize_are_those_of_the_table(compressed: dict[str, Any]) -> None:
    assert compressed.keys() == documented("quantize") == {"output", "bytes", "bits_per_weight"}


@pytest.mark.parametrize(
    ("row", "arguments"),
    [
        ("quantize --dry-run", ("quantize", "shapes", "--dry-run", "-o", "OUT-other")),
        ("convert", ("convert", "dit_moe", "OFFICIAL.PT", "--config", "CONFIG.JSON", "--vae", "VAE", "-o", "OUT-dit")),
        ("bake-lora", ("bake-lora", "MODEL", "LORA", "-o", "OUT-baked")),
        ("inspect", ("inspect", "OUT")),
        ("verify", ("verify", "OUT")),
        ("bundle", ("bundle", "OUT", "-o", "OUT-one.safetensors")),
        ("dequantize", ("dequantize", "OUT", "-o", "OUT-dense")),
        ("push", ("push", "OUT", "me/x", "--base", SDXL, "--dry-run")),
        ("generate", ("generate", "OUT", "a cat", "--steps", "1", "-o", "OUT-grid.png")),
        (
            "finetune --dry-run",
            ("finetune", "OUT", "--prompts", "WORDS.TXT", "--dry-run", *(w for t in TRAINING for w in ("--set", t))),
        ),
        ("env", ("env",)),
        ("presets", ("presets",)),
    ],
)
def test_keys_are_those_of_the_table(
    row: str, arguments: tuple[str, ...], desk: dict[str, str], compressed: dict[str, Any]
) -> None:
    found = printed(desk, *arguments)
    assert (set(found) if isinstance(found, dict) else set(found[0])) == documented(row)
    if row == "generate":
        assert set(found["images"][0]) == {"prompt", "seed", "file"}


def test_keys_of_finetune_are_those_of_the_table(desk: dict[str, str], compressed: dict[str, Any]) -> None:
    options = (
        "--model",
        "MODEL",
        "--prompts",
        "WORDS.TXT",
        "--steps",
        "1",
        *(w for t in TRAINING for w in ("--set", t)),
    )
    found = printed(desk, "finetune", "OUT", "-o", "OUT-tuned", *options)
    assert found.keys() == documented("finetune")
    assert found["held_out_error"].keys() == {"before", "after", "steps", "best_step"}


def test_a_report_is_a_document_of_its_schema(desk: dict[str, str], compressed: dict[str, Any]) -> None:
    options = ("--prompts", "WORDS.TXT", "--count", "2", "--steps", "1", "-o", "OUT-report")
    found = printed(desk, "report", "MODEL", "OUT", *options)
    jsonschema.validate(found, json.loads((ROOT / "docs" / "report.schema.json").read_text()))
