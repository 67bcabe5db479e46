import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from short_runs import files, run
from small import SMALL

from ddpm_unet.config import DenoiseConfig, ImageDataConfig, PreviewConfig, TrainConfig, UNetConfig


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Matplotlib takes half of a small training; what is marked looks at its picture."""
    if "curves" not in request.keywords:
        without_curves(monkeypatch)


def without_curves(patched):
    patched.setattr("ddpm_unet.training.loop.plot_metrics", lambda records, path: None)
    patched.setattr("ddpm_unet.evaluation.report.plots", lambda curves: "")


@pytest.fixture(autouse=True)
def alone():
    """Accelerate, which has one precision per process, begins anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def blobs(tmp_path_factory):
    """A folder of 24 small RGB pictures with a bright blob each."""
    folder = tmp_path_factory.mktemp("blobs")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    for i in range(24):
        centre = rng.uniform(4, 12, 2)
        blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 8)
        colour = rng.uniform(100, 255, 3)
        Image.fromarray((blob[..., None] * colour).astype(np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def settings(blobs, tmp_path):
    """A denoiser training that takes a second."""
    return quick_settings(blobs, tmp_path / "run")


@pytest.fixture(scope="session")
def whole(blobs, tmp_path_factory):
    """The files of that training, which nothing interrupted."""
    with pytest.MonkeyPatch.context() as patched:
        without_curves(patched)
        return files(run(quick_settings(blobs, tmp_path_factory.mktemp("whole"))))


def quick_settings(blobs, folder):
    return DenoiseConfig(
        run=str(folder),
        data=ImageDataConfig(source=str(blobs), size=8),
        model=UNetConfig(**SMALL, dropout=0.1),
        train=TrainConfig(
            steps=14, batch_size=6, micro_batch=4, lr=1e-3, warmup_steps=4, checkpoint_every=5,
            validate_every=7, sample_every=0, log_every=3,
        ),
        preview=PreviewConfig(num_images=3, steps=2, validation_images=4),
    )  # fmt: skip
