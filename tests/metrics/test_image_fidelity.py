import math

import pytest
import torch

from vqcompress.errors import VQCompressError
from vqcompress.metrics import image_fidelity


def photos(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1


def test_a_uniform_offset_has_the_psnr_of_its_square():
    fidelity = image_fidelity(photos() + 0.1, photos())
    assert fidelity["psnr"] == pytest.approx(20.0, abs=1e-3)
    assert fidelity["psnr_median"] == pytest.approx(20.0, abs=1e-3)


def test_one_lost_image_shows_in_the_worst_but_not_in_the_median():
    damaged = photos() + 0.01
    damaged[1] = photos()[1] + 0.1
    fidelity = image_fidelity(damaged, photos())
    assert fidelity["psnr_worst"] == pytest.approx(20.0, abs=1e-3)
    assert fidelity["psnr_median"] == pytest.approx(40.0, abs=1e-3)
    assert fidelity["psnr_mean"] == pytest.approx((40 + 20 + 40) / 3, abs=1e-3)
    assert fidelity["psnr"] == pytest.approx(-10 * math.log10((0.01**2 + 0.1**2 + 0.01**2) / 3), abs=1e-3)


def test_identical_images_are_perfect():
    fidelity = image_fidelity(photos(), photos())
    assert fidelity["psnr"] == math.inf
    assert fidelity["ssim"] == pytest.approx(1.0)


def test_ssim_of_flat_images_is_the_luminance_term():
    # Flat patches have no variance: SSIM is (2ab + c1) / (a² + b² + c1) with c1 = 0.01² for range 1.
    dark, light = torch.full((1, 3, 32, 32), 0.25), torch.full((1, 3, 32, 32), 0.75)
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert image_fidelity(dark, light)["ssim"] == pytest.approx(expected, abs=1e-4)


def test_batches_that_do_not_match_are_refused():
    with pytest.raises(VQCompressError, match="same non-empty batch"):
        image_fidelity(photos(2), photos(3))
