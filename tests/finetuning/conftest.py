"""A tiny SDXL as teacher, the same with packed layers as student, and a distillation dataset recorded once."""

from __future__ import annotations

import copy
import os
import socket
import tempfile
from pathlib import Path

import pytest
import torch

from tests.architectures import tiny_pipelines as _tiny
from vqcompress.architectures import architecture_of
from vqcompress.finetuning import Teacher, TuningContext, open_distillation, record_distillation
from vqcompress.finetuning.presets import training_preset
from vqcompress.layers import swap
from vqcompress.matrix_view import is_quantizable
from vqcompress.quantizers import quantize_weight
from vqcompress.recipe import Calibration, Recipe, Training
from vqcompress.run_store import RunStore
from vqcompress.workers import joined_workers

GUIDANCE = 2.0
KEEP = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
PROMPTS = ["a cat", "two dogs", "a red hat", "the sea", "an old tree", "rain", "a ship", "some sand"]
TRAINING = {
    "prompts": 4, "held_out": 2, "steps": 12, "batch_size": 4, "micro_batch": 4, "rate": 0.05, "block_steps": 4,
}  # fmt: skip


@pytest.fixture(scope="session")
def training() -> Training:
    """A few steps."""
    return Training(**TRAINING)


@pytest.fixture(scope="session")
def teacher():
    """The dense pipeline; do not change it."""
    pipeline = _tiny.sdxl()
    pipeline.unet.half().float().requires_grad_(False)  # as if it came from float16 files
    return pipeline


@pytest.fixture(scope="session")
def quantized(teacher):
    """Layer -> packed weight, 2-bit, in every format."""
    layers = [
        n for n, m in teacher.unet.named_modules() if is_quantizable(m) and n not in KEEP and m.weight.numel() >= 512
    ]
    made = {}
    for index, name in enumerate(layers):
        method = "trellis" if index % 12 == 0 else "rtn"
        made[name] = quantize_weight(teacher.unet.get_submodule(name).weight, method=method, bits=2)
    return made


@pytest.fixture(scope="session")
def coarse(teacher, quantized):
    """Layer -> packed weight: trellis codes, of 1.5 bits in three places near the output and of four elsewhere."""
    places = [name for name in quantized if name.startswith("up_blocks")][-3:]
    return {
        name: quantize_weight(teacher.unet.get_submodule(name).weight, bits=1.5 if name in places else 4)
        for name in quantized
    }


@pytest.fixture
def dense(teacher):
    """A dense denoiser to put packed layers into."""
    return copy.deepcopy(teacher.unet)


@pytest.fixture
def student(dense, quantized):
    """The packed denoiser, untuned."""
    swap(dense, quantized)
    return dense


@pytest.fixture(scope="session")
def run_folder(teacher, training, tmp_path_factory) -> Path:
    """A run's folder with a distillation dataset in it; read only."""
    folder = tmp_path_factory.mktemp("run")
    calibration = Calibration(steps=3, guidance=GUIDANCE, height=8, width=8, batch_size=2)
    recipe = Recipe(model="tiny", training=training, calibration=calibration)
    with RunStore(folder, {}) as store:
        record_distillation(Teacher(teacher, architecture_of(teacher), PROMPTS, ["rain"]), recipe, store)
    return folder


@pytest.fixture(scope="session")
def distillation(run_folder):
    """What `run_folder` holds."""
    return open_distillation(run_folder)


@pytest.fixture
def context(distillation, training, tmp_path):
    """``context(store)`` is that of a run that keeps its work there, or in a folder of its own; ``changes`` are its
    fields."""

    def make(store: RunStore | None = None, recipe: Recipe | None = None, **changes) -> TuningContext:
        recipe = recipe or Recipe(model="tiny", training=training)
        store = store or RunStore(tempfile.mkdtemp(dir=tmp_path), {})
        return TuningContext(recipe, training_preset(recipe.training), distillation, GUIDANCE, store, **changes)

    return make


@pytest.fixture
def codes_of():
    """Every int8 tensor of a module, copied."""
    return lambda module: {n: p.clone() for n, p in module.named_parameters() if p.dtype == torch.int8}


@pytest.fixture
def in_two_ranks():
    """Runs ``work(workers)`` in two forked processes that talk through gloo; what it returns waits for their exit
    codes."""

    def run(work):
        port = free_port()
        children = [in_a_process(rank, port, work) for rank in range(2)]
        return lambda: [os.waitpid(child, 0)[1] for child in children]

    return run


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def in_a_process(rank: int, port: str, work) -> int:
    """Fork a worker as torchrun would start it; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with joined_workers() as workers:
            work(workers)
        code = 0
    finally:
        os._exit(code)
