"""The table of bad input, tried case by case; what the page says; and odd input that works."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from bad_case import COMMANDS, good_folder
from bad_input import CASES, PAGE, page
from in_process import run
from odd_input import ODD

ROOT = Path(__file__).parents[2]
PLACES = {
    "everywhere": True,
    "not root": os.geteuid() != 0,
    "no GPU": not torch.accelerator.is_available(),
    "no datasets": find_spec("datasets") is None,
    "no wandb": find_spec("wandb") is None,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    good_folder(folder)
    return folder


@pytest.fixture
def here(good, tmp_path, monkeypatch):
    """A copy of the good folder, as the current one."""
    shutil.copytree(good, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def command(case):
    return shlex.split(f"{COMMANDS[case.command]} {case.added}")


def content(folder):
    """Every file and folder below, with what is in it."""
    found = {}
    for path in folder.rglob("*"):
        found[path] = path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else None
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.command}: {c.what} {c.added}")
def test_bad_input_gets_one_line_and_leaves_nothing(case, here):
    if not PLACES[case.only]:
        pytest.skip(f"only {case.only}")
    case.make()
    before = content(here)
    script, *arguments = command(case)
    outcome = run(script, arguments)
    expected = re.escape(f"error: {case.says}\n").replace(re.escape("..."), ".*")
    assert re.fullmatch(expected, outcome.err), outcome.err
    assert outcome.status == 2
    assert content(here) == before


@pytest.mark.parametrize("case", ODD, ids=lambda c: c.what)
def test_odd_input_works(case, here):
    case.make()
    script, *arguments = command(case)
    outcome = run(script, arguments)
    assert outcome.status == 0, outcome.err
    assert Path(case.gives).exists()


LAUNCHERS = {
    "accelerate, one process": "accelerate.commands.launch --num_processes 1",
    "torchrun, two processes": "torch.distributed.run --nproc_per_node 2 --",
}


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_below_a_launcher_the_line_is_the_last(launcher, tmp_path):
    """A real launch, whose output is read to its end: the launcher's traceback stands above."""
    script = [ROOT / "scripts" / "train_ddpm.py", "--train.stepz", "1"]
    result = subprocess.run(
        [sys.executable, "-m", *launcher.split(), *script],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    *before, last = result.stdout.splitlines()
    assert last == "error: --train.stepz: no such setting; did you mean train.steps?"
    assert last in before
    assert any(line.startswith("Traceback") for line in before)
    assert result.returncode == 1


def test_the_page_is_that_of_the_table():
    cure = "python tests/scripts/bad_input.py writes it"
    assert PAGE.read_text(encoding="utf-8") == page(), cure


def test_every_case_is_another():
    assert len(CASES) >= 200
    assert len({(case.what, case.command, case.added) for case in CASES}) == len(CASES)
