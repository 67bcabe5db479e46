"""Checkpoints: folders of safetensors that are either complete or not there.

A checkpoint is written beside its final name, flushed to the disk and renamed. Its manifest
holds the SHA-256 digest of every file, so a damaged one is recognised and the one before it
is used. No pickle is written or read.

Those of large networks have a file of each process, which torch.distributed.checkpoint writes
while training goes on; any number of processes can read either kind.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_unet.errors import UserError
from ddpm_unet.training.distributed import PATIENCE, on_main, share_json, share_tensors
from ddpm_unet.training.run_folder import RunFolder, disk_faults
from ddpm_unet.training.state import TrainingState

Tensors = dict[str, Tensor]


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]
) -> Path:
    """Write `folder/<step>`: a safetensors file per entry of `tensors`, and `state.json`.

    On a full disk no half checkpoint is left, and the last good one stays.
    """
    final = folder / f"{step:08d}"
    partial = folder / f".{step:08d}.partial"
    with disk_faults(final):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for name, group in tensors.items():
                values = {key: value.contiguous() for key, value in group.items()}
                save_file(values, partial / f"{name}.safetensors")
            _publish(partial, final, state)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


def _publish(partial: Path, final: Path, state: Mapping[str, Any]) -> None:
    """Write the state and the manifest, flush everything, and give the folder its name."""
    (partial / "state.json").write_text(json.dumps(state, indent=1))
    digests = {path.name: _digest(path) for path in sorted(partial.iterdir())}
    (partial / "manifest.json").write_text(json.dumps(digests, indent=1))
    for path in (*partial.iterdir(), partial):
        _flush(path)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _flush(final.parent)


class ShardedWriter:
    """Writes checkpoints in the background, each process its own shards; one at a time.

    All processes must make it, and call its methods, alike.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._thread = ThreadPoolExecutor(1)
        self._parts: Future[Any] | None = None
        self._whole: Future[None] | None = None
        self._group: Any = None
        if accelerator.num_processes > 1:  # not that of the gradients, which it would hold up
            self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    def start(
        self,
        folder: Path,
        state: TrainingState,
        numbers: Mapping[str, Any],
        then: Callable[[], object],
    ) -> None:
        """Copy the shards of `state` to the CPU, and begin to write `folder/<step>` from there.

        The main process calls `then` when it is complete.

        Raises:
            UserError: The one before could not be written.
        """
        self.wait()
        final = folder / f"{state.step:08d}"
        partial = folder / f".{state.step:08d}.partial"
        on_main(self.accelerator, lambda: shutil.rmtree(partial, ignore_errors=True))
        shards = {f"{group}/{name}": t for group, of in state.shards().items() for name, t in of}
        writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
        parts: Any = dcp.async_save(shards, storage_writer=writer, process_group=self._group)
        self._parts = parts

        def complete() -> None:
            with disk_faults(final):
                try:
                    parts.result()
                    _publish(partial, final, {**numbers, "sharded": True})
                    then()
                except dcp.CheckpointException as error:
                    causes = [wrapped[0] for wrapped in error.failures.values()]
                    raise next((c for c in causes if isinstance(c, OSError)), causes[0]) from error
                finally:
                    shutil.rmtree(partial, ignore_errors=True)

        if self.accelerator.is_main_process:
            self._whole = self._thread.submit(complete)

    def wait(self) -> None:
        """Until the checkpoint that was begun is complete; errors as `start`."""
        begun, self._whole = self._whole, None
        on_main(self.accelerator, lambda: begun and begun.result())
        wait([self._parts] if self._parts else [])


def _shapes(path: Path) -> dict[str, Tensors]:
    """What a checkpoint of shards holds, as tensors without values."""
    found: dict[str, Tensors] = {}
    described: Any = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    for key, about in described.items():
        group, name = key.split("/", 1)
        like = torch.empty(about.size, dtype=about.properties.dtype, device="meta")
        found.setdefault(group, {})[name] = like
    return found


def _read_shards(path: Path, state: TrainingState) -> None:
    """Fill the tensors of `state`, each process its own parts."""
    slots = {
        f"{group}/{name}": state.slot(group, name, like.shape, like.dtype)
        for group, of in _shapes(path).items()
        for name, like in of.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of this being no collective, as is meant
        dcp.load(slots, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The tensors and the state that `write_checkpoint` wrote; ValueError if they are damaged.

    The tensors of shards have no values (device "meta").
    """
    try:
        digests = json.loads((path / "manifest.json").read_text())
        for name, digest in digests.items():
            if _digest(path / name) != digest:
                raise ValueError(f"{name} differs from its checksum")
        state = json.loads((path / "state.json").read_text())
    except PermissionError as error:
        raise UserError(f"{error.filename}: may not be read; check its permissions") from error
    except OSError as error:
        cause = "is missing" if isinstance(error, FileNotFoundError) else error.strerror
        raise ValueError(f"{Path(error.filename or path).name} {cause}") from error
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"the manifest is unreadable ({error})") from error
    if state.get("sharded"):
        return _shapes(path), state
    tensors = {
        Path(name).stem: load_file(path / name) for name in digests if name.endswith(".safetensors")
    }
    return tensors, state


def newest_checkpoint(folder: Path) -> tuple[dict[str, Tensors], dict[str, Any], list[str]] | None:
    """The newest good checkpoint of `folder` and what was said of damaged ones.

    A damaged checkpoint is renamed to `<step>.damaged` (never deleted), and the one before it
    is tried. What a killed process left half written is removed.
    """
    notes: list[str] = []
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial)
    for path in reversed(checkpoint_paths(folder)):
        try:
            tensors, state = read_checkpoint(path)
        except ValueError as fault:
            aside = path.with_name(f"{path.name}.damaged")
            if aside.exists():
                aside = path.with_name(f"{path.name}.damaged-{len(list(folder.iterdir()))}")
            path.rename(aside)
            notes.append(f"checkpoint {path} is damaged ({fault}); kept as {aside.name}")
            continue
        return tensors, state, notes
    if notes:
        raise UserError(
            f"{folder}: no good checkpoint is left ({'; '.join(notes)}); "
            "start anew with another --run folder"
        )
    return None


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in checkpoint_paths(folder)[:-keep]:
        shutil.rmtree(path)


def checkpoint_paths(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resume(
    state: TrainingState, run: RunFolder, accelerator: Accelerator, digest: str | None = None
) -> bool:
    """Put `state` where the run's newest good checkpoint was; every process must call it.

    The main process says what it found, also that the data have another digest than then, and
    cuts the metrics to what the checkpoint knew.

    Returns:
        Whether there was one.

    Raises:
        UserError: It is not of this training, no checkpoint is good, or metrics are lost.
    """

    def find() -> tuple[dict[str, Tensors], dict[str, Any] | None]:
        found = newest_checkpoint(run.checkpoints)
        if found and (why := state.difference(found[0], found[1])):
            raise UserError(
                f"{checkpoint_paths(run.checkpoints)[-1]}: {why}, so another version of "
                "this program wrote it; go on with that one, or choose another --run folder"
            )
        run.cut_metrics(found[1]["metrics_size"] if found else 0)
        for note in found[2] if found else ():
            tqdm.write(note)
        return (found[0], found[1]) if found else ({}, None)

    tensors, numbers = on_main(accelerator, find) or ({}, None)
    numbers = share_json(numbers, accelerator)
    if numbers is None:
        return False
    if numbers.get("sharded"):
        _read_shards(run.checkpoints / f"{numbers['step']:08d}", state)
        tensors = {}
    state.restore(share_tensors(tensors, accelerator), numbers)
    if accelerator.scaler and numbers["scaler"]:
        accelerator.scaler.load_state_dict(numbers["scaler"])
    if accelerator.is_main_process:
        (order, _, content), (was, _, had) = (
            each.partition(":") for each in (digest or "", numbers.get("data") or "")
        )
        if order and was and order != was:
            tqdm.write(
                "the data have changed since the checkpoint: from here on the images come in "
                "another order"
            )
        elif content and had and content != had:
            tqdm.write("the data have changed since the checkpoint: files have other contents")
        tqdm.write(f"going on from the checkpoint of step {state.step}")
    return True
