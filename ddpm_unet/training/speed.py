"""How a training computes where its settings leave it open: one place for all commands.

A setting that is null   | on a GPU                                             | on a CPU
train.mixed_precision    | bf16 if the card computes in it (Ampere and later)   | float32
train.channels_last      | true, but not of sharded weights                     | of volumes
data.workers             | where images are decoded or deformed window by       | none
                         | window: a process's share of the cores, at most 8    |

What `accelerate launch` asks for comes first. Nothing is compiled unasked: a first compiled step
takes minutes, and how many more it saves has not been measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

MOST_WORKERS = 8


def default_precision(said: Mapping[str, str] = os.environ) -> str:
    """Of a training that neither its settings nor the launcher say: "bf16" or "no"."""
    elsewhere = said.get("ACCELERATE_TORCH_DEVICE", "cuda").partition(":")[0] != "cuda"
    elsewhere |= said.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if elsewhere or not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def loader_processes(given: int | None, stream: Any, device: torch.device) -> int:
    """How many processes load a stream for a GPU; `stream.laborious` says whether it is work."""
    if given is not None or device.type == "cpu" or not getattr(stream, "laborious", False):
        return given or 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MOST_WORKERS, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def in_memory_format(
    network: nn.Module, channels_last: bool | None, device: torch.device
) -> nn.Module:
    """The network, in the memory format of the settings.

    By default channels come last on a GPU, and for volumes. For images on a CPU they do not: with
    Winograd's convolutions a step takes 1.1 to 1.4 times as long then.
    """
    volumes = any(parameter.ndim == 5 for parameter in network.parameters())
    if channels_last is None:
        channels_last = volumes or device.type != "cpu"
    if not channels_last:
        return network
    return network.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
