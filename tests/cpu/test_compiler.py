import logging
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int
from pathlib import Path

import pytest

from ddpm_unet.cpu import kernels

SOURCE = Path(kernels.__file__).with_name("norm_silu.cpp")

compiled = pytest.mark.skipif(kernels.library(SOURCE) is None, reason="no compiler here")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Nothing compiled yet, neither in memory nor in the cache folder, which it gives."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.library.cache_clear()
    kernels._say.cache_clear()
    yield tmp_path / "ddpm_unet"
    kernels.library.cache_clear()


@pytest.mark.parametrize(
    ("command", "reason"), [(["no-such-compiler"], "No such file"), (["false"], "false failed, 1")]
)
def test_without_a_compiler_one_line_says_so(fresh, tmp_path, monkeypatch, caplog, command, reason):
    monkeypatch.setattr(kernels, "COMPILE", command)
    another = tmp_path / "another.cpp"
    another.touch()
    with caplog.at_level(logging.INFO):
        for source in (SOURCE, another, SOURCE):
            assert kernels.library(source) is None
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()
    assert list(fresh.iterdir()) == []


@pytest.mark.parametrize("system", ["Windows", "Darwin"])
def test_on_another_system_one_line_says_so(fresh, monkeypatch, caplog, system):
    monkeypatch.setattr(kernels.platform, "system", lambda: system)
    with caplog.at_level(logging.INFO):
        assert kernels.library(SOURCE) is None
    (record,) = caplog.records
    assert f"this is {system}" in record.getMessage()
    assert not fresh.exists()


@compiled
def test_an_old_processor_is_told_from_a_new_one(fresh, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "COMPILE", [*kernels.COMPILE, "-mno-avx2", "-mno-avx512f"])
    assert kernels.library(SOURCE) is None
    assert "neither AVX-512 nor AVX2" in caplog.records[0].getMessage()


@compiled
def test_processes_that_compile_at_once_do_not_meet(fresh, monkeypatch):
    monkeypatch.setattr(kernels, "COMPILE", [*kernels.COMPILE, "-O0"])
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: kernels._compiled(SOURCE), range(2))
    assert first == second
    assert list(fresh.iterdir()) == [first]


@compiled
def test_a_changed_source_or_header_is_compiled_again(fresh, tmp_path):
    source, header = tmp_path / "answer.cpp", tmp_path / "answer.h"
    answers = []
    for value in (6, 7):
        header.write_text(f"constexpr int value = {value};")
        source.write_text('#include "answer.h"\nextern "C" int answer() { return value; }')
        kernels.library.cache_clear()
        functions = kernels.library(source)
        functions.answer.restype = c_int
        answers.append(functions.answer())
    assert answers == [6, 7]
