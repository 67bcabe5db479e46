import logging
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int
from pathlib import Path

import pytest
import torch
from torch import nn

from ddpm_unet import native

SOURCE = Path(native.__file__).parent / "models" / "layers" / "norm_silu.cpp"

compiled = pytest.mark.skipif(
    native.library(SOURCE) is None, reason="no compiler for this processor"
)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Nothing compiled yet, neither in memory nor in the cache folder, which it gives."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    native._say.cache_clear()
    yield tmp_path / "ddpm_unet"
    native.library.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "reason"), [(["no-such-compiler"], "No such file"), (["false"], "false failed, 1")]
)
def test_without_a_compiler_one_line_says_so(
    fresh, tmp_path, monkeypatch, caplog, compiler, reason
):
    monkeypatch.setattr(native, "COMPILE", compiler)
    another = tmp_path / "another.cpp"
    another.touch()
    with caplog.at_level(logging.INFO):
        for source in (SOURCE, another, SOURCE):
            assert native.library(source) is None
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()
    assert list(fresh.iterdir()) == []


@compiled
def test_an_old_processor_is_told_from_a_new_one(fresh, monkeypatch, caplog):
    monkeypatch.setattr(native, "COMPILE", [*native.COMPILE, "-mno-avx2", "-mno-avx512f"])
    assert native.library(SOURCE) is None
    assert "neither AVX-512 nor AVX2" in caplog.records[0].getMessage()


@compiled
def test_processes_that_compile_at_once_do_not_meet(fresh, monkeypatch):
    monkeypatch.setattr(native, "COMPILE", [*native.COMPILE, "-O0"])
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: native._compiled(SOURCE), range(2))
    assert first == second
    assert list(fresh.iterdir()) == [first]


@compiled
def test_a_changed_source_or_header_is_compiled_again(fresh, tmp_path):
    source, header = tmp_path / "answer.cpp", tmp_path / "answer.h"
    answers = []
    for value in (6, 7):
        header.write_text(f"constexpr int value = {value};")
        source.write_text('#include "answer.h"\nextern "C" int answer() { return value; }')
        native.library.cache_clear()
        functions = native.library(source)
        functions.answer.restype = c_int
        answers.append(functions.answer())
    assert answers == [6, 7]


def test_plain_tensors():
    assert native.plain(torch.zeros(2), None, nn.Parameter(torch.zeros(2)))
    for other in (
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(2, device="meta"),
        torch.zeros(2).to_sparse(),
        torch.zeros(2).as_subclass(Marked),
    ):
        assert not native.plain(torch.zeros(2), other)


class Marked(torch.Tensor):
    """A tensor that is not torch's own kind."""


def test_torch_sees_what_it_wants_to_see():
    assert native.unseen()
    with native.disabled():
        assert not native.unseen()
    assert native.unseen()
    with torch.autocast("cpu", torch.bfloat16):
        assert not native.unseen()
    seen = []
    torch.func.vmap(lambda x: seen.append(native.unseen()) or x)(torch.zeros(2, 3))
    assert seen == [False]
    assert torch.compile(lambda x: x + native.unseen(), backend="eager")(torch.zeros(1)) == 0
