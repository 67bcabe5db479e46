"""What commands have in common: the models at hand, precision, and compiling."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ddpm_unet.cli import read_settings
from ddpm_unet.config.reading import Settings
from ddpm_unet.errors import UserError

PRECISIONS = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}
CHECKOUT = Path(__file__).parents[2]
SAMPLES = CHECKOUT / "samples"


def recipe(name: str) -> Path:
    """The file of a recipe that ships: in a checkout in configs/, else in the package."""
    for folder in (CHECKOUT / "ddpm_unet" / "recipes", CHECKOUT / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{name}: no such recipe is installed; give --config FILE")


def models_at_hand(
    name: str = "histology64", file: str = "model_index.json"
) -> tuple[list[Path], list[Path]]:
    """The models of runs, the newest first, and the one that ships with a checkout, if any."""
    from ddpm_unet.training.run_folder import newest_models

    ours = SAMPLES / name / "model"
    return newest_models(file=file), [ours] * any(ours.glob(file))


def model_or_newest(
    given: Path | None, name: str = "histology64", file: str = "model_index.json", of: str = "ddpm"
) -> Path:
    """The folder of a model: the given one, the newest run's, or that of this name that ships."""
    own, ours = models_at_hand(name, file)
    found = [given] if given else [*own, *ours]
    if not found:
        cure = f"train one with scripts/train_{of}.py, or give --model"
        raise UserError(f"no model in runs/*/model nor in {SAMPLES / name / 'model'}; {cure}")
    return found[0]


def training_settings(kind: type[Settings], model: Path | None, flags: list[str]) -> Settings:
    """The settings of a model's training, from the config.yaml beside its folder, and flags."""
    config = model.resolve().parent / "config.yaml" if model else None
    return read_settings(kind, config if config and config.is_file() else None, flags)[0]


def add_common(parser: argparse.ArgumentParser, out: str) -> None:
    """Add --model, --out, --precision, by default that of the launcher, and --compile."""
    add, precisions = parser.add_argument, list(PRECISIONS)
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower()
    default = "fp32" if launched in ("", "no") else launched
    if default not in PRECISIONS:
        raise UserError(f"accelerate's mixed_precision {launched}: set bf16, fp16 or no")
    add("--model", type=Path, help="model folder (default: the newest run's, else the shipped one)")
    add("--out", type=Path, default=Path(out), help=f"folder written to (default {out})")
    add("--precision", choices=precisions, default=default, help="of the network (default fp32)")
    said = "compile the network first, minutes (default: where it pays, see docs/many_gpus.md)"
    add("--compile", action=argparse.BooleanOptionalAction, help=said)


def best_device() -> Any:
    """The accelerator, or else the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def prepare_gpu() -> None:
    """Choose how a GPU computes, and say it; commands do, the library does not.

    Float32 products are rounded to TF32 (not with NVIDIA_TF32_OVERRIDE=0), and convolutions take
    the kernels that prove fastest (not where torch is to be deterministic).
    """
    import torch

    if not torch.cuda.is_available():
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.deterministic
    if os.environ.get("RANK", "0") == "0":
        exact = os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"
        products = "in float32" if exact else "in TF32 (NVIDIA_TF32_OVERRIDE=0 for float32)"
        kernels = "the fastest by trial" if torch.backends.cudnn.benchmark else "deterministic"
        name = torch.cuda.get_device_name()
        print(f"{name}: float32 products {products}, convolution kernels {kernels}")


def prepare(model: Any, device: Any, codec: Any = None, guide: Any = None) -> None:
    """Make a model and its guide ready for a device, in place, and say how a GPU computes.

    On a CPU they are accelerated; elsewhere, they and the codec of latents keep channels last.
    """
    from ddpm_unet.cpu import accelerate_cpu
    from ddpm_unet.training.distributed import in_memory_format

    for network in (model,) if guide is None else (model, guide):
        if device.type == "cpu":
            accelerate_cpu(network)
        else:
            in_memory_format(network, None, device)
    if codec and device.type != "cpu":
        in_memory_format(codec.network, None, device)
    prepare_gpu()


@contextmanager
def at_speed(
    model: Any, device: Any, args: argparse.Namespace, codec: Any = None, guide: Any = None,
    passes: int = 0, mode: str | None = None,
) -> Iterator[Any]:  # fmt: skip
    """Compute as --precision and --compile say for a while; gives what compiles, or None.

    The model is prepared for the device first; see `prepare`.

    Args:
        model, device, codec, guide: As of `prepare`.
        args: With `precision` and `compile`, which is None for where it pays.
        passes: Of the network in this process.
        mode: Of `torch.compile`.
    """
    import torch

    from ddpm_unet.training.distributed import compiling

    prepare(model, device, codec, guide)
    graph = partial(torch.compile, mode=mode) if compiling(args.compile, device, passes) else None
    if graph and args.compile is None and os.environ.get("RANK", "0") == "0":
        print(f"compiling for {passes} passes of the network (--no-compile for none)")
    if graph and codec:
        codec.network.decoder.compile()
    name = PRECISIONS[args.precision]
    with torch.autocast(device.type, getattr(torch, name)) if name else nullcontext():
        yield graph


def at_speed_of_job(denoiser: Any, accelerator: Any, args: argparse.Namespace) -> Any:
    """`at_speed` for a job of `num_images`, `batch_size`, `sampler` and `steps`."""
    sampler = denoiser.sampler_of(args.sampler)
    batches = -(-args.num_images // (args.batch_size * accelerator.num_processes))
    passes, device = batches * sampler.plan(args.steps).evaluations, accelerator.device
    mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
    networks = denoiser.unet, device, args, denoiser.codec, denoiser.guide
    return at_speed(*networks, passes, mode)


def weights_of(model: Path) -> str:
    """Which weights these are: the file, or a model's newest, and when it was written."""
    files = filter(Path.is_file, model.rglob("*")) if model.is_dir() else [model]
    written, file = max((file.stat().st_mtime_ns, file.resolve()) for file in files)
    return f"{file} {written}"


def go_on(
    note: Path, made_by: dict[str, Any], made: Callable[[], Iterable[Path]], accelerator: Any
) -> None:
    """Keep in a note by what a job is made; what another one `made`, by the note, is removed."""
    from ddpm_unet.config.reading import read_json
    from ddpm_unet.files import replace_json

    if accelerator.is_main_process and not (note.is_file() and read_json(note) == made_by):
        for file in made():
            file.unlink(missing_ok=True)
        replace_json(note, made_by)
    accelerator.wait_for_everyone()
