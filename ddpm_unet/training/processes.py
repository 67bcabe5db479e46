"""What the processes of one run tell each other: tensors and JSON, never a pickle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from ddpm_unet.errors import UserError

T = TypeVar("T")
Tensors = dict[str, Tensor]
SECONDS_FOR_LAST_WORDS = 2.0
SECONDS_FOR_LAST_TENSORS = 0.2


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T | None:
    """`action()` on the main process, while the others wait; they get None.

    Raises:
        UserError: That of the action, on the main process.
        SystemExit: On the others, with status 2, when the main one met a UserError. None of them
            is left waiting.
    """
    result, fault = None, None
    if accelerator.is_main_process:
        try:
            result = action()
        except UserError as error:
            fault = error
    if share_json(fault is not None, accelerator):
        end_together(accelerator, fault)
    return result


def end_together(accelerator: Accelerator, fault: UserError | None) -> None:
    """Raise `fault` on the main process, and leave the others silently; all must call it.

    Launchers end a whole run at its first exit, so the others let the main process speak first.
    """
    if accelerator.is_main_process:
        assert fault is not None
        raise fault
    time.sleep(SECONDS_FOR_LAST_WORDS)
    raise SystemExit(2)


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
    """The rows of all processes in order, on every process, bit for bit as they were.

    Args:
        rows: Of this process, `[N, ...]` on the CPU.
        numbers: The place of each among all; every place is some process's, and only one's.
        count: Of all rows.
        accelerator: The processes.

    Returns:
        `[count, ...]`, on the CPU.
    """
    whole = rows.new_zeros(count, *rows.shape[1:])
    whole[list(numbers)] = rows
    if accelerator.num_processes == 1:
        return whole
    return torch.as_tensor(accelerator.reduce(whole.to(accelerator.device), "sum")).cpu()


def share_tensors(
    groups: Mapping[str, Tensors], accelerator: Accelerator
) -> Iterator[tuple[str, str, Tensor]]:
    """The main process's tensors on every process, one after the other.

    Args:
        groups: Group -> name -> tensor; read on the main process only.
        accelerator: The processes.

    Yields:
        Group, name, and the whole tensor.
    """
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
