import torch
from network_cost import forward_cost
from torch import nn


def test_counts_of_two_layers_by_hand():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        cost = forward_cost(network.eval(), torch.empty(2, 3, 16, 20))
    assert cost.parameters == 3 * 8 * 9 + 8 + 8 * 2 + 2
    assert cost.gflop == 2 * 2 * 16 * 20 * (3 * 8 * 9 + 8 * 2) / 1e9
    # The image for the first convolution; ReLU's output, once, for itself and the second.
    assert cost.kept_mb == 4 * 2 * 16 * 20 * (3 + 8) / 1e6
    assert not network.training
