"""Trainings on a GPU: stopped and gone on with, in fp16, and what they keep in memory."""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import accelerate.accelerator
import pytest
import torch
from cases import CONTEXT, run_training, small_unet
from safetensors.torch import load_file
from test_gpu_numbers import CONTEXT as NETWORK

from ddpm_unet import Denoiser
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.diffusion.sampling import sample
from ddpm_unet.models import UNet
from ddpm_unet.training import loop


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written any more."""


def end(run: Path):
    """The tensors of a run's last checkpoint by file and name, and its state."""
    folder = max((run / "checkpoints").iterdir())
    tensors = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    return tensors, json.loads((folder / "state.json").read_text())


@pytest.mark.parametrize("name", ["context", "segment"])
def test_a_killed_run_goes_on_bit_for_bit(name, data, exact, monkeypatch):
    flags = {"train.steps": 6, "train.checkpoint_every": 2, "train.mixed_precision": "bf16"}
    flags["train.validate_every"] = flags["train.sample_every"] = 0
    if name == "segment":
        run_training("denoise")
    else:
        flags["model.dropout"] = 0.1
    whole, killed = (flags | {"run": f"runs/{which}"} for which in ("whole", "killed"))
    expected, state = end(run_training(name, whole))
    optimize = loop.Training._optimize

    def dying(self, *args):
        if self.state.step == 5:
            raise Killed
        return optimize(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_optimize", dying)
        with pytest.raises(Killed):
            run_training(name, killed)
    assert end(Path("runs/killed"))[1]["step"] == 4
    found, again = end(run_training(name, killed))
    assert again == state
    for group, tensors in expected.items():
        for key, value in tensors.items():
            assert torch.equal(found[group][key], value), (group, key)


def test_steps_that_overflow_in_fp16_are_left_out(data, device, monkeypatch):
    if device.type == "cpu":
        pytest.skip("fp16 needs a GPU")

    def scaler(*_, **__):
        return torch.amp.GradScaler(device.type, init_scale=2.0**24)

    monkeypatch.setattr(accelerate.accelerator, "get_grad_scaler", scaler)
    flags = {"train.mixed_precision": "fp16", "train.lr_schedule": "constant"}
    flags |= {"train.steps": 14, "train.sample_every": 0, "train.validate_every": 0}
    tensors, state = end(run_training("denoise", flags))
    assert 0 < state["skipped"] < 14
    assert state["scaler"]["scale"] == 2.0 ** (24 - state["skipped"])
    assert int(tensors["optimizer"]["conv_in.weight/step"]) == 14 - state["skipped"]
    for group in tensors.values():
        for tensor in group.values():
            assert tensor.dtype == torch.float32
            assert tensor.isfinite().all()
    run_training("denoise", flags | {"run": "runs/stopped", "train.steps": 5})
    again = end(run_training("denoise", flags | {"run": "runs/stopped"}))[1]
    assert again["scaler"] == state["scaler"]
    assert again["skipped"] == state["skipped"]


PROCESS = """
import json, sys
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from cases import run_training
from ddpm_unet.training import loop

optimize = loop.Training._optimize

def watched(self, *args):
    assert all(isinstance(p, DTensor) for p in self.network.parameters())
    assert sum(isinstance(m, FSDPModule) for m in self.network.modules()) > 3
    print("weights sharded over", dist.get_backend())
    return optimize(self, *args)

loop.Training._optimize = watched
run_training("denoise", json.loads(sys.argv[1]))
"""


def test_sharded_weights_train_as_whole_ones_do(data, device, exact):
    """FSDP2: over NCCL in one process, which is all that one GPU can show; over gloo in two."""
    flags = {"train.lr_schedule": "constant", "train.sample_every": 0, "train.steps": 4}
    expected, _ = end(run_training("denoise", flags | {"run": "runs/whole"}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    count = 1 if device.type == "cuda" else 2
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    launched = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    launched |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "PYTHONPATH": paths}
    for steps in (2, 4):  # the second goes on from the first's checkpoint
        said = json.dumps(flags | {"run": "runs/split", "train.steps": steps})
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, said],
                env=os.environ | launched | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(count)
        ]
        for process in processes:
            output, _ = process.communicate(timeout=180)
            assert process.returncode == 0, output[-3000:]
            assert "weights sharded over" in output
            assert ("nccl" if device.type == "cuda" else "gloo") in output
    found, state = end(Path("runs/split"))
    assert state["step"] == 4
    for group in ("model", "ema"):
        whole, split = (
            torch.cat([tensors[group][key].ravel() for key in sorted(expected[group])])
            for tensors in (expected, found)
        )
        assert (whole - split).norm() < (1e-4 if device.type == "cpu" else 1e-2) * whole.norm()


def kept(work, device) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        result = work()
        found = torch.cuda.memory_allocated() - before
        del result
        return found
    storages: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(storages.values())


def test_gradient_checkpointing_keeps_less_and_changes_nothing(device, exact):
    torch.manual_seed(0)
    network = UNet(NETWORK).to(device)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    x, context = (torch.randn(*shape, device=device) for shape in ((8, 3, 32, 32), (8, 5, 24)))
    t = torch.arange(8, device=device)
    found = {}
    for checkpointing in (False, True):
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(x, t, context).mean().backward()  # kernels are chosen, buffers are there
        network.zero_grad()
        size = kept(lambda: network(x, t, context), device)
        network(x, t, context).square().mean().backward()
        found[checkpointing] = size, [p.grad.clone() for p in network.parameters()]
    assert found[True][0] < 0.6 * found[False][0]
    for one, other in zip(found[True][1], found[False][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++sde"])
def test_an_image_is_the_same_in_batches_of_1_and_16(sampler, device, exact):
    torch.manual_seed(0)
    network = UNet(NETWORK).eval().to(device, memory_format=torch.channels_last)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    context = torch.randn(1, 5, 24, device=device)

    def images(indices):
        def denoiser(x, t):
            return network(x, t, context.expand(len(x), -1, -1))

        scheduler = make_sampler(sampler, GaussianDiffusion())
        return sample(
            denoiser, scheduler, (3, 16, 16), seed=3, indices=indices, steps=8, device=device
        )

    together = images(range(16))
    for index in (0, 7, 15):
        torch.testing.assert_close(images([index])[0], together[index], rtol=1e-3, atol=1e-3)
    assert (together[0] - together[1]).abs().mean() > 0.1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "heun"])
def test_cuda_graphs_draw_what_eager_steps_do(sampler, device, exact):
    if device.type == "cpu":
        pytest.skip("there are no graphs of a CPU; tests/diffusion try the compiled step")
    made = Denoiser(small_unet(), GaussianDiffusion())
    found = []
    for graph in (None, partial(torch.compile, mode="reduce-overhead")):
        made.graph = graph
        job = made.job(5, steps=6, batch_size=2, sampler=sampler)
        found.append(torch.cat([images for _, images, _ in job]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("flags", [{}, CONTEXT], ids=["plain", "context"])
def test_a_compiled_training_gives_the_losses_of_an_eager_one(flags, data, device):
    if device.type == "cpu":
        pytest.skip("compiling for a CPU takes minutes; tests/models try it")
    flags = flags | {"train.steps": 4, "train.sample_every": 0, "train.mixed_precision": "bf16"}
    losses = {}
    for compiled in ("false", "true"):
        run = run_training(
            "denoise", flags | {"run": f"runs/{compiled}", "train.compile": compiled}
        )
        lines = (run / "metrics.jsonl").read_text().splitlines()
        losses[compiled] = [json.loads(line).get("loss", 0) for line in lines]
    assert losses["true"] == pytest.approx(losses["false"], rel=3e-2)
