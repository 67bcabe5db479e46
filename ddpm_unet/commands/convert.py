"""From a checkpoint of another toolkit to a folder of this one, which diffusers reads too.

    ddpm-unet convert FILE OUT --heads 4 --qkv_order heads_first
    ddpm-unet convert FILE OUT --heads 1 --size 64 --prediction_type epsilon

The first writes the network alone, for `train_seg.py --init OUT`; the second, given the noise
too, a pipeline for `sample.py --model OUT`. What is missing is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch

from ddpm_unet.cli import ArgumentParser
from ddpm_unet.config import BetaSchedule, CheckpointHints, ProcessHints
from ddpm_unet.diffusion.process import GaussianDiffusion, alphas_cumprod
from ddpm_unet.errors import UserError
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.convert import recognise
from ddpm_unet.models.pretrained import read_file


def convert(
    file: Path, out: Path, hints: CheckpointHints, process: ProcessHints
) -> tuple[UNet, GaussianDiffusion | None]:
    """Write a network's folder or, if anything of the noise is given, a pipeline's.

    Gives the network, and the forward process of the pipeline.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: has files in it; name a new folder")
    unet = UNet.from_pretrained(file, hints)
    variances = unet.config.out_channels == 2 * unet.config.in_channels
    if process.drop_variance:
        if not variances:
            raise UserError(f"{file}: predicts no variances; leave --drop_variance out")
        unet = without_variance(unet)
    unet.config.sample_size = process.size
    if replace(process, drop_variance=False) == ProcessHints():
        unet.save_pretrained(out)
        return unet, None
    learned = variances and not process.drop_variance
    kind = "learned_range" if learned else "fixed_small"
    diffusion = GaussianDiffusion(**forward_process(file, process), variance_type=kind)
    write_pipeline(out, unet, diffusion, note=f"Converted from {file.name}.")
    return unet, diffusion


def without_variance(unet: UNet) -> UNet:
    """The network without the second half of its outputs, the variances (Nichol 2021)."""
    channels = unet.config.out_channels // 2
    weights = unet.state_dict()
    for name in ("conv_out.weight", "conv_out.bias"):
        weights[name] = weights[name][:channels].clone()
    half = type(unet)(replace(unet.config, out_channels=channels))
    half.load_state_dict(weights)
    return half.eval()


def forward_process(file: Path, process: ProcessHints) -> dict[str, Any]:
    """Arguments of the forward process, from the file's `betas` if there are any, else as given."""
    known = {key: value for key, value in asdict(process).items() if value is not None}
    read = read_schedule(file)
    needed = ["size", "prediction_type"]
    if read is None:
        needed += ["num_train_timesteps", "beta_schedule"]
        ends = process.beta_schedule not in ("squaredcos_cap_v2", "logistic")
        needed += ["beta_start", "beta_end"] * ends
    missing = [f"--{name}" for name in needed if name not in known]
    if missing:
        raise UserError(
            f"{file}: the tensors do not say everything that sampling needs; give also"
            f" {', '.join(missing)}, or none of this for the network alone"
        )
    for name, value in (read or {}).items():
        if known.setdefault(name, value) != value:
            raise UserError(f"{file}: its betas have {name} {value}, not {known[name]}")
    for name in ("size", "drop_variance"):
        del known[name]
    known["num_timesteps"] = known.pop("num_train_timesteps")
    return known


def read_schedule(file: Path) -> dict[str, Any] | None:
    """The settings of the schedule whose betas lie in a file, None if there are none."""
    tensors = read_file(file)
    held = next((tensors[n].double() for n in tensors if f".{n}".endswith(".betas")), None)
    if held is None:
        return None
    steps, start, end = len(held), *(float(f"{end:.6g}") for end in (held[0], held[-1]))
    ends = {"beta_start": start, "beta_end": end}
    for name in get_args(BetaSchedule):
        schedule = {"beta_schedule": name, **(ends if name.endswith("linear") else {})}
        found = alphas_cumprod(steps, **schedule)
        if torch.allclose(found, (1 - held).cumprod(0), rtol=0, atol=1e-4):
            return {"num_train_timesteps": steps, **schedule}
    raise UserError(f"{file}: its betas are of no known schedule; convert the network alone")


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert the checkpoint that the command line names."""
    parser = ArgumentParser(prog="ddpm-unet convert", description=main.__doc__)
    parser.add_argument("file", type=Path, help="safetensors file")
    parser.add_argument("out", type=Path, help="folder written to")
    parser.add_settings(CheckpointHints)
    parser.add_settings(ProcessHints)
    given = parser.parse_args(arguments)

    def of(kind: Any) -> Any:
        return kind(**{each.name: getattr(given, each.name) for each in fields(kind)})

    hints = of(CheckpointHints)
    unet, diffusion = convert(given.file, given.out, hints, of(ProcessHints))
    config, size = unet.config, sum(p.numel() for p in unet.parameters())
    levels = ", ".join(map(str, config.block_out_channels))
    print(
        f"{recognise(given.file, hints).NAME}: {config.in_channels} to "
        f"{config.out_channels} channels, levels of {levels}, {size:,} parameters"
    )
    what = "the network alone, as nothing was said of the noise"
    if diffusion:
        what = (
            f"a pipeline: {diffusion.num_timesteps} steps of {diffusion.beta_schedule} noise,"
            f" {diffusion.prediction_type} predicted, variance {diffusion.variance_type}"
        )
    print(f"written: {given.out}, {what}")
