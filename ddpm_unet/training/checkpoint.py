"""Checkpoints: folders of safetensors that are either whole or not there.

A checkpoint is written beside its final name, flushed to the disk and renamed. Its manifest
holds the SHA-256 digest of every file, so a damaged one is recognised and the one before it
is used. No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_unet.errors import UserError
from ddpm_unet.training.distributed import on_main, share_json, share_tensors
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
            (partial / "state.json").write_text(json.dumps(state, indent=1))
            digests = {path.name: _digest(path) for path in sorted(partial.iterdir())}
            (partial / "manifest.json").write_text(json.dumps(digests, indent=1))
            for path in (*partial.iterdir(), partial):
                _flush(path)
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            _flush(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


def read_checkpoint(path: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The tensors and the state that `write_checkpoint` wrote; ValueError if they are damaged."""
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
    state.restore(share_tensors(tensors, accelerator), numbers)
    if accelerator.scaler and numbers["scaler"]:
        accelerator.scaler.load_state_dict(numbers["scaler"])
    if accelerator.is_main_process:
        if digest and numbers.get("data", digest) != digest:
            tqdm.write(
                "the data have changed since the checkpoint: from here on the images come in "
                "another order"
            )
        tqdm.write(f"going on from the checkpoint of step {state.step}")
    return True
