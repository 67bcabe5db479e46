import pytest

from ddpm_unet.config import UNetConfig


@pytest.fixture(scope="session")
def small_unet():
    """One level of 8 channels, for RGB pictures of 8 x 8."""
    return UNetConfig(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
    )
