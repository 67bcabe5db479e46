"""A network for other runtimes: ONNX, or a program of torch.export.

    python -m ddpm_unet.models.export runs/x/model out.onnx       # extra "export"
    python -m ddpm_unet.models.export runs/x/model out.pt2

Any batch is taken, and any height and width from two pixels at the coarsest level on, also odd
ones; by a `ClassicUNet` multiples of 2^(depth - 1), without padding those of `valid_size`. A
denoiser takes x and t (float32), and context and class_labels where it has them, a segmenter
images. What was written is compared with the network at other sizes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ddpm_unet.cli import ArgumentParser, user_errors
from ddpm_unet.errors import UserError, from_extra
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.pretrained import CONFIG, class_name
from ddpm_unet.models.segmenter import Segmenter, load_segmentation_model
from ddpm_unet.models.unet import UNet

Network = UNet | Segmenter | ClassicUNet
Arguments = dict[str, Tensor]
Axes = dict[str, dict[int, str]]
SIDES = ("depth", "height", "width")
TOLERANCE = 1e-4
"""Largest difference of the outputs, relative to the largest output."""


def load(folder: Path) -> Network:
    """The denoiser or segmenter of a folder."""
    if (folder / CONFIG).is_file() and class_name(folder) in ("Segmenter", "ClassicUNet"):
        return load_segmentation_model(folder)
    return UNet.from_pretrained(folder)


def example(network: Network, batch: int, scale: int, odd: int = 1) -> Arguments:
    """Arguments to run a network on, by their names, for `batch` images.

    Images have `scale` pixels at the coarsest level, from 2 on, one more on every further side, and
    `odd` pixels besides (not of a `ClassicUNet`).
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if isinstance(network, ClassicUNet):
        least, step = classic_sides(network)
        sides = [least + step * (scale + axis) for axis in range(network.dims)]
        return {"images": noise(batch, network.in_channels, *sides)}
    config = (network if isinstance(network, UNet) else network.unet).config
    sides = [network.factor * (scale + axis) + odd for axis in range(config.dims)]
    if isinstance(network, Segmenter):
        return {"images": noise(batch, network.in_channels, *sides)}
    given = {"x": noise(batch, config.in_channels, *sides), "t": torch.linspace(1, 900, batch)}
    if isinstance(config.cross_attention_dim, int):
        given["context"] = noise(batch, scale + 1, config.cross_attention_dim)
    if config.class_embed_type == "identity":
        given["class_labels"] = noise(batch, 4 * config.block_out_channels[0])
    elif config.class_embed_type == "timestep":
        given["class_labels"] = given["t"].clone()
    elif config.num_class_embeds:
        given["class_labels"] = torch.arange(batch) % config.num_class_embeds
    return given


def classic_sides(network: ClassicUNet) -> tuple[int, int]:
    """(a, b): the network takes a + n b pixels, n from 2 on."""
    return network.valid_size(1) if network.margin else 0, network.factor


def program(network: Network) -> tuple[ExportedProgram, Axes]:
    """The network as torch.export sees it, and the names of the open axes of its arguments.

    Raises:
        UserError: It cannot be seen as one program; says why.
    """
    if isinstance(network, Segmenter) and network.config.transfer == "features":
        raise UserError(
            'transfer "features" draws noise of the size of the image, which no program for any'
            " size can; export a segmenter of another transfer"
        )
    given = example(network, batch=2, scale=3)
    axes: Axes = {name: {0: "batch"} for name in given}
    image = next(iter(given))
    sides = SIDES[-(given[image].ndim - 2) :]
    axes[image] |= {2 + i: side for i, side in enumerate(sides)}
    if "context" in given:
        axes["context"][1] = "length"
    open_axes: dict[str, dict[int, Any]] = {
        name: dict.fromkeys(numbers, Dim.DYNAMIC) for name, numbers in axes.items()
    }
    if isinstance(network, ClassicUNet):
        least, step = classic_sides(network)
        for i, side in enumerate(sides):
            size = step * Dim(side, min=2)
            open_axes[image][2 + i] = size + least if least else size
    try:
        with torch.no_grad():
            seen = torch.export.export(network.eval(), (), given, dynamic_shapes=open_axes)
    except torch._dynamo.exc.UserError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"this {type(network).__name__} cannot be exported: {first}") from error
    return seen, axes


def largest_difference(network: Network, exported: Callable[..., Tensor]) -> tuple[float, float]:
    """The largest difference of outputs at four batches and sizes, and the largest output."""
    difference = largest = 0.0
    for batch, scale, odd in ((1, 2, 0), (3, 5, 0), (2, 4, 1), (1, 3, 3)):
        given = example(network, batch, scale, odd)
        with torch.no_grad():
            expected = network(**given)
            difference = max(difference, (exported(**given) - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return difference, largest


def write_onnx(seen: ExportedProgram, axes: Axes, path: Path) -> Callable[..., Tensor]:
    """Write an ONNX file and return what onnxruntime makes of it.

    Weights of more than 2 GB go to a second file beside it.

    Raises:
        UserError: The packages of the extra "export" are missing.
    """
    from_extra("onnxscript", "export", str(path))
    onnxruntime = from_extra("onnxruntime", "export", str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx = torch.onnx.export(
            seen,
            dynamo=True,
            verbose=False,
            input_names=list(axes),
            output_names=["output"],
            dynamic_shapes=axes,
        )
    assert onnx is not None
    onnx.save(path)
    session = onnxruntime.InferenceSession(path)

    def run(**given: Tensor) -> Tensor:
        (output,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        return torch.from_numpy(output)

    return run


def export(network: Network, path: Path) -> tuple[float, float]:
    """Write a network to `path`, a .onnx or .pt2 file, and give `largest_difference`.

    Raises:
        UserError: Another suffix, or the network cannot be written or comes out differently.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{path}: name a .onnx or a .pt2 file")
    seen, axes = program(network)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".onnx":
        run = write_onnx(seen, axes, path)
    else:
        torch.export.save(seen, path)
        run = seen.module()
    difference, largest = largest_difference(network, run)
    if not difference <= TOLERANCE * max(largest, 1):
        raise UserError(
            f"{path}: its outputs differ from the network's by {difference:.1e}, of up to"
            f" {largest:.2g}; do not use it, and report this"
        )
    return difference, largest


def main() -> None:
    """Export the network of a folder, for any batch and size."""
    parser = ArgumentParser(description=main.__doc__)
    parser.add_argument("model", type=Path, help="folder of a denoiser or a segmenter")
    parser.add_argument("out", type=Path, help=".onnx or .pt2 file")
    with user_errors():
        given = parser.parse_args()
        difference, largest = export(load(given.model), given.out)
        print(
            f"written: {given.out}; largest difference to the network {difference:.1e}, of outputs"
            f" up to {largest:.2g}, at four batches and sizes"
        )


if __name__ == "__main__":
    main()
