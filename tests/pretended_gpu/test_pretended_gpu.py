"""Every training and every sampler on a pretended GPU: no mixed devices, no waits, equal results.

A step that waits for the GPU leaves it idle for as long as the host then takes to fill its queue.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES, avoidable, run_cases

HERE = Path(__file__).parent
TOLERANCE = {"bf16": 2e-2, "fp16": 2e-2, "by default": 2e-2}
"""Of values that are computed otherwise on a CPU, relative; in float32 1e-3."""


def headers():
    """The folder of the CUDA runtime's headers, which come with the wheels of torch, or None."""
    for package in ("nvidia.cu13", "nvidia.cuda_runtime"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for place in spec.submodule_search_locations if spec else ():
            if Path(place, "include", "driver_types.h").is_file():
                return Path(place, "include")
    return None


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """What stands in for CUDA's runtime and driver, compiled."""
    if torch.version.cuda is None:
        pytest.skip("torch is a build for CPUs")
    if not sys.platform.startswith("linux") or not shutil.which("gcc"):
        pytest.skip("needs gcc on Linux")
    include = headers()
    if include is None:
        pytest.skip("the headers of the CUDA runtime are not installed")
    path = tmp_path_factory.mktemp("pretended") / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", f"-I{include}", f"-I{HERE}"]
    subprocess.run(["gcc", *flags, "-o", path, HERE / "device.c"], check=True)
    return path


@pytest.fixture(scope="module")
def found(library, tmp_path_factory):
    """What all cases gave on the CPU and on the pretended device."""
    pretended = {"LD_PRELOAD": str(library), "PRETENDED": "1", "CUDA_VISIBLE_DEVICES": "0"}
    cache = tmp_path_factory.mktemp("cache")
    pretended |= {"PYTHONPATH": str(HERE), "XDG_CACHE_HOME": str(cache)}
    cpu = {"CUDA_VISIBLE_DEVICES": ""}
    found = run_cases(tmp_path_factory.mktemp, cpu=cpu, cuda=pretended)
    assert not list(cache.rglob("*.so")), "something was compiled for a CPU"
    return found


@pytest.mark.parametrize("name", CASES)
def test_gives_what_a_cpu_gives(found, name):
    for device in found:
        assert "error" not in found[device][name], found[device][name]["error"]
    expected, values = (found[device][name]["values"] for device in ("cpu", "cuda"))
    assert values
    tolerance = TOLERANCE.get(name, 1e-3)
    assert values == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_says_what_it_takes_by_default(found):
    cpu, cuda = (found[device]["by default"]["said"] for device in ("cpu", "cuda"))
    assert "on cpu, precision float32" in cpu
    assert "data.workers" not in cpu
    assert "compiled" not in cpu
    assert "on cuda, precision bf16, compiled (train.compile)" in cuda
    assert "processes load (0 loads in the main one)" in cuda


@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_device(found, name):
    assert avoidable(found["cuda"][name]["waits"]) == {}


def test_waits_and_mixed_devices_are_noticed(library):
    program = """
import pretend, torch
assert torch.cuda.is_available()
pretend.arrange()
kinds = lambda: [found.split(" at ")[0] for found in pretend.waits]
with pretend.Pretending():
    x = torch.arange(4.0, device="cuda")
    y = torch.ones(4).pin_memory().to("cuda", non_blocking=True) * x + x.sum()
    assert not pretend.waits, pretend.waits
    for work, kind in [
        (lambda: float(x[1]), "read by the host"),
        (lambda: y.tolist(), "read by the host"),
        (lambda: y.cpu(), "copied to the host"),
        (lambda: torch.ones(4).to("cuda"), "copied to the device"),
        (lambda: torch.ones(4).to("cuda", non_blocking=True), "copied to the device, not pinned"),
        (lambda: torch.tensor([1.0], device="cuda"), "copied to the device"),
        (lambda: x[x > 1], "index by a mask"),
        (lambda: x[torch.tensor([1, 2])], "index of the host"),
        (lambda: x.nonzero(), "shape of aten.nonzero.default"),
    ]:
        pretend.waits.clear()
        work()
        assert kinds() == [kind], (kind, pretend.waits)
    for mixed in (lambda: x + torch.ones(4), lambda: torch.ones(4)[x.long()]):
        try:
            mixed()
        except RuntimeError as error:
            assert "same device" in str(error)
        else:
            raise AssertionError("mixed devices were not noticed")
    try:
        x.numpy()
    except TypeError:
        print("noticed")
"""
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": str(HERE)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert result.stdout.split() == ["noticed"], result.stderr
