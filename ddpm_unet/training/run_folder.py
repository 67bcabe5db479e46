"""The folder of one run: its settings, metrics, images, checkpoints and model.

config.yaml      every setting
plan.yaml        those that a plan chose by the data, with its reasons, if one did
metrics.jsonl    one line of numbers per log step and validation
loss.png         the curves of metrics.jsonl
about.json       what was said of data, network and versions when the training began
report.html      all of it on a page, written at the end and by `ddpm-unet report`
samples/         images drawn during training
checkpoints/     what a resumed run starts from
averages/        snapshots from which `scripts/ema.py` makes averages of any length, if any are kept
model/           the averaged weights, to use and to hand over
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ddpm_unet.config.reading import current_names
from ddpm_unet.errors import UserError
from ddpm_unet.files import replace_text

FREE_TO_CHANGE = {
    "run", "resume", "tracker", "preview", "minutes",
    "data.workers", "data.memory_limit", "data.disk_limit", "data.max_pixels", "latent.cache",
    "unlabelled.workers", "unlabelled.memory_limit", "unlabelled.disk_limit",
    "unlabelled.max_pixels",
    "train.steps", "train.micro_batch", "train.mixed_precision", "train.compile",
    "train.gradient_checkpointing", "train.channels_last", "train.checkpoint_every",
    "train.keep_checkpoints", "train.sample_every", "train.evaluate_every", "train.native",
    "train.timeout", "train.sharded_above",
}  # fmt: skip
FROM_THE_DATA = {
    "model.in_channels", "model.out_channels", "model.dims", "model.num_class_embeds",
    "data.dims", "unlabelled.dims",
}  # fmt: skip
"""Null takes what the data ask for, which are compared themselves."""


class RunFolder:
    """One run's folder; at most one training uses it at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.averages = path / "averages"
        self.model = path / "model"
        self.metrics = path / "metrics.jsonl"
        self._lock = FileLock(path / ".lock", thread_local=False)
        self.changed: dict[str, tuple[Any, Any]] = {}
        """Settings that are others than before, once the folder is claimed: then, and now."""
        self.notes: dict[str, str] = {}
        """Files that are written beside config.yaml, by name."""

    def claim(self, settings: Any, resume: str) -> None:
        """Lock the folder, and hold the settings of its checkpoints against `settings`.

        Raises:
            UserError: It is in use, not writable, holds a run and `resume` is "never", or one of
                other settings (names the first).
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise UserError(
                f"{self.path}: another run is using this folder; wait for it, or give another --run"
            ) from error
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --run folder"
            ) from error
        for place in (self.samples, self.checkpoints, self.model):
            if place.exists() and not place.is_dir():
                raise UserError(f"{place}: is a file where the run needs a folder; move it away")
        for place in (self.metrics, self.path / "config.yaml"):
            if place.is_dir():
                raise UserError(f"{place}: is a folder where the run needs a file; move it away")
        saved = self._saved_settings()
        if saved is not None:
            if resume == "never":
                raise UserError(
                    f"{self.path}: holds a run already; choose another --run or --resume auto"
                )
            if self._begun():
                self.changed = dict(_compare(self.path, saved, plain(settings)))
        file = self.path / "config.yaml"
        with disk_faults(file):
            replace_text(file, yaml.safe_dump(plain(settings), sort_keys=False))
            for name, text in self.notes.items():
                replace_text(self.path / name, text)
            self.samples.mkdir(exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)

    def setting(self, name: str) -> Any:
        """A setting of the run that the folder holds, if it holds one to go on from."""
        saved = self._saved_settings() if self._begun() else None
        return (saved or {}).get(name)

    def _begun(self) -> bool:
        return any(self.checkpoints.glob("[0-9]*"))

    def _saved_settings(self) -> dict[str, Any] | None:
        path = self.path / "config.yaml"
        if not path.exists():
            return None
        try:
            saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            saved = None
        if not isinstance(saved, dict):
            raise UserError(f"{path}: not a run's settings; choose another --run folder")
        return current_names(saved)

    def release(self) -> None:
        """Let others use the folder. The end of the process does the same, however it comes."""
        self._lock.release()

    def log(self, values: dict[str, float | int]) -> None:
        """Append a line to metrics.jsonl; what is not finite, which JSON cannot hold, is null."""
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with disk_faults(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl, all of them on the disk."""
        with disk_faults(self.metrics), self.metrics.open("a") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut_metrics(self, size: int) -> None:
        """Drop lines written after the checkpoint that knew `size` bytes; refuse if others lack."""
        with self.metrics.open("a") as file:
            if file.tell() < size:
                raise UserError(
                    f"{self.metrics}: has lost lines since the last checkpoint; put the file back, "
                    "or start anew with another --run folder"
                )
            file.truncate(size)

    def read_metrics(self) -> list[dict[str, float]]:
        """All lines of metrics.jsonl."""
        if not self.metrics.exists():
            return []
        try:
            return [json.loads(line) for line in self.metrics.read_text().splitlines()]
        except ValueError as error:
            raise UserError(
                f"{self.metrics}: holds a damaged line ({error}); mend it, or start anew with "
                "another --run folder"
            ) from error


def newest_models(runs: Path = Path("runs"), file: str = "model_index.json") -> list[Path]:
    """The `model` folders, holding `file`, of all runs below `runs`; the one written last first."""
    models = {path.parent for path in runs.glob(f"*/model/{file}")}
    return sorted(models, key=lambda path: path.stat().st_mtime, reverse=True)


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass as what YAML can hold: dicts, lists, strings, numbers."""
    return json.loads(json.dumps(asdict(settings)))


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn a write that fails, on a full disk for instance, into one line that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: could not be written ({cause}); free disk space, or choose another place, "
            "and start the same command again"
        ) from error


def _compare(
    path: Path, saved: dict[str, Any], now: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The settings that differ and may; refuses others."""
    for key, value in now.items():
        name = f"{prefix}{key}"
        if key not in saved or saved[key] == value:  # or newer than the run
            continue
        if name in FREE_TO_CHANGE:
            yield name, (saved[key], value)
        elif isinstance(value, dict) and isinstance(saved[key], dict):
            yield from _compare(path, saved[key], value, f"{name}.")
        elif not (name in FROM_THE_DATA and None in (saved[key], value)):
            raise UserError(
                f"{path}: holds a run with {name} = {saved.get(key)}, not {value}; "
                "choose another --run folder or the old value"
            )
