"""Two processes that talk through gloo end where one process with the same global batch ends."""

from __future__ import annotations

import copy

import torch
from safetensors.torch import load_file, save_file

from vqcompress.finetuning import tune_whole
from vqcompress.finetuning.learnable import tensors_of
from vqcompress.recipe import Recipe, Training
from vqcompress.run_store import RunStore
from vqcompress.workers import Workers, joined_workers


def test_two_ranks_are_one_process(student, context, training, tmp_path, in_two_ranks):
    recipe = Recipe(model="tiny", training=Training(**{**training.model_dump(), "steps": 5, "batch_size": 4}))
    RunStore(tmp_path / "two", {}).close()

    def work(workers: Workers) -> None:
        denoiser = copy.deepcopy(student)
        assert workers.world_size == 2
        store = RunStore(tmp_path / "two", {}, joins=not workers.is_main_process)
        outcome = tune_whole(denoiser, context(store, recipe, workers=workers))
        history = torch.tensor(outcome.history, dtype=torch.float64)
        save_file({**tensors_of(denoiser), "history": history}, tmp_path / f"rank{workers.rank}.safetensors")

    codes = in_two_ranks(work)
    alone = tune_whole(student, context(recipe=recipe))
    assert codes() == [0, 0]
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    torch.testing.assert_close(first["history"], torch.tensor(alone.history, dtype=torch.float64), rtol=1e-3, atol=0)
    for name, tensor in tensors_of(student).items():
        torch.testing.assert_close(first[name].float(), tensor.float(), rtol=5e-3, atol=1e-4)


def test_one_process_needs_no_group():
    with joined_workers() as workers:
        assert workers == Workers()
        assert workers.is_main_process
