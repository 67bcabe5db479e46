import os
import re

FORKS = re.compile(r"tests/training/|test_reliability")
LONG = re.compile(r"pretended_gpu|test_(bad_input|experiments|plain|scripts|wheel)\.py")

# Small networks on few cores: one thread each is fastest, in this process and in those it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """First what forks trainings: torch refuses that once its autograd has started threads.

    Then the files that take longest, so that no process waits for another in the end.
    """
    order = (FORKS.search, LONG.search)
    items.sort(key=lambda item: [not found(str(item.path)) for found in order])
