"""The processes of one run: their devices and precision, what they share, and how they end.

What `accelerate launch` and its configuration say is honoured or refused before the first step.
Processes tell each other tensors and JSON, never a pickle. What settings leave open, as null, is:

                         | on a GPU                                             | on a CPU
train.mixed_precision    | bf16 if the card computes in it (Ampere and later)   | float32
train.compile            | from 20,000 passes on, where Triton works            | false
train.channels_last      | true, but not of sharded weights                     | of volumes
data.workers             | where images are decoded or deformed window by       | none
                         | window: a process's share of the cores, at most 8    |
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, broadcast
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from ddpm_unet.config import TrainConfig
from ddpm_unet.errors import UserError, cause_of, launcher_fault

T = TypeVar("T")
Tensors = dict[str, Tensor]
SECONDS_FOR_LAST_WORDS = 2.0
SECONDS_FOR_LAST_TENSORS = 0.2
PATIENCE = timedelta(days=7)
"""How long processes wait for the main process's disk; if it dies they learn so at once."""
SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
]
ECHO_SECONDS = 2.0
"""A launcher forwards to its processes what the terminal sent them already."""
BLOCKS = ("DownBlock", "MidBlock", "UpBlock", "ConvBlock", "Backbone")
"""Classes of modules that are gathered and let go together where weights are sharded."""
NO = ("", "0", "false", "no", "n", "off", "f")
_FSDP_INSTEAD = "take FSDP (configs/accelerate/hosts_fsdp.yaml)"
ACCEPTED = {
    "ACCELERATE_USE_DEEPSPEED": (NO, _FSDP_INSTEAD),
    "ACCELERATE_USE_MEGATRON_LM": (NO, _FSDP_INSTEAD),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (NO, "leave it out"),
    "ACCELERATE_USE_SAGEMAKER": (NO, "leave it out"),
    "ACCELERATE_DYNAMO_BACKEND": (NO, "set it to no; train.compile and --compile compile"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS":
        (("", "1"), "set it to 1, and train.micro_batch to the images of a pass"),
    "ACCELERATE_DOWNCAST_BF16": (NO, "it is for TPUs; set it to no"),
}  # fmt: skip
"""What a launcher may say, and what to do about other values."""
FSDP = {
    "FSDP_VERSION": (("2",), "set it to 2"),
    "FSDP_OFFLOAD_PARAMS": (NO, "set it to false"),
    "FSDP_ACTIVATION_CHECKPOINTING": (NO, "set train.gradient_checkpointing true instead"),
    "FSDP_IGNORED_MODULES": (("",), "leave it out"),
    "FSDP_AUTO_WRAP_POLICY": (
        ("", "transformer_based_wrap", "no_wrap"),
        "blocks are wrapped by their class; set TRANSFORMER_BASED_WRAP",
    ),
    "FSDP_SHARDING_STRATEGY": (("", "full_shard", "1"), "set FULL_SHARD"),
}
"""Likewise of sharded weights."""
MOST_WORKERS = 8
COMPILED_FROM = 20_000
"""Passes of the network in a process that win back three minutes of compiling by 10 ms each, about
what the host takes to start the operations of a pass one by one: an estimate."""
_MEETINGS = count()
SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU")


class PeerError(UserError):
    """The main process met a UserError, which it says itself."""


@dataclass(frozen=True)
class Sharding:
    """Parameters, gradients and optimizer states split over the processes (FSDP2).

    Modules of the named classes are gathered together; `reshard` lets go of them between forward
    and backward pass.
    """

    classes: tuple[str, ...] = BLOCKS
    reshard: bool = True

    def apply(self, network: nn.Module, device: torch.device) -> None:
        """Shard a network in place; all processes must call it."""
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        for module in reversed(list(network.modules())):
            if type(module).__name__ in self.classes and module is not network:
                fully_shard(module, mesh=mesh, reshard_after_forward=self.reshard)
        fully_shard(network, mesh=mesh, reshard_after_forward=self.reshard)


def sharded(network: nn.Module) -> bool:
    """Whether the parameters of a network are split over the processes."""
    return any(isinstance(p, DTensor) for p in network.parameters())


def let_go(network: nn.Module) -> None:
    """Let go of gathered parameters, of which a changed shard would leave a stale copy."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def replicated(value: Tensor, like: Tensor) -> Tensor:
    """A value that all processes have, as the optimizer of sharded parameters can take it."""
    if not isinstance(like, DTensor):
        return value
    mesh = like.device_mesh
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def whole(named: Iterator[tuple[str, Tensor]] | Any, keep: bool) -> dict[str, Tensor]:
    """Unsharded copies on the CPU, where `keep`, else none; every process must call it alike."""
    kept = {}
    for name, tensor in named:
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if keep:
            kept[name] = tensor.detach().to("cpu", copy=True)
    return kept


@torch.no_grad()
def copy_into(target: Tensor, value: Tensor) -> None:
    """Write a whole tensor into `target`, each process its own part."""
    if isinstance(target, DTensor):
        value = distribute_tensor(
            value.to(target.device), target.device_mesh, target.placements
        ).to(target.dtype)
    target.copy_(value)


def whole_norm(norm: Tensor | float) -> Tensor:
    """The gradient norm as an ordinary tensor, also where it is sharded."""
    return norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)


def launched_sharding(said: Mapping[str, str] = os.environ) -> Sharding | None:
    """What `accelerate launch` says of FSDP; None where it does not ask for it."""
    if said.get("ACCELERATE_USE_FSDP", "").lower() in NO:
        return None
    check_launch(said, FSDP)
    named = said.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").replace(" ", "").split(",")
    classes = tuple(filter(None, named)) or BLOCKS
    reshard = said.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in NO
    whole_network = said.get("FSDP_AUTO_WRAP_POLICY") == "NO_WRAP"
    return Sharding(() if whole_network else classes, reshard)


def launched_precision(config: TrainConfig, said: Mapping[str, str] = os.environ) -> str:
    """The precision of the settings, else that of `accelerate launch`, else of the device.

    What the first two say must not differ; the launcher's "no" is what it says of itself.
    """
    launched = said.get("ACCELERATE_MIXED_PRECISION", "no").lower() or "no"
    own = config.mixed_precision
    if launched not in ("no", "bf16", "fp16"):
        raise UserError(f"accelerate's mixed_precision {launched}: set bf16, fp16 or no")
    if own is not None and launched not in ("no", own):
        raise UserError(
            f"train.mixed_precision {own}: accelerate launch says {launched}; set both alike, or "
            "train.mixed_precision to null"
        )
    return own or (launched if launched != "no" else default_precision(said))


def default_precision(said: Mapping[str, str] = os.environ) -> str:
    """Of a training that neither its settings nor the launcher say: "bf16" or "no"."""
    elsewhere = said.get("ACCELERATE_TORCH_DEVICE", "cuda").partition(":")[0] != "cuda"
    elsewhere |= said.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if elsewhere or not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def check_launch(
    said: Mapping[str, str] = os.environ,
    accepted: Mapping[str, tuple[tuple[str, ...], str]] = ACCEPTED,
) -> None:
    """Refuse what accelerate's configuration can ask for and a training here would not do."""
    for name, (values, cure) in accepted.items():
        value = said.get(name, "").lower()
        if value not in values:
            setting = name.removeprefix("ACCELERATE_").lower()
            raise UserError(f"accelerate's {setting} {value}: is not supported; {cure}")


def open_accelerator(
    config: TrainConfig, tracker: str, folder: Path
) -> tuple[Accelerator, Sharding | None]:
    """The processes, and how weights are split over them; refuses what this machine has not."""
    if tracker != "none" and find_spec(tracker) is None:
        raise UserError(
            f"tracker {tracker}: is not installed; pip install {tracker}, or set tracker none"
        )
    check_launch()
    sharding, precision = launched_sharding(), launched_precision(config)
    accelerator = open_processes(
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=config.timeout))],
        log_with=None if tracker == "none" else tracker,
        project_dir=folder,
    )
    kind = accelerator.distributed_type
    if kind not in SUPPORTED:
        raise UserError(f"distributed_type {kind}: is not supported; take MULTI_GPU or FSDP")
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("train.mixed_precision fp16: needs a GPU; on the CPU set no or bf16")
    if config.batch_size < accelerator.num_processes:
        raise UserError(
            f"train.batch_size = {config.batch_size} is less than the number of processes, "
            f"{accelerator.num_processes}; each needs at least one image"
        )
    if kind == DistributedType.NO:
        sharding = None
    if sharding and precision == "fp16":
        raise UserError("train.mixed_precision fp16: with sharded weights (FSDP) set bf16 or no")
    if sharding and config.compile:
        raise UserError("train.compile: with sharded weights (FSDP) set it to false or null")
    return accelerator, sharding


def loader_processes(given: int | None, stream: Any, device: torch.device) -> int:
    """How many processes load a stream for a GPU; `stream.laborious` says whether it is work."""
    if given is not None or device.type == "cpu" or not getattr(stream, "laborious", False):
        return given or 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MOST_WORKERS, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def compiling(asked: bool | None, device: torch.device, passes: int) -> bool:
    """Whether to compile a network for so many passes: as asked, else where it pays.

    It does on a GPU with all that Triton needs, from `COMPILED_FROM` passes on.
    """
    if asked is not None or device.type != "cuda" or passes < COMPILED_FROM:
        return bool(asked)
    header = Path(sysconfig.get_path("include"), "Python.h")
    compiler = os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))
    triton = find_spec("triton") and torch.cuda.get_device_capability(device) >= (7, 0)
    return bool(compiler and triton and header.is_file())


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


def open_processes(**options: Any) -> Accelerator:
    """The processes of a command, as the launcher says; of what it says, nothing is ignored."""
    check_launch()
    device, said = os.environ.get("ACCELERATE_TORCH_DEVICE"), options.get("mixed_precision")
    try:
        torch.empty(0, device=device)
        # Weights are sharded here, not by accelerate, which does not on a CPU.
        with _environment(ACCELERATE_USE_FSDP="false"):
            return Accelerator(cpu=not torch.accelerator.is_available(), **options)
    except (RuntimeError, ValueError, ImportError) as error:
        fault, cause = launcher_fault(error), cause_of(error)
        if device is not None and isinstance(error, RuntimeError):
            fault = UserError(
                f"ACCELERATE_TORCH_DEVICE {device}: {cause}; set another, or leave it out"
            )
        elif fault is None and isinstance(error, ValueError) and said:
            fault = UserError(f"train.mixed_precision {said}: {cause} Else set another")
        if fault is None:
            raise
        raise fault from error


@contextmanager
def own_accelerator() -> Iterator[None]:
    """Leave no accelerator behind: a later training in this process may choose another precision.

    One that was there before stays, and so do several processes, which cannot join twice.
    """
    before = bool(AcceleratorState._shared_state)
    try:
        yield
    finally:
        # One that could not be made leaves a part of the state.
        state: dict[str, Any] = AcceleratorState._shared_state or PartialState._shared_state
        if (
            not before
            and state
            and state.get("distributed_type", DistributedType.NO) == DistributedType.NO
        ):
            AcceleratorState._reset_state(reset_partial_state=True)


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T | None:
    """`action()` on the main process, while the others wait; they get None.

    They wait by the store of the group, so that no collective runs out of time at a slow disk.
    A UserError of the action ends all: none is left waiting, the others get a `PeerError`.
    """
    result, fault = None, None
    if accelerator.is_main_process:
        try:
            result = action()
        except UserError as error:
            fault = error
    if accelerator.num_processes > 1:
        _after_main(accelerator.is_main_process)
    if share_json(fault is not None, accelerator):
        end_together(accelerator, fault)
    return result


def _after_main(is_main: bool) -> None:
    """Let the other processes go on from here once the main one is here too."""
    store, number = torch.distributed.distributed_c10d._get_default_store(), next(_MEETINGS)
    if is_main:
        store.set(f"ddpm_unet/{number}", "")
        store.delete_key(f"ddpm_unet/{number - 100}")  # steps ago, which all have passed
    else:
        store.wait([f"ddpm_unet/{number}"], PATIENCE)


def end_together(accelerator: Accelerator, fault: UserError | None) -> None:
    """Raise `fault` on the main process, and `PeerError` on the others; all must call it.

    Launchers end a whole run at its first exit, so the others let the main process speak first.
    """
    if accelerator.is_main_process:
        assert fault is not None
        raise fault
    time.sleep(SECONDS_FOR_LAST_WORDS)
    raise PeerError("the main process has ended; see its message")


def leave(accelerator: Accelerator) -> None:
    """End the trackers and the group of processes, at the end of a training.

    DistributedDataParallel keeps gloo's threads alive; one that still holds a tensor when the
    interpreter ends aborts it (pytorch/pytorch#179291), so they get a moment to let go.
    """
    accelerator.end_training()
    if accelerator.num_processes > 1:
        time.sleep(SECONDS_FOR_LAST_TENSORS)


def peer_lost(error: RuntimeError) -> bool:
    """Whether an error is that of a collective whose other side is gone (gloo's and NCCL's)."""
    text = str(error)
    return isinstance(error, torch.distributed.DistError) or (
        "gloo" in text and ("Connection" in text or "connection" in text)
    )


def share_json(value: Any, accelerator: Accelerator) -> Any:
    """The main process's `value`, of JSON's types, on every process."""
    if accelerator.num_processes == 1:
        return value
    text = json.dumps(value).encode() if accelerator.is_main_process else b""
    size = broadcast(torch.tensor(len(text), device=accelerator.device))
    letters = torch.zeros(int(size), dtype=torch.uint8, device=accelerator.device)
    if accelerator.is_main_process:
        letters.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    return json.loads(bytes(broadcast(letters).cpu().numpy()))


def merge_rows(
    rows: Tensor, numbers: Sequence[int], count: int, accelerator: Accelerator
) -> Tensor:
    """The rows of all processes in order, `[count, ...]` on the CPU, bit for bit as they were.

    Args:
        rows: Of this process, `[N, ...]` on the CPU.
        numbers: The place of each among all; every place is one process's.
        count: Of all rows.
        accelerator: The processes.
    """
    merged = rows.new_zeros(count, *rows.shape[1:])
    merged[list(numbers)] = rows
    if accelerator.num_processes == 1:
        return merged
    return torch.as_tensor(accelerator.reduce(merged.to(accelerator.device), "sum")).cpu()


def share_tensors(
    groups: Mapping[str, Tensors], accelerator: Accelerator
) -> Iterator[tuple[str, str, Tensor]]:
    """The main process's tensors by group and name, one after the other, on every process."""
    kinds = {
        group: {n: (list(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in named.items()}
        for group, named in groups.items()
    }
    for group, named in share_json(kinds, accelerator).items():
        for name, (shape, dtype) in named.items():
            if accelerator.num_processes == 1:
                yield group, name, groups[group][name]
                continue
            value = torch.empty(shape, dtype=getattr(torch, dtype), device=accelerator.device)
            if accelerator.is_main_process:
                value.copy_(groups[group][name])
            yield group, name, broadcast(value)


class StopRequest:
    """Within, the first SIGTERM, SIGUSR1 or Ctrl-C sets `received`; a later one acts as usual.

    Nothing changes without `listen`, and in threads but the main one, which get no signals.
    """

    received: int = 0

    def __init__(self, listen: bool = True) -> None:
        self._listen = listen and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if self._listen:
            self._before = {s: signal.signal(s, self._receive) for s in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._first = number, time.monotonic()
        elif time.monotonic() - self._first > ECHO_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Within, variables that are set have these values."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update({name: values[name] for name in before})
    try:
        yield
    finally:
        os.environ.update(before)
