"""How close are the compressed model's images to the original's from the same seeds?"""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from vqcompress.errors import VQCompressError


def image_fidelity(images: Tensor, originals: Tensor) -> dict[str, float]:
    """PSNR in dB and SSIM of ``images`` against ``originals``, both ``[n, channels, height, width]`` in 0..1.

    ``psnr`` is over all pixels together, so one bad image weighs by its error; ``psnr_median`` and ``psnr_worst`` are
    over images. Identical images have infinite PSNR. SSIM: Wang et al. 2004, 11-tap Gaussian window.
    """
    _check(images, originals)
    images, originals = images.double(), originals.double()
    similarity = structural_similarity_index_measure(images, originals, data_range=1.0)
    each = peak_signal_noise_ratio(images, originals, data_range=1.0, dim=(1, 2, 3), reduction="none")
    return {
        "psnr": float(peak_signal_noise_ratio(images, originals, data_range=1.0)),
        "psnr_median": float(each.median()),
        "psnr_worst": float(each.min()),
        "ssim": float(similarity if isinstance(similarity, Tensor) else similarity[0]),
    }


def _check(images: Tensor, originals: Tensor) -> None:
    if images.shape != originals.shape or images.ndim != 4 or not len(images):
        raise VQCompressError(
            f"images {tuple(images.shape)} cannot be compared with originals {tuple(originals.shape)}: "
            "both must be the same non-empty batch [n, channels, height, width]"
        )
