import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st

from vqcompress.architectures import architecture_of
from vqcompress.denoiser_calls.record import TeacherCall, choose_calls, record_teacher
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import CalibrationError
from vqcompress.sampling_config import SamplingConfig

PROMPTS = ("a", "b c", "d", "e")


def record(
    pipeline: DiffusionPipeline, count: int = 5, seed: int = 3, batch_size: int = 1, **options
) -> list[TeacherCall]:
    family = architecture_of(pipeline)
    prompts = ("1", "2", "3", "4") if family.prompt_set == "imagenet" else PROMPTS
    run = SamplingRun(pipeline, family, prompts, seed, SamplingConfig(4), batch_size)
    return record_teacher(run, count=count, **options)


@pytest.mark.parametrize("family", ["sdxl", "pixart", "dit", "lumina"])
def test_a_recorded_call_can_be_repeated(family: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(family)
    denoiser = getattr(pipeline, architecture_of(pipeline).denoiser).eval()
    calls = record(pipeline)
    assert len(calls) == 5
    for call in calls:
        with torch.no_grad():
            again = denoiser(**call["kwargs"], return_dict=False)[0]
        assert torch.equal(again, call["output"])
        assert torch.equal(call["timestep"], call["kwargs"]["timestep"].float())


def test_nested_arguments_keep_their_structure(sdxl: DiffusionPipeline) -> None:
    call = record(sdxl, count=1)[0]
    assert call["kwargs"].keys() == {"sample", "timestep", "encoder_hidden_states", "added_cond_kwargs"}
    assert call["kwargs"]["added_cond_kwargs"].keys() == {"text_embeds", "time_ids"}
    assert call["kwargs"]["sample"].shape == (2, 4, 8, 8)  # both guidance halves
    assert not call["output"].requires_grad


def test_calls_cover_the_trajectory_and_follow_the_seed(sdxl: DiffusionPipeline) -> None:
    timesteps = [float(call["timestep"]) for call in record(sdxl, count=4)]
    assert len(set(timesteps)) == 4
    first, again, other = (record(sdxl, count=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first[0]["output"], again[0]["output"])
    assert not torch.equal(first[0]["output"], other[0]["output"])


def test_no_more_calls_than_there_are(sdxl: DiffusionPipeline) -> None:
    progress: list[int] = []
    calls = record(sdxl, count=1000, batch_size=3, progress=lambda done, total, what: progress.append(done))
    assert len(calls) == 2 * 4
    assert progress == [1, 2]
    with pytest.raises(CalibrationError, match="at least one"):
        record(sdxl, count=0)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 150), st.integers(0, 5))
def test_chosen_cells_are_spread_evenly(batches: int, calls: int, count: int, seed: int) -> None:
    chosen = choose_calls(batches, calls, count, seed)
    cells = [(batch, position) for batch, positions in chosen.items() for position in positions]
    assert len(cells) == min(count, batches * calls)
    assert all(0 <= batch < batches and 0 <= position < calls for batch, position in cells)
    per_position = [sum(position == p for _, position in cells) for p in range(calls)]
    assert max(per_position) - min(per_position) <= 1
