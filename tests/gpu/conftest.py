"""What only a GPU can show. `pytest -m gpu`; without a GPU these tests are skipped.

DDPM_UNET_TEST_DEVICE=cpu runs their bodies on a CPU instead, to try the tests themselves.
"""

import os
from pathlib import Path

import pytest
import torch
from cases import write_data

DEVICE = os.environ.get("DDPM_UNET_TEST_DEVICE", "cuda")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if DEVICE == "cuda" and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def device():
    """Where the tests compute."""
    return torch.device(DEVICE)


@pytest.fixture
def exact():
    """Float32 products in float32; deterministic kernels where there are any."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags], torch.backends.cudnn.deterministic
    for flag in flags:
        flag.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    for flag, value in zip(flags, before[0], strict=True):
        flag.allow_tf32 = value
    torch.backends.cudnn.deterministic = before[1]
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The current folder, with small images and what lies beside them."""
    monkeypatch.chdir(tmp_path)
    write_data()
    return tmp_path
