import numpy as np
import pytest
from PIL import Image

from ddpm_unet.config import UNetConfig
from ddpm_unet.training import loop


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


@pytest.fixture
def small_pictures(tmp_path, monkeypatch):
    """RGB pictures and masks in the folder where the test works; trainings draw no curves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "plot_metrics", lambda records, path: None)
    monkeypatch.setattr("ddpm_unet.evaluation.report.plots", lambda curves: "")
    rng = np.random.default_rng(0)
    for kind, high, shape in (("pictures", 256, (16, 16, 3)), ("masks", 2, (16, 16))):
        (tmp_path / kind).mkdir()
        for i in range(3):
            values = rng.integers(0, high, shape, dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / kind / f"{i}.png")
