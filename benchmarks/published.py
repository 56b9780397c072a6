"""What is published: the results of ``docs/results``, the commands that make each, and what their columns mean."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

OUT = "out/evidence"
PEERS = (
    "gguf-q4_k", "gguf-q3_k", "nf4", "hqq-3", "torchao-int4", "sdnq-uint4", "llmcompressor-gptq-3", "gptqmodel-3",
)  # fmt: skip
TWO_BITS = ("gguf-q2_k", "hqq-2", "llmcompressor-gptq-2")
SEVERAL_WIDTHS = (
    *TWO_BITS,
    "gguf-q3_k",
    "gguf-q4_k",
    "hqq-3",
    "sdnq-uint4",
    "llmcompressor-gptq-3",
    "llmcompressor-gptq-4",
)
VARIANTS = tuple(f"{method}-{bits}" for bits in (2, 3, 4) for method in ("trellis", "gptq"))


@dataclass(frozen=True)
class Result:
    """``commands`` make it; ``report`` is the report.json that they write, None where the last one prints a table.
    ``about`` explains the columns of that. The folder ``starts_without`` is removed first: what lies there already
    would not be measured again. Words like ``NAME=value`` before a command are its environment."""

    name: str
    commands: tuple[str, ...]
    report: str | None = None
    about: str = ""
    starts_without: str = ""


def against_peers(model: str, count: int) -> Result:
    """`VARIANTS` with the same bits in every layer, beside other packages' formats."""
    return _beside_peers(f"{model}-peers", model, count, "layer", "", "peers", (*TWO_BITS, *PEERS))


def against_allocated_peers(model: str, count: int) -> Result:
    """`VARIANTS` with allocated bits, beside other packages' formats with a width for each layer."""
    peers = tuple(f"{name}-allocated" for name in SEVERAL_WIDTHS)
    return _beside_peers(f"{model}-allocated-peers", model, count, "model", "allocated-", "allocated-peers", peers)


def _beside_peers(
    name: str, model: str, count: int, budget: str, prefix: str, folder: str, peers: tuple[str, ...]
) -> Result:
    """`VARIANTS` with bits by ``budget`` in folders with ``prefix``, beside ``peers``; the report is in ``folder``."""
    folders = [f"{OUT}/{model}/{prefix}{variant}" for variant in VARIANTS]
    made = [
        f"vqcompress quantize {model} -o {made} --method {variant.split('-')[0]} --bits {variant.split('-')[1]} "
        f"--budget {budget} --calibration {OUT}/{model}/calibration --overwrite"
        for variant, made in zip(VARIANTS, folders, strict=True)
    ]
    asked, out = " ".join(f"--peer {peer}" for peer in peers), f"{OUT}/{model}/{folder}"
    report = f"vqcompress report {model} {' '.join(folders)} --count {count} {asked} -o {out}"
    return Result(name, (*made, report), f"{out}/report.json")


def by_captions(model: str, count: int) -> Result:
    """Every method at 3 bits, the same in every layer, by the share of images that show what their caption says."""
    folders = {method: f"{OUT}/{model}/{method}-3" for method in ("trellis", "gptq", "additive", "kmeans", "rtn")}
    common = f"--bits 3 --budget layer --calibration {OUT}/{model}/calibration --overwrite"
    commands = [f"vqcompress quantize {model} -o {made} --method {method} {common}" for method, made in folders.items()]
    report = f"vqcompress report {model} {' '.join(folders.values())} --count {count} -o {OUT}/{model}/captions"
    return Result(f"{model}-captions", (*commands, report), f"{OUT}/{model}/captions/report.json")


def with_output_feedback(model: str, count: int) -> Result:
    """The trellis at 2 bits, allocated: without output feedback, with it, and with the same bits in every layer."""
    made = {"feedback": ("--output-feedback",), "allocated": (), "uniform": ("--budget", "layer")}
    folders = {name: f"{OUT}/{model}/2-bit-{name}" for name in made}
    common = f"vqcompress quantize {model} --bits 2 --calibration {OUT}/{model}/calibration --overwrite"
    commands = [" ".join((common, "-o", folders[name], *options)) for name, options in made.items()]
    report = f"vqcompress report {model} {' '.join(folders.values())} --count {count} -o {OUT}/{model}/2-bit-report"
    return Result(f"{model}-feedback", (*commands, report), f"{OUT}/{model}/2-bit-report/report.json")


def allocation(model: str, count: int) -> Result:
    """The trellis at 2, 3 and 4 bits, the same in every layer and allocated."""
    made = {f"{bits}-bit-{budget}": (bits, budget) for bits in (2, 3, 4) for budget in ("layer", "model")}
    folders = {name: f"{OUT}/{model}/{name}" for name in made}
    common = f"vqcompress quantize {model} --calibration {OUT}/{model}/calibration --overwrite"
    commands = [f"{common} -o {folders[name]} --bits {bits} --budget {budget}" for name, (bits, budget) in made.items()]
    report = f"vqcompress report {model} {' '.join(folders.values())} --count {count} -o {OUT}/{model}/allocation"
    return Result(f"{model}-allocation", (*commands, report), f"{OUT}/{model}/allocation/report.json")


def fine_tuned(model: str, count: int) -> Result:
    """The trellis at 2 bits, allocated, before and after fine-tuning the whole denoiser, beside GPTQ at 4."""
    made = {"2-bit-model": "--bits 2", "2-bit-tuned": "--bits 2 --finetune full", "gptq-4": "--method gptq --bits 4"}
    folders = {name: f"{OUT}/{model}/{name}" for name in made}
    common = f"vqcompress quantize {model} --calibration {OUT}/{model}/calibration --overwrite"
    commands = [f"{common} -o {folders[name]} {options}" for name, options in made.items()]
    report = f"vqcompress report {model} {' '.join(folders.values())} --count {count} -o {OUT}/{model}/tuned"
    return Result(f"{model}-finetune", (*commands, report), f"{OUT}/{model}/tuned/report.json")


def schemes(model: str) -> Result:
    """Every method at 2, 3 and 4 bits, uniform and allocated, as ``make results`` makes them."""
    return Result(f"{model}-methods", (f"make results MODEL={model}",), f"out/results/{model}/report/report.json")


LAYERS = (
    "Relative output error; held-out learns from half of the inputs and is scored on the other half; gap is what "
    "is spent in bits a weight above the rate-distortion bound of Gaussian weights; bits count everything stored; "
    "seconds are processor time of one layer. Layer a has Gaussian weights and independent inputs, b the same "
    "weights and correlated inputs, c heavy-tailed weights and correlated inputs."
)

NETWORKS = (
    "What the networks are, and what follows: [Networks that others trained](../real-networks.md). Every layer "
    "gets the same bits; bits count everything stored. Second moments are of one set of inputs, the output's "
    "errors, relative and squared, of another; errors of layers and output channels are on the moments. Of Silero "
    "VAD and waifu2x the output's error is the geometric mean over six calibrations. A scalar layer is one whose "
    "vector code gave way to a scalar code in no more bytes."
)
ONE = "OMP_NUM_THREADS=1"
COLUMN_SCALES = (
    "Relative output errors of layers whose halves of columns differ tenfold in size, their inputs the other way "
    "round; of *mixed* the inputs are correlated as well."
)
DAMPING = (
    "Errors on the inputs of calibration / on others, relative to those at the first rise: geometric means over "
    "layers, 2, 3 and 4 bits and two seeds. Damping is the most that raises the rate-distortion bound by the "
    "rise."
)
UNSEEN = (
    "Relative output errors on what calibration had seen / on what it had not: classes of `shapes-moe`'s "
    "modulation layers, or prompts of a layer that reads text."
)
TRAINING = (
    "`shapes`, the same bits in every layer, on captions that neither calibration nor training nor early stopping "
    "saw; GPTQ as by default, with groups of 32. Errors are the denoiser's on the original's own inputs, of both "
    "branches and of the guided output. PSNR is over all pixels of all images, its mean and median over images. Rows "
    "named *outputs* were quantized with output feedback. Seconds are processor time without recording the original; "
    "`full` includes `blocks`."
)
CALIBRATION = (
    "`shapes`, the same bits in every layer, states of 10 bits without descent, on captions that calibration had "
    "not seen. PSNR is over all pixels; processor seconds include recording."
)
FULL_SIZE = (
    "SDXL's UNet with Gaussian weights, the same bits in every layer, states of 10 bits without descent, "
    "calibrated on 2 prompts of 128 x 128 pixels in 4 steps, on one core. Each stage is a process; peak memory "
    "counts files mapped into it. The call is the last of an image that calibration had not seen, both guidance "
    "halves."
)
SCALING = (
    "Computed from three speeds measured here, each the fastest of seven tries, with full second moments and the "
    "fast settings; speeds of accelerators are assumed."
)
COMPILED = "Read from the machine code; no GPU ran it."
STEPS = (
    "A step of two networks at a batch of two, in processor time of the calling thread: packed, and with every "
    "weight kept. *quarter* is a UNet of SDXL's form with 206 million parameters; sizes are those of the latents, "
    "8 for `shapes` itself and 128 for SDXL."
)
PRODUCTS = (
    "A layer of 1280 x 1280, 3 bits, with weights from memory as in a model: copies of the layer in turn. *Limit* "
    "is what reading the packed bytes takes at the measured bandwidth."
)
LOADING = (
    "A UNet of SDXL's form with 206 million parameters, dense and packed in turn: medians of 15 loads, each a "
    "process forked off one that had loaded two tiny models. *Until ready* adds to the load what the first call "
    "takes beyond the second; memory is the growth of what was resident, pages of the model's file included. "
    "*From disk*: the page cache has forgotten the files."
)
SMALLER_NETWORKS = "all-MiniLM-L6-v2,Silero VAD,waifu2x upconv 7"

TABLE = (
    against_peers("shapes-dit", 48),
    against_peers("shapes", 48),
    against_peers("shapes-moe", 48),
    against_peers("posters", 96),
    by_captions("posters", 192),
    against_allocated_peers("shapes-dit", 48),
    against_allocated_peers("shapes-moe", 48),
    with_output_feedback("shapes-dit", 48),
    allocation("shapes-dit", 48),
    allocation("shapes", 48),
    allocation("shapes-moe", 48),
    fine_tuned("shapes-dit", 48),
    schemes("shapes-dit"),
    schemes("shapes-moe"),
    Result(
        "layers-peers",
        (f"python benchmarks/layer_error.py --bits 2,3,4 --only default,rtn,gptq --peers {','.join(PEERS)}",),
        about=LAYERS,
    ),
    Result(
        "layers",
        ("python benchmarks/layer_error.py --bits 2,3,3.1,4 --only default,best,gptq,rtn",),
        about=f"{LAYERS} `default` has states of 12 bits, at 4 bits of 14, and `best` of 16.",
    ),
    Result("real-networks", ("python benchmarks/real_networks.py --methods gptq,trellis",), about=NETWORKS),
    Result(
        "real-networks-methods",
        (
            "python benchmarks/real_networks.py --methods gptq,rtn,kmeans,additive "
            f"--networks {shlex.quote(SMALLER_NETWORKS)}",
        ),
        about=NETWORKS,
    ),
    Result("trellis-states", ("python benchmarks/layer_error.py --states --bits 2,3,4",), about=LAYERS),
    Result("column-scales", ("python benchmarks/column_scales.py",), about=COLUMN_SCALES),
    Result("damping", ("python benchmarks/damping.py",), about=DAMPING),
    Result("unseen-classes", ("python benchmarks/unseen_prompts.py",), about=UNSEEN),
    Result("unseen-prompts", ("python benchmarks/unseen_prompts.py --text",), about=UNSEEN),
    Result(
        "training",
        (f"{ONE} python benchmarks/finetune.py --preset default --images 96 --out {OUT}/training",),
        about=TRAINING,
        starts_without=f"{OUT}/training",
    ),
    Result(
        "calibration",
        (f"{ONE} python benchmarks/calibration.py --bits 2 --out {OUT}/calibration",),
        about=CALIBRATION,
        starts_without=f"{OUT}/calibration",
    ),
    Result(
        "full-size",
        (f"python benchmarks/full_size.py --gaussian --work {OUT}/full-size",),
        about=FULL_SIZE,
        starts_without=f"{OUT}/full-size",
    ),
    Result("scaling", ("python benchmarks/scaling_model.py",), about=SCALING),
    Result("cuda-kernels", ("python benchmarks/cuda_artefacts.py",), about=COMPILED),
    Result("triton-kernels", ("python benchmarks/kernel_artefacts.py",), about=COMPILED),
    Result(
        "cpu-steps",
        (f"{ONE} python benchmarks/unet_step.py --models shapes,quarter --sizes 8,16,32 --rounds 21",),
        about=STEPS,
    ),
    Result("cpu-products", (f"{ONE} python benchmarks/matmul.py --samples 1,2,16,1024",), about=PRODUCTS),
    Result("loading", (f"{ONE} python benchmarks/loading.py --rounds 15 --dtypes float32,float16",), about=LOADING),
)
