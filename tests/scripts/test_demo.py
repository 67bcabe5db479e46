"""The page to try a model on, asked through its own client, on this machine."""

import builtins
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_unet.commands.demo import page_of
from ddpm_unet.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(tmp_path):
    gradio = pytest.importorskip("gradio")
    from gradio_client import Client

    pages = []

    def open_page(model):
        page = page_of(model, tmp_path)
        _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
        pages.append(page)
        return Client(url, verbose=False)

    yield open_page
    for page in pages:
        page.close()
    assert gradio


def test_a_segmenter_gives_an_overlay_objects_and_files(client, tmp_path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    page = client(ROOT / "samples" / "histology_nuclei")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "tissue.png")
    seen, objects, files = page.predict(handle_file(tmp_path / "tissue.png"), api_name="/segment")
    assert Image.open(seen).size == (80, 64)
    assert {"class", "area"} <= set(objects["headers"])
    names = {Path(f).name for f in files}
    assert names == {"tissue_mask.png", "tissue_overlay.png", "tissue_objects.csv"}
    with pytest.raises(AppError, match="no image is given"):
        page.predict(None, api_name="/segment")


def test_a_denoiser_draws(client):
    page = client(ROOT / "samples" / "histology64" / "model")
    given = (2, 5, 0, "in turn", 1, None, 0.5, None)
    seen, files = page.predict(*given, api_name="/generate")
    assert [Image.open(f).size for f in files] == [(64, 64)] * 2
    assert Image.open(seen).width > 128


def test_without_gradio_its_name_is_said(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *rest):
        if name == "gradio":
            raise ImportError("No module named 'gradio'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install \"ddpm-unet\[demo\]\""):
        page_of(tmp_path, tmp_path)
