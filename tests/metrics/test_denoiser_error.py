import pytest
import torch

from vqcompress.metrics import denoiser_error, energies_by_timestep, error_by_timestep

REFERENCE = torch.tensor([3.0, 4.0])


def test_error_is_the_share_of_the_energy():
    energies = energies_by_timestep([(981, REFERENCE + torch.tensor([0.0, 0.5]), REFERENCE)])
    assert denoiser_error(energies) == pytest.approx(0.25 / 25)


def test_timesteps_are_kept_apart_and_in_order():
    energies = energies_by_timestep(
        [(981, REFERENCE, REFERENCE), (1, REFERENCE * 0, REFERENCE), (981, REFERENCE * 2, REFERENCE)]
    )
    assert list(energies) == [981.0, 1.0]
    assert error_by_timestep(energies) == pytest.approx({981.0: 0.5, 1.0: 1.0})
    assert denoiser_error(energies) == pytest.approx(2 / 3)


def test_half_precision_outputs_are_summed_without_overflow():
    big = torch.full((4096,), 300.0, dtype=torch.float16)
    assert denoiser_error(energies_by_timestep([(1, big * 1.125, big)])) == pytest.approx(1 / 64, rel=1e-2)


def test_a_silent_reference_is_no_division_by_zero():
    silent = torch.zeros(2)
    assert denoiser_error(energies_by_timestep([(1, silent, silent)])) == 0
    assert denoiser_error(energies_by_timestep([(1, silent + 1, silent)])) == float("inf")


def test_broken_outputs_are_not_hidden():
    energies = energies_by_timestep([(1, REFERENCE * float("nan"), REFERENCE)])
    assert denoiser_error(energies) != denoiser_error(energies)
