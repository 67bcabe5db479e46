from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ddpm_unet.commands.shared import at_speed, prepare_gpu


@pytest.fixture
def flags():
    """The flags of the process are as before afterwards."""
    flags = [(torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32")]
    flags += [(torch.backends.cudnn, "benchmark"), (torch.backends.cudnn, "deterministic")]
    before = [getattr(module, name) for module, name in flags]
    yield
    for (module, name), value in zip(flags, before, strict=True):
        setattr(module, name, value)


def test_a_network_and_the_codec_of_its_latents_keep_channels_last_and_compile(flags):
    network, codec = nn.Conv2d(4, 4, 3), SimpleNamespace(network=nn.Module())
    codec.network.decoder = nn.Conv2d(4, 4, 3)
    for compiled in (False, True):
        args = Namespace(precision="fp32", compile=compiled)
        with at_speed(network, torch.device("cuda"), args, codec) as graph:
            assert (graph is not None) == compiled
        assert (codec.network.decoder._compiled_call_impl is not None) == compiled
    for module in (network, codec.network.decoder):
        assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_command_says_how_a_gpu_computes(flags, monkeypatch, capsys):
    prepare_gpu()
    if not torch.cuda.is_available():
        assert capsys.readouterr().out == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    prepare_gpu()
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.benchmark
    assert "a GPU: float32 products in TF32 (" in capsys.readouterr().out
    torch.backends.cudnn.deterministic = True
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    prepare_gpu()
    assert not torch.backends.cudnn.benchmark
    assert "products in float32, convolution kernels deterministic" in capsys.readouterr().out
