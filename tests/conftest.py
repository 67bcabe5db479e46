import os
import re

FORKS = re.compile(r"tests/training/|test_reliability")

# Small networks on few cores: one thread each is fastest, in this process and in those it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """First what forks trainings: torch refuses that once its autograd has started threads."""
    items.sort(key=lambda item: not FORKS.search(str(item.path)))
