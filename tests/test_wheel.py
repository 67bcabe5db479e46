"""The wheel, installed into a folder outside the checkout: complete, typed, with its command."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tomllib
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
NEEDED = (
    "ddpm_unet", "configs", "docs", "scripts", "tests", "pyproject.toml", "setup.py", "MANIFEST.in",
    "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile",
)  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that a wheel of an sdist of a copy of the checkout is installed in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in NEEDED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    sdist = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", sdist], cwd=source, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, archive]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    shutil.rmtree(source)
    return folder / "site"


def run(installed, *command, cwd, status=0):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "ddpm_unet").rglob("*.py")}
    assert {str(f).replace(os.sep, ".") for f in folders} | {"ddpm_unet.recipes"} == set(listed)


def test_the_page_of_an_index_has_no_image_or_link_that_breaks(installed):
    (file,) = installed.glob("ddpm_unet-*.dist-info/METADATA")
    header, _, page = file.read_text(encoding="utf-8").partition("\n\n")
    assert "Description-Content-Type: text/markdown" in header
    assert page.startswith("# ddpm_unet")
    assert "from ddpm_unet import Denoiser" in page
    assert "![" not in page
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert all(link.startswith("https://") for link in links)
    assert "Left: images drawn" not in page  # the words below an image


def test_the_sdist_has_what_a_checkout_has(installed):
    (archive,) = installed.parent.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"CITATION.cff", "CHANGELOG.md", "Makefile", "tests/test_wheel.py", "docs/train.md"}
    wanted |= {"scripts/train_ddpm.py", "configs/histology64.yaml", "ddpm_unet/cpu/winograd.cpp"}
    assert wanted <= names
    assert not any(name.endswith((".pyc", ".so")) for name in names)
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert said["version"] == project["version"]
    assert f"[{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_files_that_are_not_python_are_in_it(installed):
    for name in ("py.typed", "cpu/winograd.cpp", "cpu/vectors.h", "recipes/histology64.yaml"):
        assert (installed / "ddpm_unet" / name).is_file(), name


def test_commands_work_in_any_folder(installed, tmp_path):
    command = installed / "bin" / "ddpm-unet"
    said = run(installed, command, "--help", cwd=tmp_path)
    assert "train-ddpm" in said
    assert "segment" in said
    assert run(installed, command, "--version", cwd=tmp_path).startswith("0.2.0")
    place = run(installed, "-c", "import ddpm_unet; print(ddpm_unet.__file__)", cwd=tmp_path)
    assert str(installed) in place
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "a.png")
    said = run(installed, command, "segment", "a.png", cwd=tmp_path, status=2)
    assert said.startswith("error: no model in runs/*/model")
    assert len(said.splitlines()) == 1
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
        for i in range(4):
            pixels = np.full((64, 64), 255 * (place == "images"), np.uint8)
            pixels[8 * i : 8 * i + 20, 10:30] = 1
            Image.fromarray(pixels).save(tmp_path / place / f"{i}.png")
    folders = ("--data.images", "images", "--data.masks", "masks", "--run", "runs/own")
    few = ("--train.steps", 1, "--train.batch_size", 1, "--train.sample_every", 0)
    said = run(installed, command, "train-seg", *folders, *few, cwd=tmp_path)
    assert "init: scratch" in said
    assert (tmp_path / "runs" / "own" / "report.html").is_file()
    run(installed, command, "segment", "a.png", cwd=tmp_path)
    assert Image.open(tmp_path / "segmented" / "a_mask.png").size == (40, 30)
    said = run(installed, command, "train-ddpm", "--help", cwd=tmp_path)
    assert "histology64.yaml" in said
    said = run(installed, command, "sgment", cwd=tmp_path, status=2)
    assert said == "error: sgment: no such command; did you mean segment?\n"
