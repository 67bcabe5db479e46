import pytest
from small import TINY, write_images

from ddpm_unet.config import UNetConfig
from ddpm_unet.training import loop


@pytest.fixture(scope="session")
def small_unet():
    """One level of 8 channels, for RGB pictures of 8 x 8."""
    return UNetConfig(**TINY, sample_size=8)


@pytest.fixture
def small_pictures(tmp_path, monkeypatch):
    """RGB pictures and masks in the folder where the test works; trainings draw no curves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "plot_metrics", lambda records, path: None)
    monkeypatch.setattr("ddpm_unet.evaluation.report.plots", lambda curves: "")
    write_images(tmp_path / "pictures", 3, 16, 16, 3)
    write_images(tmp_path / "masks", 3, 16, 16, most=1)
