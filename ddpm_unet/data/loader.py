"""From the stream to a process's micro-batches, through worker processes if wanted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from ddpm_unet.errors import UserError

WORKER_TIMEOUT = 600.0  # seconds without a batch before a worker counts as stuck


def shares(
    positions: range, process_index: int = 0, num_processes: int = 1, micro_batch: int = 0
) -> list[range]:
    """One process's part of a step, as micro-batches (0: one).

    Of the positions [k B, (k + 1) B) of step k, B the batch size: contiguous parts, of sizes that
    differ by at most one; with fewer positions than processes some get none.
    """
    total = len(positions)
    start = total * process_index // num_processes
    stop = total * (process_index + 1) // num_processes
    own = positions[start:stop]
    step = micro_batch or max(1, len(own))
    return [own[i : i + step] for i in range(0, len(own), step)]


def step_batches(
    steps: range,
    batch_size: int,
    process_index: int = 0,
    num_processes: int = 1,
    micro_batch: int = 0,
) -> Iterator[list[int]]:
    """The positions of a process's micro-batches, see `shares`; a resumed run starts anywhere."""
    for step in steps:
        whole = range(step * batch_size, (step + 1) * batch_size)
        yield from map(list, shares(whole, process_index, num_processes, micro_batch))


def make_loader(
    stream: Any,
    batches: Iterable[list[int]],
    workers: int = 0,
    pin_memory: bool = False,
    timeout: float = WORKER_TIMEOUT,
) -> Iterator[dict[str, Tensor]]:
    """Micro-batches in order, one pass over all steps, so workers live as long as the run.

    The stream answers `__getitems__` with a finished batch, as `Stream` does; without workers it
    is this process that loads. A bad image, met in whichever process, and a worker that died or is
    stuck for `timeout` seconds are a UserError.
    """
    if not workers:
        for positions in batches:
            batch = stream.__getitems__(positions)
            if pin_memory:
                batch = {key: values.pin_memory() for key, values in batch.items()}
            yield batch
        return
    loader: DataLoader[Any] = DataLoader(
        stream,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=dict,  # a stream has joined its items already
        pin_memory=pin_memory,
        timeout=timeout,
    )
    try:
        yield from loader
        return
    except UserError as error:  # a worker's comes wrapped in its traceback
        fault = UserError(str(error).rsplit(f"{UserError.__name__}: ", 1)[-1].strip())
    except (RuntimeError, OSError, EOFError) as error:
        met: Exception = error
        try:  # a dying worker's connection breaks before torch's signal handler raises, here
            time.sleep(0 if isinstance(error, RuntimeError) else 10)
        except RuntimeError as named:
            met = named
        lost = worker_fault(met)
        if lost is None:
            raise
        fault = lost
        del met
    # Raised here, with nothing left that holds the workers: torch reports a dead one again, out
    # of any line of the program, for as long as its loader lives.
    raise fault


def worker_fault(error: Exception) -> UserError | None:
    """One line for the death of a worker, or None for any other error.

    The main process meets it as torch's RuntimeError, which a signal handler may raise anywhere
    ("DataLoader worker (pid 1) is killed by signal: Killed"), or as a broken connection.
    """
    broken = isinstance(error, OSError | EOFError) and not str(error).startswith("Caught ")
    if not broken and not str(error).startswith("DataLoader"):
        return None
    cause = " ".join(f"{error} {error.__cause__ or ''}".split())
    return UserError(
        f"a loader process failed ({cause}); if memory ran out, lower data.workers or "
        "data.memory_limit"
    )
