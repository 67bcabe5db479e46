import torch
from torch.nn import Parameter

from ddpm_unet.training.state import EMA


def test_follows_the_recurrence_in_float64():
    parameter = Parameter(torch.tensor([0.0, 1.0]))
    ema = EMA([parameter], decay=0.5)
    expected = parameter.detach().double()
    for step in range(30):
        parameter.data = torch.randn(2)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach().double()
        ema.update(step)
    torch.testing.assert_close(ema.averages[0].double(), expected, rtol=1e-6, atol=1e-6)


def test_applied_swaps_and_restores():
    parameter = Parameter(torch.zeros(3))
    ema = EMA([parameter], decay=0.9)
    parameter.data += 1
    ema.averages[0] += 5
    with ema.applied():
        assert parameter.tolist() == [5.0] * 3
    assert parameter.tolist() == [1.0] * 3
    assert ema.averages[0].tolist() == [5.0] * 3
