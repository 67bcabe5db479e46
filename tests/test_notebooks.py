"""The notebooks of docs/notebooks run, cell by cell, without Jupyter."""

import ast
import json
from pathlib import Path

import matplotlib.pyplot as plt

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"


def run_cells(name, tmp_path, monkeypatch):
    """Execute a notebook's code in an empty folder; gives its names and what each cell prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddpm_unet.training.loop.plot_metrics", lambda records, path: None)
    plt.switch_backend("Agg")
    book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], book["metadata"]["kernelspec"]["name"]) == (4, "python3")
    names = {"__name__": "notebook"}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            code = ast.parse("".join(cell["source"]))
            exec(compile(code, f"{name}.ipynb", "exec"), names)
    plt.close("all")
    return names


def test_denoise_and_generate(tmp_path, monkeypatch):
    names = run_cells("denoise_and_generate", tmp_path, monkeypatch)
    assert names["after"] < 0.75 * names["before"]
    assert names["drawn"].shape == (8, 16, 16, 1)
    assert (tmp_path / "runs" / "discs" / "report.html").is_file()


def test_ten_masks_to_a_segmenter(tmp_path, monkeypatch):
    names = run_cells("ten_masks_to_a_segmenter", tmp_path, monkeypatch)
    assert names["dice"] > 0.9
    assert abs(sum(names["counted"]) - sum(names["there"])) <= 0.2 * sum(names["there"])


def test_the_unet_in_ones_own_loop(tmp_path, monkeypatch):
    names = run_cells("the_unet_in_your_own_loop", tmp_path, monkeypatch)
    assert sum(names["losses"][-10:]) < 0.5 * sum(names["losses"][:10])


def test_every_notebook_is_run():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    books = {path.stem.replace("your_own", "ones_own") for path in FOLDER.glob("*.ipynb")}
    assert books <= tested
    assert len(books) == 3
