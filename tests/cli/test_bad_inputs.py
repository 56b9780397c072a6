"""A hundred mistakes: each ends in one line of at most 200 characters on stderr, exit code 2, nothing written."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from tests.checkpoint.make_old_folders import tiny_pipeline
from tests.fuzz.folders import honest_folders
from vqcompress.cli.main import main
from vqcompress.embedded import EMBEDDED


def red_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    return file.getvalue()


FILES: dict[str, bytes] = {
    "empty.txt": b"\n\n",
    "five.safetensors": b"hello",
    "latin.txt": "café au lait\n".encode("latin-1"),
    "nul.txt": b"a red\x00circle\n",
    "model.ckpt": b"\x80\x02cposix\nsystem\n.",
    "lora.bin": b"\x80\x02}q\x00.",
    "lora.safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "red.png": red_png(),
    "image.png": b"\x89PNG\r\n",
    "file": b"x",
    "photos/one.png": b"\x89PNG\r\n",
    "thesis/thesis.txt": b"years of work",
    "broken/model_index.json": b"{",
    "list/model_index.json": b"[]",
    "classless/model_index.json": b"{}",
    "strange/model_index.json": b'{"_class_name": "os.system", "unet": ["os", "system"]}',
    "bad.yaml": b"model: [shapes\n",
    "key.yaml": b"model: shapes\nbitz: 3\n",
    "sequence.yaml": b"- a\n- b\n",
    "words.yaml": b"model: shapes\nbits: three\n",
    "other.yaml": b"model: sdxl\nbits: 3\n",
    "nan.yaml": b"model: shapes\nbits: .nan\n",
    "switch.yaml": b"model: shapes\nbits: yes\n",
    "nested.yaml": b"model: shapes\ncalibration: {stepz: 3}\n",
    "setting.yaml": b"model: shapes\nsettings: {state_bit: 12}\n",
    "settings.yaml": b"model: shapes\nsettings: {state_bits: [12]}\n",
}
SHAPES = "quantize shapes -o out"
# Command line -> a word that the message must hold. DENSE is the folder of an embedded model, PACKED a compressed one
# of another model, BUNDLE the same as a bundle.
MISTAKES = {
    "squash": "squash",
    "quantise shapes": "did you mean 'quantize'",
    "quantize": "MODEL",
    "quantize shapes": "-o",
    "quantize no-such-model -o out": "no-such-model",
    "quantize shapess -o out": "shapess",
    'quantize "" -o out': "model",
    "quantize photos -o out": "model_index.json",
    "quantize broken -o out": "model_index.json",
    "quantize list -o out": "model_index.json",
    "quantize classless -o out": "_class_name",
    "quantize strange -o out": "model_index.json",
    "quantize five.safetensors -o out": "five.safetensors",
    "quantize model.ckpt -o out": "model.ckpt",
    "quantize missing.safetensors -o out": "missing.safetensors",
    "quantize ./missing -o out": "missing",
    "quantize nothing-such --dry-run": "nothing-such",
    f"{SHAPES} --bits 0.5": "less than 1",
    f"{SHAPES} --bits 99": "more than 8",
    f"{SHAPES} --bits nan": "finite",
    f"{SHAPES} --bits inf": "finite",
    f"{SHAPES} --bits -3": "less than 1",
    f"{SHAPES} --bits three": "three",
    f"{SHAPES} --bits 99 --dry-run": "more than 8",
    f"{SHAPES} --bits 99 --json": "more than 8",
    f"{SHAPES} --bits 3.5 --method gptq --budget layer": "whole",
    f"{SHAPES} --bitz 3": "did you mean '--bits'",
    f"{SHAPES} --method treliss": "did you mean 'trellis'",
    f"{SHAPES} --method ''": "gptq",
    f"{SHAPES} --budget all": "layer",
    f"{SHAPES} --finetune some": "blocks",
    f"{SHAPES} --preset quick": "fast",
    f"{SHAPES} --order backwards": "sequential",
    f"{SHAPES} --method rtn --output-feedback": "trellis",
    f"{SHAPES} --set sate_bits=14": "did you mean 'state_bits'",
    f"{SHAPES} --set state_bits=13": "8, 10, 12, 14, 16",
    f"{SHAPES} --set state_bits=twelve": "whole number",
    f"{SHAPES} --set state_bits=true": "whole number",
    f"{SHAPES} --set state_bits": "KEY=VALUE",
    f"{SHAPES} --set =3": "KEY=VALUE",
    f"{SHAPES} --set polish=lots": "coordinate_descent",
    f"{SHAPES} --set tail=heavy": "auto",
    f"{SHAPES} --set tail=9": "-4 to 4",
    f"{SHAPES} --set damping=NaN": "damping",
    f"{SHAPES} --set rotation=3": "rotation",
    f"{SHAPES} --set outliers=null": "outliers",
    f"{SHAPES} --set search=tpu": "gpu",
    f"{SHAPES} --method gptq --bits 4 --set group_size=0": "group_size",
    f"{SHAPES} --method gptq --bits 4 --set group_size=-3": "group_size",
    f"{SHAPES} --method gptq --bits 4 --set damping=-1": "damping",
    f"{SHAPES} --method rtn --bits 4 --set group_size=many": "group_size",
    f"{SHAPES} --method kmeans --set dimension=5": "4, 8 or 16",
    f"{SHAPES} --method additive --set codebooks=0": "1 to 32",
    f"{SHAPES} --method additive --set beam=wide": "beam",
    f"{SHAPES} --components text_decoder": "text_encoder",
    f"{SHAPES} --components ''": "--components",
    f"{SHAPES} --components unet,,": "--components",
    f"{SHAPES} --components unet,unet": "twice",
    f"{SHAPES} --components tokenizer": "no weights",
    f"{SHAPES} --images photos": "prompts alone",
    f"{SHAPES} --calibration ''": "out/calibration",
    f"{SHAPES} --calibration .": "out/calibration",
    f"{SHAPES} --calibration thesis": "thesis",
    f"{SHAPES} --prompts missing.txt": "missing.txt",
    f"{SHAPES} --prompts empty.txt": "empty.txt",
    f"{SHAPES} --prompts latin.txt": "UTF-8",
    f"{SHAPES} --prompts nul.txt": "line 1",
    f"{SHAPES} --prompts genral": "did you mean 'general'",
    f"{SHAPES} --prompts photos": "photos",
    f"{SHAPES} --prompts ''": "prompt",
    f"{SHAPES} --count 0": "count",
    f"{SHAPES} --count -1": "count",
    f"{SHAPES} --count 1.5": "1.5",
    f"{SHAPES} --count 100000": "100000",
    f"{SHAPES} --steps 0": "steps",
    f"{SHAPES} --guidance -1": "guidance",
    f"{SHAPES} --guidance nan": "guidance",
    f"{SHAPES} --resolution 0": "height",
    f"{SHAPES} --resolution 30": "30",
    f"{SHAPES} --seed -1": "seed",
    f"{SHAPES} --seed x": "seed",
    f"{SHAPES} --seed 99999999999999999999999": "seed",
    f"{SHAPES} --memory-budget 0": "memory_budget",
    f"{SHAPES} --memory-budget -1": "memory_budget",
    f"{SHAPES} --memory-budget inf": "memory_budget",
    f"{SHAPES} --recipe missing.yaml": "missing.yaml",
    f"{SHAPES} --recipe bad.yaml": "line 2",
    f"{SHAPES} --recipe key.yaml": "did you mean 'bits'",
    f"{SHAPES} --recipe sequence.yaml": "sequence.yaml",
    f"{SHAPES} --recipe words.yaml": "three",
    f"{SHAPES} --recipe other.yaml": "sdxl",
    f"{SHAPES} --recipe nan.yaml": "finite",
    f"{SHAPES} --recipe switch.yaml": "bits",
    f"{SHAPES} --recipe nested.yaml": "calibration.stepz",
    f"{SHAPES} --recipe setting.yaml": "did you mean 'state_bits'",
    f"{SHAPES} --recipe settings.yaml": "settings.state_bits",
    f"{SHAPES} --recipe image.png": "UTF-8",
    f"{SHAPES} --recipe photos": "photos",
    f"{SHAPES} --calibration file": "file",
    "quantize shapes -o thesis": "--overwrite",
    "quantize shapes -o thesis --overwrite": "thesis",
    "quantize shapes -o file": "file",
    "quantize shapes -o file/out": "file",
    "generate shapes": "PROMPTS",
    'generate shapes "" -o g.png': "prompt",
    "generate shapes red -o g.jpg": "PNG",
    "generate shapes red -o no/folder/g.png": "no/folder",
    "generate shapes red -o g.webp": "PNG",
    "generate shapes red -o no/folder/pictures": "no/folder",
    "generate shapes red -o file/pictures": "file",
    "generate shapes red blue -o clip.gif": "one video",
    "generate shapes red --images 2 -o clip.gif": "one video",
    "generate shapes red -o clip.gif": "images, not videos",
    "generate shapes --prompt-file missing.txt": "missing.txt",
    "generate shapes --prompt-file empty.txt": "empty.txt",
    "generate shapes --prompt-file latin.txt": "UTF-8",
    "generate shapes --prompt-file photos": "photos",
    "generate shapes red --height 30": "take 32",
    "generate shapes red --width 33": "take 32",
    "generate shapes red --width 0": "width",
    "generate shapes red --lora missing.safetensors": "missing.safetensors",
    "generate shapes red --lora lora.bin": "lora.bin",
    "generate shapes red --lora red.png:0.5": "red.png",
    "generate shapes red --lora lora.safetensors:much": "scale",
    "generate shapes red --lora lora.safetensors:nan": "scale",
    "generate shapes red --lora lora.safetensors": "lora.safetensors",
    "generate shapes red --image missing.png": "missing.png",
    "generate shapes red --image image.png": "image.png",
    "generate shapes red --image photos": "photos",
    "generate shapes red --strength 0.5": "image",
    "generate shapes red --image red.png --strength 2": "strength",
    "generate shapes red --image red.png --strength nan": "strength",
    "generate shapes red --mask red.png": "mask",
    "generate shapes red --image red.png --mask red.png": "mask",
    "generate shapes red --frames 5": "frames",
    "generate shapes red --frames 0": "frames",
    "generate shapes red --fps 5": "--fps",
    "generate shapes red --fps 0": "fps",
    "generate shapes red --negative-prompt blue --guidance 1": "no effect",
    "generate shapes-dit red --image red.png": "text alone",
    "generate shapes-moe red --negative-prompt blue": "negative prompt",
    "generate shapes-moe red --height 64": "size",
    "generate shapes red --images 2 --seed 9223372036854775807": "2^63",
    "generate shapes red --steps 0": "steps",
    "generate shapes red --guidance -1": "guidance",
    "generate shapes red --guidance nan": "guidance",
    "generate shapes red --seed -1": "seed",
    "generate shapes red --images 0": "images",
    "generate shapes red --dtype float8": "dtype",
    "generate nowhere red": "nowhere",
    "generate photos red": "model_index.json",
    "inspect nowhere": "nowhere",
    "inspect photos": "photos",
    "inspect five.safetensors": "five.safetensors",
    "verify nowhere": "nowhere",
    "verify photos": "photos",
    "verify five.safetensors": "five.safetensors",
    "verify DENSE": "DENSE",
    "report shapes": "FOLDERS",
    "report shapes nowhere": "nowhere",
    "report shapes photos": "photos",
    "report shapes photos --count 0": "count",
    "report shapes DENSE": "recipe",
    "report shapes photos -o file": "part of the path is a file",
    "quantize shapes -o out --components scheduler": "EulerDiscreteScheduler, which has no weights",
    "quantize shapes -o ''": "name a folder",
    "quantize shapes -o .": "name a folder",
    "quantize shapes -o /": "name a folder",
    "quantize shapes -o out --set bits=3": "unknown setting 'bits'",
    "quantize shapes -o out --steps 1000000000000": "steps",
    "quantize shapes -o out --resolution 100000000": "more than 16384",
    "quantize shapes -o out --preset best --dtype float16": "float32",
    "report shapes PACKED": "another model than shapes",
    "report shapes PACKED -o file": "a part of the path is a file",
    "report shapes PACKED -o file/x": "a part of the path is a file",
    "report shapes PACKED --count 100000": "10000",
    "report shapes PACKED --seed -1": "seed",
    "report shapes PACKED --seed 99999999999999999999": "seed",
    "report shapes PACKED --guidance nan": "guidance",
    "report shapes PACKED --steps 0": "steps",
    "report shapes PACKED --peer nope": "unknown peer 'nope'",
    "report shapes PACKED --peer nf5": "did you mean",
    "report shapes PACKED --dense-budget junk": "junk",
    "report shapes BUNDLE": "BUNDLE",
    "report nowhere PACKED": "nowhere",
    "verify PACKED --seconds nan": "nan",
    "verify PACKED --seconds -1": "seconds",
    "inspect PACKED extra": "extra",
    "bundle BUNDLE -o x.safetensors": "BUNDLE",
    "bundle PACKED -o file": "safetensors",
    "bundle PACKED -o five.safetensors": "exists",
    "bundle PACKED -o ''": "name it",
    "dequantize PACKED -o file": "file",
    "dequantize PACKED -o thesis": "thesis",
    "dequantize PACKED -o x --dtype int8": "dtype",
    "quantize PACKED -o out": "compressed",
    "push PACKED 'a b/c'": "a b/c",
    "push BUNDLE me/x": "BUNDLE",
    "finetune PACKED --steps 0": "steps",
    "finetune PACKED --set rate=fast": "rate",
    "finetune BUNDLE": "BUNDLE",
    "generate PACKED red --height 9": "height",
    "generate BUNDLE red --steps 0": "steps",
    "convert dit-xl-2 model.ckpt -o x": "model.ckpt",
    "bundle nowhere -o x.safetensors": "nowhere",
    "bundle photos -o x.safetensors": "photos",
    "bundle photos -o x.zip": "safetensors",
    "bundle photos": "--output",
    "dequantize nowhere -o x": "nowhere",
    "dequantize photos -o x": "photos",
    "dequantize DENSE -o x": "DENSE",
    "convert nothing five.safetensors -o x": "nothing",
    "convert dit-xl-2 five.safetensors -o x": "five.safetensors",
    "convert dit-xl-2 missing.pt -o x": "missing.pt",
    "push nowhere me/x": "nowhere",
    "push nowhere me": "give owner/name",
    "push DENSE me/x": "DENSE",
    "push nowhere": "OWNER/NAME",
    "push PACKED me/x --base a/b --license mit": "was not sent",
    "bake-lora shapes -o x": "LORA",
    "bake-lora shapes lora.safetensors -o x --method rtn": "--method is for quantizing",
    "bake-lora shapes lora.safetensors -o x --device cpu": "--device is for quantizing",
    "bake-lora shapes lora.safetensors -o x --bits 3 --dtype float16": "--dtype is for dense weights",
    "bake-lora shapes missing.safetensors -o x": "missing.safetensors",
    "bake-lora shapes lora.bin -o x": "lora.bin",
    "bake-lora shapes lora.safetensors -o x": "lora.safetensors",
    "finetune nowhere": "nowhere",
    "finetune photos": "photos",
    "finetune DENSE": "DENSE",
    "presets zzz": "zzz",
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    honest_folders(folder / "honest", tiny_pipeline())
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_line_and_leaves_nothing(
    mistake: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(desk)
    before = {path: path.stat().st_mtime_ns for path in desk.rglob("*")}
    named = {
        "DENSE": str(EMBEDDED["shapes"].path),
        "PACKED": str(Path("honest/whole")),
        "BUNDLE": str(Path("honest/bundle.safetensors")),
    }
    words = mistake
    for name, path in named.items():
        words = words.replace(name, path)
    result = CliRunner().invoke(main, shlex.split(words))
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert all(line.startswith("device: ") for line in result.stdout.splitlines())
    said = result.stderr
    for name, path in named.items():
        said = said.replace(path, name)
    said = said.splitlines()
    assert len(said) == 1, result.stderr
    assert len(said[0]) <= 200
    assert said[0].startswith("vqcompress: ")
    assert MISTAKES[mistake] in said[0]
    assert {path: path.stat().st_mtime_ns for path in desk.rglob("*")} == before
