import pytest
import torch
from torch import nn

from ddpm_unet.training.loop import in_memory_format


@pytest.mark.parametrize(
    ("setting", "dims", "device", "expected"),
    [
        (None, 2, "cpu", False),
        (None, 3, "cpu", True),
        (None, 2, "cuda", True),
        (True, 2, "cpu", True),
        (False, 3, "cuda", False),
    ],
)
def test_the_faster_memory_format_is_the_default(setting, dims, device, expected):
    layer = (nn.Conv2d if dims == 2 else nn.Conv3d)(4, 4, 3)
    weight = in_memory_format(layer, setting, torch.device(device)).weight
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    assert weight.is_contiguous(memory_format=last) == expected
    assert weight.is_contiguous() != expected
