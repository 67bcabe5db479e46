"""The page to try a model on, asked by gradio's client and in Chromium, on this machine."""

import builtins
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_unet.commands.demo import page_of
from ddpm_unet.commands.shared import best_device
from ddpm_unet.errors import UserError

ROOT = Path(__file__).parents[2]


NUCLEI, TISSUE = (ROOT / "samples" / n for n in ("histology_nuclei", "histology64"))


@pytest.fixture
def served(tmp_path):
    """From a model to the address of its page, whose results lie in `results`."""
    pytest.importorskip("gradio")
    (tmp_path / "results").mkdir()
    pages = []

    def serve(model):
        page = page_of(model, tmp_path / "results")
        _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
        pages.append(page)
        return url

    yield serve
    for page in pages:
        page.close()


@pytest.fixture
def tab():
    """A page of headless Chromium."""
    api = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def save(path, *shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_a_segmenter_gives_an_overlay_counts_objects_and_files(served, tmp_path):
    client = pytest.importorskip("gradio_client")
    page = client.Client(served(NUCLEI), verbose=False)
    save(tmp_path / "tissue.png", 64, 80)
    given = client.handle_file(tmp_path / "tissue.png")
    seen, said, objects, files = page.predict(given, api_name="/segment")
    assert Image.open(seen).size == (7 * 80, 7 * 64)
    assert {"class", "area"} <= set(objects["headers"])
    nuclei = sum(
        row[objects["headers"].index("class_name")] == "nucleus" for row in objects["data"]
    )
    assert f"| nucleus | {nuclei} |" in said
    kinds = ("mask.png", "objects.csv", "objects.tif", "overlay.png")
    assert [Path(f).name for f in files] == [f"tissue_{kind}" for kind in kinds]
    with pytest.raises(client.exceptions.AppError, match="no image is given"):
        page.predict(None, api_name="/segment")


def test_an_image_dropped_into_a_browser_is_segmented_and_downloaded(served, tab, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    save(tmp_path / "tissue.png", 64, 80)
    tab.goto(served(NUCLEI))
    told = tab.locator("text=share of the image").first
    for _ in range(6):  # what is dropped before the page listens is lost
        tab.set_input_files("input[type=file]", tmp_path / "tissue.png")
        with suppress(sync_api.TimeoutError):
            told.wait_for(timeout=20_000)
            break
    assert tab.locator("th:has-text('class_name')").count() >= 1
    with tab.expect_download() as download:
        tab.click("a:has-text('KB'), a:has-text('B')")
    assert download.value.path().stat().st_size > 0
    (mask,) = (tmp_path / "results").glob("*/tissue_mask.png")
    assert Image.open(mask).size == (80, 64)


def test_a_denoiser_draws_also_from_an_image_and_into_a_painted_hole(served, tmp_path, monkeypatch):
    client = pytest.importorskip("gradio_client")
    prepared = []  # as by other commands
    monkeypatch.setattr("ddpm_unet.commands.demo.prepare", lambda *given: prepared.append(given))
    page = client.Client(served(TISSUE), verbose=False)
    ((unet, device, codec),) = prepared
    assert (type(unet).__name__, device, codec) == ("UNet", best_device(), None)
    seen, files = page.predict(2, 5, 0, "in turn", 1, None, 0.5, api_name="/generate")
    assert [Image.open(f).size for f in files] == [(64, 64)] * 2
    assert Image.open(seen).width > 500
    pixels = save(tmp_path / "tissue.png", 64, 64)
    paint = np.zeros((64, 64, 4), np.uint8)
    paint[26:38, 20:44] = 255, 0, 255, 255
    Image.fromarray(paint).save(tmp_path / "paint.png")
    tissue, layer = (client.handle_file(tmp_path / f"{n}.png") for n in ("tissue", "paint"))
    painted = {"background": tissue, "layers": [layer], "composite": tissue}  # as the page sends it
    _, (file,) = page.predict(1, 5, 0, "in turn", 1, painted, 0.5, api_name="/generate")
    same = (np.asarray(Image.open(file)) == pixels).all(axis=-1)
    assert not same[paint[..., 3] > 0].any()
    assert same[paint[..., 3] == 0].all()
    save(tmp_path / "large.png", 600, 600)
    large = client.handle_file(tmp_path / "large.png")
    edited = {"background": large, "layers": [], "composite": large}
    with pytest.raises(client.exceptions.AppError, match="has 600 x 600 pixels; cut out"):
        page.predict(1, 5, 0, "in turn", 1, edited, 0.5, api_name="/generate")


def test_without_gradio_its_name_is_said(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *rest):
        if name == "gradio":
            raise ImportError("No module named 'gradio'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install \"ddpm-unet\[demo\]\""):
        page_of(tmp_path, tmp_path)
