import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqcompress.metrics.feature_distance import FLOOR, feature_distances


def photos(count: int = 2, side: int = 32) -> torch.Tensor:
    coarse = torch.rand(count, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")


def test_equal_images_have_no_distance():
    assert feature_distances(photos(), photos()).tolist() == [0, 0]


def test_flat_images_differ_by_their_means_alone():
    """Gabor filters of sum 0 answer nothing to a flat gray, so only the local mean of the luma channel is left."""
    dark, light = (torch.full((1, 3, 32, 32), value, dtype=torch.float64) for value in (0.25, 0.75))
    (found,) = feature_distances(dark, light).tolist()
    assert found == pytest.approx(3 * (0.75 / (0.75 + FLOOR) - 0.25 / (0.25 + FLOOR)) ** 2)


def test_an_edge_costs_more_than_a_uniform_change_of_the_same_psnr():
    images = photos(1)
    edge = images.clone()
    edge[..., 16:] += 0.1
    uniform = images + float((edge - images).square().mean().sqrt())
    assert feature_distances(edge, images) > feature_distances(uniform, images)


def test_each_image_is_measured_alone_and_both_ways_alike():
    images = photos()
    damaged = images.clone()
    damaged[1] = images[1].flip(-1)
    first, second = feature_distances(damaged, images).tolist()
    assert first == 0
    assert second == pytest.approx(float(feature_distances(images[1:], damaged[1:])))


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that any operation inside of the block makes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.count = max(self.count, made.numel())
        return made


def test_memory_is_that_of_one_image_however_many_there_are():
    images, others = photos(6), photos(6).flip(-1)
    with Largest() as one:
        feature_distances(images[:1], others[:1])
    with Largest() as six:
        feature_distances(images, others)
    assert one.count == six.count


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 1, 16, 16), (1, 4, 5, 40)])
def test_small_images_and_other_channels_have_a_distance(shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert 0 < float(feature_distances(images, 1 - images)) < 3 * 4
