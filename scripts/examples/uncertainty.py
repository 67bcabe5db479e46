"""Draw many samples for each condition image, and hold their spread against their error.

    python scripts/examples/uncertainty.py --model runs/x/model --images DIR --targets DIR

The model is a denoiser that goes by an image (data.condition). Tiles of its size are cut from the
images, evenly spread. Written are map.png (input, truth, mean, error and spread of each tile),
calibration.png and scores.json.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_unet.cli import ArgumentParser, user_errors, whole
from ddpm_unet.config import PairDataConfig
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.plots import pyplot, save_side_by_side


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of the denoiser")
    add("--images", required=True, help="folder of the condition images")
    add("--targets", required=True, help="folder of the images that they stand for")
    add("--tiles", type=whole(1, 4096), default=16, help="tiles cut from them (default 16)")
    add("--samples", type=whole(2, 4096), default=16, help="samples of each tile (default 16)")
    add("--steps", type=whole(1, 1000), default=25, help="denoising steps (default 25)")
    add("--sampler", default="ddpm", help="as of sample.py (default ddpm)")
    add("--batch_size", type=whole(1), default=32, help="images at a time (default 32)")
    add("--seed", type=int, default=0, help="sample i is a function of (seed, i)")
    add("--out", type=Path, default=Path("uncertainty"), help="folder written to")
    return parser.parse_args()


def cut_tiles(pairs: Any, side: int, count: int) -> tuple[Any, Any]:
    """Condition planes `[T, K, side, side]` and truth `[T, C, side, side]`, in [-1, 1]."""
    found = []
    for number in range(len(pairs)):
        item = pairs[number]
        height, width = item["target"].shape[-2:]
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                place = (..., slice(top, top + side), slice(left, left + side))
                found.append((item["image"][place], item["target"][place]))
    if len(found) < count:
        raise UserError(f"--tiles {count}: the images hold {len(found)} of {side} pixels")
    chosen = [found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count)]
    planes, truth = zip(*chosen, strict=True)
    return torch.stack(planes), torch.stack(truth)


@dataclass(frozen=True)
class Calibration:
    """How the spread of samples and the error of their mean go together, over all pixels.

    Were truth and samples drawn from one distribution, `ratio` would be 1 and `bin_rmse` equal
    `bin_spread`.

    Args:
        rmse: Root mean square error of the mean.
        spread: Root mean square of the spread.
        ratio: spread / rmse: below 1 the samples are too sure, above 1 too unsure.
        correlation: Of the ranks of spread and absolute error (Spearman), -1 to 1.
        bin_spread: Root mean square of the spread in bins of equally many pixels, `[bins]`.
        bin_rmse: Root mean square error in them, `[bins]`.
    """

    rmse: float
    spread: float
    ratio: float
    correlation: float
    bin_spread: Tensor
    bin_rmse: Tensor


def mean_and_spread(samples: Tensor) -> tuple[Tensor, Tensor]:
    """What N samples of each image say, `[B, ...]` each.

    Args:
        samples: `[B, N, ...]`, N at least 2.

    Returns:
        Their mean; and the standard deviation that the error of that mean has if the truth is one
        sample more: the unbiased variance of the samples times 1 + 1/N, its root (Fortin 2014,
        eq. 15).
    """
    count = samples.shape[1]
    if count < 2:
        raise ValueError("one sample has no spread; give 2 or more of each image")
    spread = (samples.var(dim=1) * (1 + 1 / count)).sqrt()
    return samples.mean(dim=1), spread


def calibration(mean: Tensor, spread: Tensor, truth: Tensor, bins: int = 10) -> Calibration:
    """Hold the spread against the error, pixel by pixel.

    Args:
        mean: Of the samples, any shape.
        spread: From `mean_and_spread`, of that shape.
        truth: Of that shape.
        bins: Of equally many pixels, from the smallest spread to the largest.

    Raises:
        ValueError: Fewer pixels than bins.
    """
    error, spread = (mean - truth).double().flatten(), spread.double().flatten()
    if len(error) < bins:
        raise ValueError(f"{len(error)} pixels do not fill {bins} bins")
    order = spread.argsort()
    rmse, all_spread = _root_mean_square(error), _root_mean_square(spread)
    return Calibration(
        rmse=float(rmse),
        spread=float(all_spread),
        ratio=float(all_spread / rmse),
        correlation=_rank_correlation(spread, error.abs()),
        bin_spread=torch.stack([_root_mean_square(part) for part in spread[order].chunk(bins)]),
        bin_rmse=torch.stack([_root_mean_square(part) for part in error[order].chunk(bins)]),
    )


def plot_reliability(found: Calibration, path: Path) -> None:
    """Plot the errors of the bins against the spreads that foretold them, with the diagonal."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(4.2, 4), layout="constrained")
    spread, error = found.bin_spread.numpy(), found.bin_rmse.numpy()
    end = 1.05 * max(spread.max(), error.max())
    axis.plot([0, end], [0, end], color="grey", lw=1, ls="--", label="calibrated")
    axis.plot(spread, error, marker="o", label="bins of equally many pixels")
    axis.set(xlim=(0, end), ylim=(0, end), xlabel="spread of the samples")
    axis.set(ylabel="root mean square error of their mean", aspect="equal")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([values.argsort().argsort().double() for values in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def main() -> None:
    args = arguments()

    from tqdm import tqdm

    from ddpm_unet.cpu import accelerate_cpu
    from ddpm_unet.data.check import check_pairs
    from ddpm_unet.data.labelled import TargetSet
    from ddpm_unet.diffusion.conditioning import concat_cond
    from ddpm_unet.diffusion.samplers import make_sampler
    from ddpm_unet.files import replace_json
    from ddpm_unet.inference.conditioning import Conditioning
    from ddpm_unet.inference.denoiser import generate
    from ddpm_unet.inference.pipeline import image_shape, read_pipeline
    from ddpm_unet.inference.writers import output_folder
    from ddpm_unet.training.distributed import merge_rows, open_processes

    accelerator = open_processes()
    device = accelerator.device
    unet, diffusion = read_pipeline(args.model)
    own = Conditioning.read(args.model)
    shape = image_shape(unet.config, channels=own.image_channels)
    if own.concat_cond is None or own.concat_cond.kind != "image" or len(shape) != 3:
        raise UserError(f"{args.model}: does not go by images; train one with data.condition")
    own.check(unet.config, args.model)
    if unet.config.conditional or unet.config.num_class_embeds:
        raise UserError(f"{args.model}: wants a class or context too; train one with neither")
    data = PairDataConfig(images=args.images, masks=args.targets, mask_kind="images")
    pairs = TargetSet(check_pairs(data))
    if (pairs.channels, pairs.targets.channels) != (own.concat_cond.channels, shape[0]):
        raise UserError(
            f"{args.images}: has {pairs.channels} channels and {args.targets} "
            f"{pairs.targets.channels}; the model is conditioned on {own.concat_cond.channels} "
            f"and makes {shape[0]}"
        )
    planes, truth = cut_tiles(pairs, shape[-1], args.tiles)

    def conditions(indices: Sequence[int]) -> dict[str, Any]:
        return {"concat_cond": planes[[i // args.samples for i in indices]].to(device)}

    count = args.tiles * args.samples
    with output_folder(args.out):
        drawn = generate(
            concat_cond(accelerate_cpu(unet.to(device))),
            make_sampler(args.sampler, diffusion),
            shape,
            count,
            seed=args.seed,
            steps=args.steps,
            batch_size=args.batch_size,
            device=accelerator.device,
            shard=(accelerator.process_index, accelerator.num_processes),
            cond=conditions,
            self_conditioning=own.self_conditioning,
        )
        mine, images = [], [torch.empty(0, *shape)]
        hidden = None if accelerator.is_main_process else True
        with tqdm(total=count, desc="Sampling", disable=hidden) as progress:
            for indices, batch in drawn:
                mine += indices
                images.append(batch.cpu())
                progress.update(len(indices) * accelerator.num_processes)
        samples = merge_rows(torch.cat(images), mine, count, accelerator)
        if not accelerator.is_main_process:
            accelerator.end_training()
            return
        samples = samples.reshape(args.tiles, args.samples, *shape)
        mean, spread = mean_and_spread(samples)
        found = calibration(mean, spread, truth)
        one = float((samples - truth[:, None]).square().mean().sqrt())
        scores = {k: v.tolist() if isinstance(v, Tensor) else v
                  for k, v in asdict(found).items()} | {"rmse_of_one_sample": one}  # fmt: skip
        replace_json(args.out / "scores.json", scores)
        error = (mean - truth).abs().mean(1, keepdim=True)
        doubt = spread.mean(1, keepdim=True)
        top = float(torch.cat([error, doubt]).quantile(0.995))
        columns = [
            ("condition", planes[:, :3] if planes.shape[1] >= 3 else planes[:, :1]),
            ("truth", truth),
            ("mean of the samples", mean),
            (f"error, white is {top:.2f}", 2 * error / top - 1),
            (f"spread, white is {top:.2f}", 2 * doubt / top - 1),
        ]
        save_side_by_side(columns, args.out / "map.png")
        plot_reliability(found, args.out / "calibration.png")
    print(
        f"{args.tiles} tiles, {args.samples} samples each, of a range of 2: rmse of the mean "
        f"{found.rmse:.4f} (of one sample {one:.4f}), spread {found.spread:.4f}, ratio "
        f"{found.ratio:.2f}, rank correlation with the error {found.correlation:.2f}"
    )
    print(f"written: map.png, calibration.png and scores.json in {args.out}")
    accelerator.end_training()


if __name__ == "__main__":
    with user_errors(shared=True):
        main()
