"""Every training and every sampler: equal to a CPU's, without a wait of the host within a step."""

import pytest
from cases import CASES, avoidable, run_cases

TOLERANCE = {"bf16": 3e-2, "fp16": 3e-2}
"""Relative; in float32 2e-3, as kernels add up in other orders and errors grow step by step."""


@pytest.fixture(scope="module")
def found(device, tmp_path_factory):
    cpu = {"CUDA_VISIBLE_DEVICES": ""}
    return run_cases(tmp_path_factory.mktemp, cpu=cpu, device={} if device.type == "cuda" else cpu)


@pytest.mark.parametrize("name", CASES)
def test_gives_what_a_cpu_gives(found, name):
    for device in found:
        assert "error" not in found[device][name], found[device][name]["error"]
    expected, values = (found[device][name]["values"] for device in ("cpu", "device"))
    tolerance = TOLERANCE.get(name, 2e-3)
    assert values == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_device(found, name):
    assert avoidable(found["device"][name]["waits"]) == {}
