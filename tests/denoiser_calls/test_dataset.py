"""What the teacher did comes back from disk as it was, in any composition, within the budget."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from vqcompress.architectures import architecture_of
from vqcompress.denoiser_calls.call_tensors import flatten, nest
from vqcompress.denoiser_calls.dataset import DistillationDataset, record
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import CalibrationError
from vqcompress.run_store import RunStore
from vqcompress.sampling_config import SamplingConfig

SMALL = SamplingConfig(steps=3, guidance=2.0, height=8, width=8)


def make(teacher, folder, prompts=("a", "b", "c"), **options):
    with RunStore(folder, {}) as store:
        run = SamplingRun(teacher, architecture_of(teacher), prompts, 5, SMALL, batch_size=2)
        return record(run, store, "calls", **{"budget": 10**9, **options})


def test_a_batch_of_samples_from_anywhere_gives_the_teachers_outputs(teacher, distillation):
    dataset = distillation.train
    assert len(dataset) == 4 * 3
    indices = [0, 7, 3, 10, 1]
    batch = dataset.batch(indices)
    assert batch.branches == 2
    with torch.no_grad():
        output = teacher.unet(**batch.kwargs, return_dict=False)[0]
    torch.testing.assert_close(output, batch.target, rtol=1e-4, atol=1e-5)
    for place, index in enumerate(sorted(indices, key=lambda i: indices.index(i))):
        alone = dataset.batch([index]).target
        assert any(torch.equal(alone[0], batch.target[entry]) for entry in range(5)), place


def test_recording_twice_changes_nothing_and_reads_without_the_lock(teacher, tmp_path):
    first = make(teacher, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "calls").iterdir()}
    again = make(teacher, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "calls").iterdir()} == stamps
    assert again.samples == first.samples == DistillationDataset.open(tmp_path, "calls").samples


def test_the_budget_bounds_what_lies_on_disk(teacher, tmp_path):
    def stored(folder) -> int:
        files = (folder / "calls").glob("*.safetensors")
        return sum(tensor.nbytes for path in files for tensor in load_file(path).values())

    prompts = ("a", "b", "c", "d")
    two_steps = make(teacher, tmp_path / "two", prompts, calls_per_batch=2)
    budget = stored(tmp_path / "two")
    bounded = make(teacher, tmp_path / "bounded", prompts, budget=budget)
    assert len(bounded) == len(two_steps) == 2 * 4
    assert stored(tmp_path / "bounded") <= budget
    with pytest.raises(CalibrationError, match="recording budget"):
        make(teacher, tmp_path / "none", budget=100)


def test_nested_arguments_survive_flattening():
    kwargs = {"a": 1, "b": {"c": [2, {"d": 3}], "e": "x"}}
    assert nest(flatten(kwargs)) == kwargs
