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

from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_unet.errors import UserError
from ddpm_unet.training.run_folder import disk_faults

Tensors = dict[str, Tensor]


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]
) -> Path:
    """Write `folder/<step>`: one safetensors file per entry of `tensors`, and `state.json`.

    Raises:
        UserError: The disk is full or not writable; no half checkpoint is left, and the last good
            one stays.
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
    """The tensors and the state that `write_checkpoint` wrote.

    Raises:
        ValueError: A file is missing, unreadable or differs from its digest.
        UserError: It may not be read.
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
    tensors = {
        Path(name).stem: load_file(path / name) for name in digests if name.endswith(".safetensors")
    }
    return tensors, state


def newest_checkpoint(
    folder: Path,
) -> tuple[dict[str, Tensors], dict[str, Any], list[str]] | None:
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
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
