import os
import platform
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")

FAULTS = """
import resource, torch
from ddpm_unet.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(12 * 2**20)  # 48 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
keep_freed_memory()
for _ in range(4):
    faults()  # until there is room enough
print(first, faults())
"""

MIXED = """
import os, random
from concurrent.futures import ThreadPoolExecutor
import torch
from ddpm_unet.memory import keep_freed_memory

keep_freed_memory()
mebi = 2**20
tensors = [torch.empty(n * mebi, dtype=torch.uint8) for n in [8, 1] * 8]
places = {x.data_ptr() for x in tensors[::2]}
tensors[::2] = [None] * 8
tensors[::2] = [torch.empty(8 * mebi, dtype=torch.uint8) for _ in range(8)]
print(places == {x.data_ptr() for x in tensors[::2]})
del tensors

whole = torch.empty(64 * mebi, dtype=torch.uint8)
start, end = whole.data_ptr(), whole.data_ptr() + whole.nbytes
del whole

def churn(seed):
    draw, alive = random.Random(seed), {}
    for number in range(400):
        if alive and draw.random() < 0.5:
            kept, value = alive.pop(draw.choice(list(alive)))
            assert (kept == value).all()
        else:
            n = draw.choice([10, 2**16 - 1, 2**16, 2**16 + 1, 300_000])
            alive[number] = torch.full((n,), number % 251, dtype=torch.uint8), number % 251
    assert all((kept == value).all() for kept, value in alive.values())

with ThreadPoolExecutor(4) as pool:
    list(pool.map(churn, range(8)))
again = torch.empty(64 * mebi, dtype=torch.uint8)
print((again.data_ptr(), again.data_ptr() + again.nbytes) == (start, end))
if not (child := os.fork()):
    torch.ones(mebi).add_(1)
    os._exit(0)
print(os.waitpid(child, 0)[1] == 0)
"""


def run(program, **environment):
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "compiler", [pytest.param(True, marks=compiled), False], ids=["compiled", "no compiler"]
)
def test_large_tensors_are_not_mapped_anew(compiler, tmp_path):
    nowhere = {} if compiler else {"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    before, after = map(int, run(FAULTS, **nowhere))
    assert 10 * after < before


@compiled
def test_gaps_are_filled_by_tensors_of_their_size_none_overlap_and_in_the_end_all_are_one():
    assert run(MIXED) == ["True"] * 3
