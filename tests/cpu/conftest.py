"""What the tests of compiled functions share."""

import pytest
import torch


@pytest.fixture
def threads():
    """Sets the number of threads, which is as before when the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
